#!/usr/bin/python3
"""Code that has broken into one vTPM's instance, a user of the group vtpmd, and an ordinary user: what each is refused.

The first has the rights that a spawned instance has (its user, no capabilities, no way to more) but none of its system call filter,
which tests/unit/util/sandbox_test.cpp has: so what is refused here does not hang on the filter alone.
"""
import contextlib
import json
import os
import re
import signal
import socket
import struct
import uuid as uuids

import attacker
import harness
import tpm

VTPMCTL = os.environ.get("VTPMCTL", "")
HELLO, HANDED_OVER, SAVE, LOAD = 0x56500001, 0x56500002, 1, 2
STATUS_TEXT_AT = 10
CERTIFY = 0x56500004
INDEX = 0x01500002
SHUTDOWN = struct.pack(">I", 3)  # on the control channel
ATTACKER_USER, ATTACKER_GROUP = 1234, 4321


class Link:
    """A peer at the manager's socket."""

    def __init__(self, path):
        self.sock = harness.connect(path)

    def ask(self, code, body=b""):
        self.sock.sendall(struct.pack(">HII", 0x1C1, 10 + len(body), code) + body)
        head = self._read(10)
        _, size, status = struct.unpack(">HII", head)
        return status, self._read(size - 10)

    def hello(self, uuid, create=False):
        return self.ask(HELLO, struct.pack(">H", 1) + uuids.UUID(uuid).bytes + b"\2" + struct.pack(">I", int(create)))

    def _read(self, n):
        data = b""
        while len(data) < n:
            part = self.sock.recv(n - len(data))
            if not part:
                raise EOFError
            data += part
        return data


class Isolation(harness.Case):
    def ctl(self, *args, ok=True):
        return self.run_command(VTPMCTL, *args[:1], f"--socket={self.path('api.sock')}", *args[1:], ok=ok)

    def shown(self, uuid):
        return json.loads(self.ctl("show", uuid, "--json")[1])

    def spawning_manager(self, *options):
        os.mkdir(self.path("run"))
        manager = harness.Manager(self, options=[f"--api=unix:{self.path('api.sock')}", f"--run-dir={self.path('run')}",
                                                 "--stop-instances", *options])
        return manager.start(create=True)

    def started(self, uuid):
        self.ctl("create", uuid)
        self.ctl("start", uuid, "--wait")
        return self.shown(uuid)["pid"]

    def guest(self, uuid):
        return tpm.Client(harness.connect(self.path("run", uuid + ".sock")))

    def test_code_inside_an_instance_gets_nothing_of_anybody_else(self):
        with open(self.path("group"), "w") as f:
            f.write(f"root:x:0:\ndaemon:x:1:\nvtpmd:x:{ATTACKER_GROUP}:\n")
        harness.mount(self.path("group"), "/etc/group", None, 0x1000)  # MS_BIND
        self.addCleanup(harness.umount, "/etc/group")
        manager = self.spawning_manager("--sandbox=on", "--api-read-group=daemon")
        mine, other = harness.new_uuid(), harness.new_uuid()
        pid, peer = self.started(mine), self.started(other)
        status, peers = attacker.status_of(pid), attacker.status_of(peer)
        user = status["Uid"][0]
        self.assertEqual(set(status["Uid"] + status["Gid"]), {user})
        self.assertEqual(status["Groups"], [])
        self.assertGreaterEqual(int(user), 1880000000)
        self.assertNotEqual(peers["Uid"][0], user)
        for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
            self.assertEqual(int(status[name][0], 16), 0, name)
        self.assertEqual((status["NoNewPrivs"], status["Seccomp"]), (["1"], ["2"]))
        self.assertEqual(os.readlink(f"/proc/{pid}/root"), self.path("run", "instances"))
        self.assertIn(f"user {user}, no capabilities, no new privileges, seccomp", self.shown(mine)["sandbox"])

        os.chmod(self.dir, 0o755)
        places = attacker.Places(state=self.dir, run=self.path("run"), store=self.path("manager.img"), tpm=self.path("manager.tpm"),
                                 manager=manager.socket, api=self.path("api.sock"))
        pids = {"manager": manager.process.pid, "me": pid, "peer": peer}
        swapped = {"manager": manager.process.pid, "me": peer, "peer": pid}
        nobody = 65534
        attacker.refuses_everything(self, int(user), places, mine, other, pids)
        attacker.refuses_everything(self, int(peers["Uid"][0]), places, other, mine, swapped)
        # A user of the group vtpmd, one who may look at everything, and one of no group at all.
        for who, group in ((ATTACKER_USER, ATTACKER_GROUP), (ATTACKER_USER, 1), (nobody, nobody)):
            with self.subTest(user=who, group=group):
                attacker.refuses_everything(self, who, places, mine, other, pids, group=group)
        with self.guest(other) as guest:  # nobody has noticed
            guest.nv_define(INDEX, 8)
        manager.process.terminate()

    def test_a_sandboxed_instance_serves_comes_back_and_leaves_nothing(self):
        manager = self.spawning_manager("--sandbox=on")
        manager.options.remove("--stop-instances")
        manager.process.terminate()
        manager.start()
        uuid = harness.new_uuid()
        pid = self.started(uuid)
        with self.guest(uuid) as guest:
            guest.nv_define(INDEX, 16)
            guest.nv_write(INDEX, b"before the crash")
        manager.process.kill()
        manager.start()
        harness.wait_until(lambda: self.shown(uuid)["state"] == "running", "its instance comes back")
        self.assertEqual(self.shown(uuid)["pid"], pid)
        with self.guest(uuid) as guest:
            self.assertEqual(guest.nv_read(INDEX, 16), b"before the crash")
            guest.nv_write(INDEX, b"after the crash.")
        # A quote needs its second connection: it has that again too.
        harness.wait_until(lambda: self.ctl("quote", uuid, "--nonce=00", ok=False)[0] != harness.EX_TEMPFAIL, "it can be asked")
        self.ctl("stop", uuid)
        self.assertFalse(os.path.exists(self.path("run", uuid + ".sock")))
        self.assertFalse(os.path.exists(self.path("run", uuid + ".sock.ctrl")))
        self.ctl("start", uuid, "--wait")
        with self.guest(uuid) as guest:
            self.assertEqual(guest.nv_read(INDEX, 16), b"after the crash.")
        self.ctl("stop", uuid)
        manager.process.terminate()
        self.assertFalse(os.path.exists(self.path("run", "instances", "link.sock")))

    def refuses(self, guest):
        with self.assertRaises(tpm.TpmError):
            guest.nv_write(INDEX, b"lost if acked...")

    def goes_on(self, guest):
        def written():
            try:
                guest.nv_write(INDEX, b"it is back again")
                return True
            except tpm.TpmError:
                return False
        harness.wait_until(written, "it goes on, once it is back")

    def test_an_image_or_its_folder_is_put_elsewhere_and_back(self):
        self.spawning_manager("--sandbox=on")
        os.chmod(self.dir, 0o755)
        uuid = harness.new_uuid()
        self.started(uuid)
        image = self.path(uuid + ".img")
        with self.guest(uuid) as guest:
            guest.nv_define(INDEX, 16)
            for there, elsewhere in ((image, self.path("elsewhere.img")), (self.dir, self.dir + ".elsewhere")):
                with self.subTest(moved=there):
                    os.rename(there, elsewhere)
                    self.refuses(guest)
                    os.rename(elsewhere, there)
                    self.goes_on(guest)
        self.ctl("stop", uuid)
        self.assertEqual([n for n in os.listdir(self.dir) if "rescued" in n], [])

    def test_an_image_that_is_deleted_is_copied_by_the_manager(self):
        self.spawning_manager("--sandbox=on")
        for away in ("deleted", "replaced", "deleted and killed"):
            with self.subTest(away):
                uuid = harness.new_uuid()
                pid = self.started(uuid)
                image = self.path(uuid + ".img")
                with self.guest(uuid) as guest:
                    guest.nv_define(INDEX, 16)
                    guest.nv_write(INDEX, b"acknowledged....")
                    if away == "replaced":
                        with open(image + ".new", "wb") as f:
                            f.write(b"another file")
                        os.rename(image + ".new", image)
                    else:
                        os.unlink(image)
                    if "killed" in away:
                        os.kill(pid, signal.SIGKILL)
                    else:
                        self.refuses(guest)
                harness.wait_until(lambda: os.path.exists(image + ".rescued"), "the copy")
                self.ctl("stop", uuid, ok=False)
                self.assertEqual([n for n in os.listdir(self.dir) if n.startswith(uuid + ".img.rescued")], [uuid + ".img.rescued"])
                self.assertEqual(os.stat(image + ".rescued").st_mode & 0o777, 0o600)
                os.rename(image + ".rescued", image)
                self.ctl("start", uuid, "--wait")
                with self.guest(uuid) as guest:
                    self.assertEqual(guest.nv_read(INDEX, 16), b"acknowledged....")
                self.ctl("stop", uuid)

    def test_more_vtpms_than_users(self):
        """`on` starts none without a user of its own; `auto` says that it has none."""
        manager = self.spawning_manager("--sandbox=on", "--instance-users=1880000007-1880000007")
        first, second = harness.new_uuid(), harness.new_uuid()
        self.assertEqual(attacker.status_of(self.started(first))["Uid"][0], "1880000007")
        self.ctl("create", second)
        self.ctl("start", second)
        manager.process.wait_log(f"{second}: no user of its own is to be had")
        self.assertEqual(self.shown(second)["pid"], None)
        self.ctl("stop", second)
        manager.process.terminate()
        manager.options[manager.options.index("--sandbox=on")] = "--sandbox=auto"
        manager.start()  # starts the first again
        self.ctl("start", second, "--wait")
        manager.process.wait_log(f"{second}: no user of its own is to be had.*runs as the manager's")
        self.assertEqual(attacker.status_of(self.shown(second)["pid"])["Uid"][0], "0")
        manager.process.terminate()

    def test_by_hand(self):
        manager = harness.Manager(self).start(create=True)
        instance = harness.Instance(self, manager, options=["--sandbox=on"]).start(create=True)
        status = attacker.status_of(instance.process.pid)
        self.assertEqual((int(status["CapEff"][0], 16), status["NoNewPrivs"], status["Seccomp"]), (0, ["1"], ["2"]))
        with instance.client() as guest:
            guest.nv_define(INDEX, 8)
            manager.process.kill()
            manager.start()
            guest.nv_write(INDEX, b"it lives")
        instance.process.terminate()
        for options, word in ((["--sandbox=maybe"], "on, off or auto"), (["--user=1880000001"], "add --sandbox=on"),
                              (["--sandbox=off", "--user=1880000001"], "which is off"),
                              (["--sandbox=on", f"--pid-file={self.path('pid')}"], "leave either out")):
            status, text = self.vtpmd("--mode=instance", f"--uuid={instance.uuid}", f"--state={instance.image}",
                                      f"--manager=unix:{manager.socket}", f"--guest=socket:unix:{self.path('x')}", *options)
            self.assertEqual(status, harness.EX_USAGE, text)
            self.assertIn(word, text)
        manager.process.terminate()

    def test_a_user_of_the_group_has_what_is_theirs_and_nothing_else(self):
        with open(self.path("group"), "w") as f:
            f.write(f"root:x:0:\nvtpmd:x:{ATTACKER_GROUP}:\n")
        harness.mount(self.path("group"), "/etc/group", None, 0x1000)  # MS_BIND
        self.addCleanup(harness.umount, "/etc/group")
        manager = harness.Manager(self, options=[f"--api=unix:{self.path('api.sock')}"]).start(create=True)
        uuid = harness.new_uuid()
        harness.Instance(self, manager, uuid=uuid).start(create=True).process.terminate()

        def as_user(attempt):
            os.setgroups([])
            os.setegid(ATTACKER_GROUP)
            os.seteuid(ATTACKER_USER)
            try:
                return attempt()
            finally:
                os.seteuid(0)
                os.setegid(0)

        def opened(which, create=False):
            link = Link(manager.socket)
            status, text = link.hello(which, create)
            return link, status, text.decode(errors="replace")

        _, status, text = as_user(lambda: opened(uuid))
        self.assertNotEqual(status, 0)
        self.assertIn(f"is not user {ATTACKER_USER}'s", text)
        key = struct.pack(">BIIII", 1, 0, 0, 0, 0) + b"\xc1" * 256
        for code, body in ((LOAD, b""), (SAVE, bytes(64)), (HANDED_OVER, b""), (CERTIFY, key)):
            link = as_user(lambda: Link(manager.socket))
            self.assertNotEqual(link.ask(code, body)[0], 0)
        _, status, text = as_user(lambda: opened(harness.new_uuid(), create=True))
        self.assertNotEqual(status, 0)
        self.assertIn("vtpmctl create", text)
        harness.Instance(self, manager, uuid=uuid, name=f"i{uuid[:8]}").start().process.terminate()  # nothing has happened to it

        self.ctl("chown", uuid, str(ATTACKER_USER))
        self.assertEqual(self.shown(uuid)["user"], ATTACKER_USER)
        link, status, text = as_user(lambda: opened(uuid))
        self.assertEqual(status, 0, text)
        self.assertEqual(link.ask(LOAD)[0], 0)
        link.sock.close()
        self.ctl("chown", uuid, "")
        self.assertNotIn("user", self.shown(uuid))
        self.assertNotEqual(as_user(lambda: opened(uuid))[1], 0)
        made = json.loads(self.ctl("create", f"--user={ATTACKER_USER}", "--json")[1])
        link, status, text = as_user(lambda: opened(made["uuid"]))
        self.assertEqual(status, 0, text)
        # What never had a state was not handed over.
        self.assertNotEqual(link.ask(HANDED_OVER)[0], 0)
        manager.process.terminate()

    def test_a_guest_that_never_stops_writing_wears_nothing_down(self):
        """Under --freshness=strict each change is a step of the hardware TPM's counter."""
        manager = harness.Manager(self, options=[f"--api=unix:{self.path('api.sock')}", "--freshness=strict:40"]).start(create=True)
        noisy, other = (harness.Instance(self, manager, name=name).start(create=True) for name in ("noisy", "other"))
        with noisy.client() as guest, other.client() as neighbour:
            guest.nv_define(INDEX, 8)
            neighbour.nv_define(INDEX, 8)
            written = 0
            with self.assertRaises(tpm.TpmError) as refused:
                for written in range(60):
                    guest.nv_write(INDEX, struct.pack(">Q", written))
            self.assertIn("0x923", str(refused.exception))
            self.assertGreater(written, 20)
            self.assertEqual(guest.nv_read(INDEX, 8), struct.pack(">Q", written - 1))  # what was refused has not happened
            for number in range(5):
                neighbour.nv_write(INDEX, struct.pack(">Q", number))
        manager.process.wait_log(f"vTPM {noisy.uuid} has changed its state 40 times within a day")
        noisy.process.wait_log("asks for more than its share")
        metrics = self.ctl("metrics")[1]
        steps = int(float(re.search(r"^vtpmd_freshness_steps_total ([0-9.e+]+)", metrics, re.M)[1]))
        self.assertLess(steps, 100)
        self.assertRegex(metrics, r"(?m)^vtpmd_over_bounds_total [1-9]")
        for instance in (noisy, other):
            instance.process.terminate()
        manager.process.terminate()

    def test_a_socket_in_a_folder_that_others_can_change(self):
        """Who can is named; in one like /tmp, whose files are their owners' alone, nobody can."""
        manager = harness.Manager(self).start(create=True)
        for mode, owner, group, said in ((0o755, ATTACKER_USER, 0, f"user {ATTACKER_USER}, whose folder"), (0o777, 0, 0, "everybody, who"),
                                         (0o775, 0, ATTACKER_GROUP, f"group {ATTACKER_GROUP}, which"), (0o1777, 0, 0, None),
                                         (0o755, 0, ATTACKER_GROUP, None)):
            with self.subTest(mode=oct(mode), owner=owner, group=group):
                uuid = harness.new_uuid()
                folder = self.path("f" + uuid[:8])
                os.mkdir(folder)
                os.chown(folder, owner, group)
                os.chmod(folder, mode)
                instance = self.spawn("i" + uuid[:8], *[harness.VTPMD, "--mode=instance", f"--uuid={uuid}", "--create"],
                                      f"--manager=unix:{manager.socket}", f"--state={self.path(uuid + '.img')}",
                                      f"--guest=socket:unix:{folder}/g.sock")
                instance.wait_log("VTPM attached to Frontend")
                warned = f"{folder}/g.sock: {said}"
                if said:
                    self.assertIn(warned, instance.log())
                else:
                    self.assertNotIn("can put another socket in its place", instance.log())
                instance.terminate()
        manager.process.terminate()

    def test_tcp_is_not_every_users(self):
        """By hand; in the sandbox too, where the kernel cannot be asked any more by who has not opened the way before."""
        manager = harness.Manager(self).start(create=True)

        "a".encode("idna")  # whose module another user could not read

        def asks(port, user, closes=False):
            os.seteuid(user)
            try:
                with socket.create_connection(("127.0.0.1", port), harness.PATIENCE) as sock:
                    sock.sendall(SHUTDOWN if closes else bytes.fromhex("8001 0000000c 0000017b 0008"))
                    return b"" if closes else sock.recv(1)
            except ConnectionError:
                return b""
            finally:
                os.seteuid(0)

        for options, served, refused in ((["--sandbox=on"], [0], [ATTACKER_USER, 65534]),
                                         ([f"--tcp-user={ATTACKER_USER}"], [0, ATTACKER_USER], [65534]),
                                         (["--tcp-anyone", "--sandbox=on"], [0, ATTACKER_USER, 65534], [])):
            with self.subTest(options):
                uuid = harness.new_uuid()
                instance = harness.Instance(self, manager, uuid=uuid, name="i" + uuid[:8], tcp=True, options=options)
                instance.start(create=True)
                for port in (instance.port, instance.port + 1):
                    for user in refused:
                        self.assertEqual(asks(port, user), b"", user)
                for user in served:
                    self.assertEqual(asks(instance.port, user), b"\x80", user)
                # Of a socket that is closed the kernel says root's: what it has sent is not done.
                if refused:
                    with contextlib.suppress(OSError):
                        for _ in range(20):
                            asks(instance.port + 1, 65534, closes=True)
                    instance.process.wait_log(r"a connection was closed: .*user 65534 may not connect by TCP.*--tcp-user")
                    self.assertEqual(asks(instance.port, 0), b"\x80")
                instance.process.terminate()
        status, text = self.vtpmd("--mode=instance", f"--uuid={harness.new_uuid()}", f"--state={self.path('x.img')}",
                                  f"--manager=unix:{manager.socket}", "--guest=socket:tcp:1025", "--tcp-user=nobody-of-that-name")
        self.assertEqual(status, harness.EX_USAGE, text)
        manager.process.terminate()

    def test_who_has_no_right_to_management_shuts_nobody_out(self):
        manager = harness.Manager(self, options=[f"--api=unix:{self.path('api.sock')}", "--api-read-group=daemon"])
        manager.start(create=True)

        def asks():
            with harness.connect(self.path("api.sock")) as sock:
                sock.sendall(b"GET /v1/vtpms HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                sock.settimeout(harness.PATIENCE)
                return sock.recv(64).split()[1:2]

        def as_user(user, group, attempt):
            os.setgroups([])
            os.setegid(group)
            os.seteuid(user)
            try:
                return attempt()
            finally:
                os.seteuid(0)
                os.setegid(0)

        def half_open():
            sock = harness.connect(self.path("api.sock"))
            with contextlib.suppress(BrokenPipeError):  # there are too many of them: closed at once
                sock.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\nX-A: ")
            return sock
        self.assertEqual(as_user(65534, 65534, asks), [b"403"])
        held = as_user(65534, 65534, lambda: [half_open() for _ in range(200)])
        for _ in range(5):
            self.assertEqual(as_user(1, 1, asks), [b"200"])
        for sock in held:
            sock.close()
        manager.process.terminate()


if __name__ == "__main__":
    harness.need_root()
    harness.private_mounts()
    harness.main()
