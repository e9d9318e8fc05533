#!/usr/bin/python3
"""The manager comes and goes; guests' TPMs stay: restarts and crashes of the manager under running instances, what is known of these
meanwhile, what is remembered of a start, and what a child of the manager has open."""
import json
import os
import signal
import socket
import stat
import struct
import threading
import time

import harness
import tpm

harness.need_root()
VTPMCTL = os.environ["VTPMCTL"]
DATA = 0x01500002
ROUNDS = int(os.environ.get("VTPMD_ROUNDS", "20" if harness.SLOW < 4 else "5"))  # how often the manager is killed under load


class Managed(harness.Case):
    OPTIONS = ()

    def setUp(self):
        super().setUp()
        os.mkdir(self.path("run"))
        self.api = self.path("api.sock")
        self.manager = harness.Manager(self, options=[f"--api=unix:{self.api}", f"--run-dir={self.path('run')}", *self.OPTIONS])
        self.manager.start(create=True)

    def ctl(self, *args, status=0):
        got, text = self.run_command(VTPMCTL, f"--socket={self.api}", *args, ok=False)
        self.assertEqual(got, status, text)
        return text

    def show(self, uuid):
        return json.loads(self.ctl("show", uuid, "--json"))

    def state(self, uuid):
        return self.show(uuid)["state"]

    def states(self):
        return {v["uuid"]: v for v in json.loads(self.ctl("list", "--json"))["vtpms"]}

    def create(self):
        return json.loads(self.ctl("create", "--json"))["uuid"]

    def started(self, *options):
        uuid = self.create()
        self.ctl("start", uuid, "--wait", *options)
        return uuid

    def guest(self, uuid):
        return tpm.Client(harness.connect(self.path("run", uuid + ".sock")))

    def crash(self):
        """The manager is killed, and another one started."""
        self.manager.process.kill()
        self.manager.start()

    def until(self, uuid, state):
        harness.wait_until(lambda: self.state(uuid) == state, f"it is {state}")
        return self.show(uuid)


def inodes(pid, kind):
    """Of what a process has open and is of this kind."""
    found = set()
    for fd in os.listdir(f"/proc/{pid}/fd"):
        try:
            target = os.readlink(f"/proc/{pid}/fd/{fd}")
        except OSError:
            continue
        if target.startswith(kind):
            found.add(target)
    return found


class Descriptors(Managed):
    OPTIONS = ("--stop-instances",)

    def setUp(self):
        super().setUp()
        self.hand = harness.Instance(self, self.manager).start(create=True)
        self.done = threading.Event()
        self.asking = [threading.Thread(target=self.ask) for _ in range(3)]
        for t in self.asking:
            t.start()
        self.addCleanup(self.end_asking)

    def end_asking(self):
        self.done.set()
        for t in self.asking:
            t.join()

    def ask(self):
        """Connections to the manager come and go while it starts its children."""
        while not self.done.is_set():
            try:
                with harness.connect(self.api) as s:
                    s.sendall(b"GET /v1/vtpms HTTP/1.1\r\nHost: x\r\n\r\n")
                    s.recv(100)
            except (OSError, AssertionError):
                pass

    def check(self, uuids):
        manager = self.manager.process.pid
        pids = [self.until(uuid, "running")["pid"] for uuid in uuids]
        for pid in pids:
            theirs = inodes(pid, "socket:")
            self.assertEqual(theirs & inodes(manager, "socket:"), set(), "sockets of the manager's")
            for other in pids:
                if other != pid:
                    self.assertEqual(theirs & inodes(other, "socket:"), set(), "sockets of another's")
            files = inodes(pid, self.dir) | inodes(pid, "/dev/")
            self.assertEqual({f for f in files if f.endswith(".img")}, {f for f in files if f.endswith(tuple(
                f"/{u}.img" for u in uuids))}, "files of the manager's")
            self.assertEqual(len({f for f in files if f.endswith(".img")}), 1, files)

    def test_children_by_a_command(self):
        self.check([self.started() for _ in range(4)])

    def test_children_by_autostart_and_spawn(self):
        uuids = [self.started() for _ in range(3)]
        self.ctl("autostart", uuids[2], "off")
        self.manager.process.terminate()
        self.manager.options.append("--spawn")
        self.manager.start()
        self.check(uuids)

    def test_children_of_a_toolstack(self):
        self.manager.process.terminate()
        self.manager.options.append(f"--legacy=unix:{self.path('legacy.sock')}")
        self.manager.start()
        for number in (1, 2):
            with harness.connect(self.path("legacy.sock")) as s:
                request = struct.pack(">BBBI", 0, 1, 2, number)
                s.sendall(struct.pack(">IHII", 0, 0x01C1, 10 + len(request), 0x01000001) + request)
                self.assertEqual(len(s.recv(100)), 14)
        uuids = [u for u, v in self.states().items() if u != self.hand.uuid]
        self.assertEqual(len(uuids), 2)
        self.check(uuids)


class Leaks(Managed):
    def test_a_sibling_holds_no_link_of_another(self):
        """An instance by hand, then one by command; the manager dies. The first one's guest goes on, and both are known."""
        hand = harness.Instance(self, self.manager).start(create=True)
        with hand.client() as guest:
            guest.nv_define(DATA, 8)
            sibling = self.started()
            pid = self.show(sibling)["pid"]
            self.crash()
            guest.nv_write(DATA, b"at once!")
            self.assertEqual(self.until(hand.uuid, "open")["pid"], hand.process.pid)
            self.assertEqual(self.until(sibling, "running")["pid"], pid)
        for uuid in (hand.uuid, sibling):
            self.ctl("delete", uuid, "--yes", status=harness.EX_TEMPFAIL)


class Known(Managed):
    def held_back(self, instance):
        """An instance that runs, and cannot come to the manager that is started meanwhile."""
        os.kill(instance.process.pid, signal.SIGSTOP)
        self.addCleanup(lambda: instance.process.running() and os.kill(instance.process.pid, signal.SIGCONT))

    def check_refused(self, instance):
        self.assertEqual(self.states()[instance.uuid]["state"], "unknown")
        shown = self.show(instance.uuid)
        self.assertEqual(shown["state"], "unknown")
        self.assertIn(str(instance.process.pid), shown["why"])
        metrics = self.ctl("metrics")
        self.assertIn("vtpmd_vtpms{state=\"unknown\"} 1\n", metrics.partition("# HELP vtpmd_tombstones")[0])
        for command in ("delete", "reset"):
            error = self.ctl(command, instance.uuid, "--yes", status=harness.EX_TEMPFAIL)
            self.assertIn(str(instance.process.pid), error)

    def test_what_runs_is_not_deleted_after_a_start_of_the_manager(self):
        for elsewhere in (False, True):
            with self.subTest(elsewhere=elsewhere):
                folder = self.path("elsewhere" if elsewhere else "")
                os.makedirs(folder, exist_ok=True)
                uuid = harness.new_uuid()
                instance = harness.Instance(self, self.manager, uuid=uuid, name=uuid, dir=folder).start(create=True)
                guest = instance.client()
                for how in ("terminate", "kill"):
                    self.held_back(instance)
                    getattr(self.manager.process, how)()
                    self.manager.start()
                    self.check_refused(instance)
                    os.kill(instance.process.pid, signal.SIGCONT)
                    self.until(uuid, "open")
                    self.assertEqual(self.show(uuid)["image"], "" if elsewhere else instance.image)
                guest.nv_define(DATA, 8)  # nothing was done to it
                guest.sock.close()
                self.ctl("stop", uuid)
                self.assertEqual(instance.process.wait(), 0)
                self.assertEqual(self.state(uuid), "stopped")
                self.ctl("delete", uuid, "--yes")

    def test_a_link_that_broke_is_no_end_of_its_instance(self):
        uuid = harness.new_uuid()
        instance = harness.Instance(self, self.manager, uuid=uuid, name=uuid).start(create=True)
        self.held_back(instance)
        self.crash()
        self.check_refused(instance)
        error = self.ctl("start", uuid, status=harness.EX_TEMPFAIL)
        self.assertIn(str(instance.process.pid), error)
        instance.process.kill()
        self.assertEqual(self.state(uuid), "stopped")

    def test_without_a_note_the_lock_of_the_image_tells(self):
        uuid = harness.new_uuid()
        instance = harness.Instance(self, self.manager, uuid=uuid, name=uuid).start(create=True)
        self.held_back(instance)
        self.manager.process.kill()
        os.unlink(self.path("run", "instances", uuid))
        self.manager.start()
        self.assertEqual(self.states()[uuid]["state"], "unknown")
        for command in ("delete", "reset"):
            self.assertIn("has its image", self.ctl(command, uuid, "--yes", status=harness.EX_TEMPFAIL))
        os.kill(instance.process.pid, signal.SIGCONT)
        self.until(uuid, "open")

    def test_stop_says_no_for_what_still_runs(self):
        uuid = self.started()
        pid = self.show(uuid)["pid"]
        self.manager.process.terminate()
        self.manager.start()
        self.assertEqual(self.until(uuid, "running")["pid"], pid)
        self.ctl("stop", uuid)
        self.assertFalse(os.path.exists(f"/proc/{pid}") and "Z" not in open(f"/proc/{pid}/stat").read().split()[2])
        self.assertEqual(self.state(uuid), "stopped")
        self.ctl("reset", uuid, "--yes")


class Stays(Managed):
    def test_instances_outlive_their_manager_and_are_taken_up(self):
        uuid = self.started()
        pid = self.show(uuid)["pid"]
        with self.guest(uuid) as guest:
            guest.nv_define(DATA, 8)
            for how in ("terminate", "kill"):
                getattr(self.manager.process, how)()
                self.assertEqual(len(guest.get_random()), 8)
                self.manager.start()
                guest.nv_write(DATA, how[:4].encode() * 2)
                self.assertEqual(guest.nv_read(DATA, 8), how[:4].encode() * 2)
                self.assertEqual(self.until(uuid, "running")["pid"], pid)
        self.crash()
        self.until(uuid, "running")
        os.kill(pid, signal.SIGKILL)  # it is supervised again
        harness.wait_until(lambda: (v := self.show(uuid))["state"] == "running" and v["pid"] != pid, "it is started again")
        with self.guest(uuid) as guest:
            self.assertEqual(guest.nv_read(DATA, 8), b"killkill")
        self.ctl("stop", uuid)

    def test_they_end_with_the_manager_where_that_is_wanted(self):
        uuid = self.started()
        pid = self.show(uuid)["pid"]
        self.manager.process.terminate()
        self.assertTrue(os.path.exists(f"/proc/{pid}"))
        self.manager.options.append("--stop-instances")
        self.manager.start()
        self.until(uuid, "running")
        self.manager.process.terminate()
        harness.wait_until(lambda: not os.path.exists(f"/proc/{pid}"), "it has ended")

    def test_what_was_started_is_wanted(self):
        self.manager.options.append("--stop-instances")  # as a reboot
        self.manager.process.terminate()
        self.manager.start()
        kept, once, stopped, on, off = (self.create() for _ in range(5))
        for uuid in (kept, stopped, off):
            self.ctl("start", uuid)
        self.ctl("start", once, "--once")
        self.ctl("stop", stopped)
        self.ctl("autostart", on, "on")
        self.ctl("autostart", off, "off")
        self.assertEqual({u: v["autostart"] for u, v in self.states().items()},
                         {kept: True, once: False, stopped: False, on: True, off: False})
        for uuid in (kept, once, off):
            self.until(uuid, "running")
        self.manager.process.terminate()
        self.manager.start()
        for uuid in (kept, on):
            self.until(uuid, "running")
        for uuid in (once, stopped, off):
            self.assertIn(self.state(uuid), ("stopped", "fresh"))
        self.ctl("stop", "--all", "--keep-autostart")
        self.assertLessEqual({v["state"] for v in self.states().values()}, {"stopped", "fresh"})  # stopped before it was made
        self.ctl("delete", kept, "--yes")
        self.assertEqual(os.listdir(self.path("autostart")), [on])
        self.assertEqual(stat.S_IMODE(os.stat(self.path("autostart")).st_mode), 0o700)


class Failed(Managed):
    OPTIONS = ("--stop-instances",)

    def test_a_start_that_fails_says_why(self):
        uuid = self.started()
        self.ctl("stop", uuid)
        os.unlink(self.path(uuid + ".img"))
        error = self.ctl("start", uuid, "--wait", status=harness.EX_UNAVAILABLE)
        self.assertIn(uuid + ".img", error)
        shown = self.show(uuid)
        self.assertEqual((shown["state"], shown["autostart"], shown["pid"]), ("stopped", False, None))
        self.assertIn(uuid + ".img", shown["last_error"])
        self.assertEqual(shown["image"], self.path(uuid + ".img"))
        self.assertTrue(shown["why"])
        self.assertIn("last_error", self.ctl("show", uuid))
        self.ctl("start", self.create(), "--timeout=5", status=harness.EX_USAGE)

    def test_the_last_save_is_told(self):
        """Also of a save before the manager began: then the image tells."""
        begun = int(time.time())
        uuid = self.create()
        self.assertEqual(self.show(uuid)["last_save"], 0)
        self.assertNotIn("last_save", self.ctl("show", uuid))
        self.ctl("start", uuid, "--wait")
        first = self.show(uuid)["last_save"]
        self.assertLessEqual(begun, first)
        self.assertLessEqual(first, int(time.time()))
        self.assertRegex(self.ctl("show", uuid), r"(?m)^last_save +\d{4}-\d\d-\d\d")
        self.ctl("stop", uuid)
        last = self.show(uuid)["last_save"]
        self.assertLessEqual(first, last)
        os.utime(self.path(uuid + ".img"), (last - 1000, last - 1000))
        self.assertEqual(self.show(uuid)["last_save"], last)
        self.crash()
        self.assertEqual(self.show(uuid)["last_save"], last - 1000)
        self.ctl("reset", uuid, "--yes")
        self.assertEqual(self.show(uuid)["last_save"], 0)

    def test_what_failed_leaves_nothing(self):
        for state in ("nodir/x.img", "manager.img/x.img"):
            uuid = harness.new_uuid()
            instance = harness.Instance(self, self.manager, uuid=uuid, name=uuid)
            instance.image = self.path(state)
            instance.launch(create=True)
            self.assertNotEqual(instance.process.wait(), 0)
            self.assertIn(state, instance.process.log())
        self.assertEqual(self.states(), {})
        # A vTPM that the manager refuses leaves no image.
        uuid = self.started()
        self.ctl("stop", uuid)
        self.ctl("delete", uuid, "--yes")
        instance = harness.Instance(self, self.manager, uuid=uuid, name="again")
        instance.launch(create=True)
        self.assertEqual(instance.process.wait(), harness.EX_DATAERR)
        self.assertFalse(os.path.exists(instance.image))


class UnderLoad(Managed):
    def killed_under(self, count, rounds):
        """Nothing that a guest asks of one of `count` instances fails, and each is supervised again, by every manager."""
        uuids = [self.create() for _ in range(count)]
        for uuid in uuids:
            self.ctl("start", uuid)
        pids = {}
        for uuid in uuids:
            pids[uuid] = self.until(uuid, "running")["pid"]
        done = threading.Event()
        errors, writes = [], [0] * 10

        def work(n):
            """One guest after another writes, and reads what it wrote."""
            mine = uuids[n::len(writes)]
            try:
                guests = {u: self.guest(u) for u in mine}
                for g in guests.values():
                    g.nv_define(DATA, 8)
                value = 0
                while not done.is_set():
                    value += 1
                    for u, g in guests.items():
                        g.nv_write(DATA, struct.pack(">Q", value))
                        if g.nv_read(DATA, 8) != struct.pack(">Q", value):
                            raise AssertionError(f"{u}: lost what it wrote")
                        writes[n] += 1
                for g in guests.values():
                    g.sock.close()
            except (OSError, tpm.TpmError, AssertionError) as e:
                errors.append(f"{n}: {e!r}")
        guests = [threading.Thread(target=work, args=(n,)) for n in range(len(writes))]
        for t in guests:
            t.start()
        try:
            for _ in range(rounds):
                before = list(writes)
                harness.wait_until(lambda: errors or all(w > b for w, b in zip(writes, before)), "every guest gets on")
                self.crash()
                harness.wait_until(lambda: all(v["state"] == "running" and v["pid"] == pids[u] for u, v in self.states().items()),
                                   "every instance is supervised again")
        finally:
            done.set()
            for t in guests:
                t.join()
        self.assertEqual(errors, [])
        for uuid in uuids[:3]:
            os.kill(pids[uuid], signal.SIGKILL)
        harness.wait_until(lambda: all(v["state"] == "running" for v in self.states().values()), "all run")
        self.assertFalse(any(self.states()[u]["pid"] == pids[u] for u in uuids[:3]))
        self.ctl("stop", "--all")
        self.assertEqual({v["state"] for v in self.states().values()}, {"stopped"})


class Load(UnderLoad):
    def test_fifty_instances_under_load_while_the_manager_is_killed(self):
        self.killed_under(50, ROUNDS)


class LoadActivated(UnderLoad):
    """The listening socket is another's, as systemd's where it activates: connecting succeeds while there is no manager."""

    def setUp(self):
        self.held = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.addCleanup(self.held.close)
        self.addCleanup(setattr, harness.Manager, "launch", harness.Manager.launch)
        plain, held = harness.Manager.launch, self.held

        def launch(manager, create=False, **kw):
            if held.getsockname() == "":
                held.bind(manager.socket)
                held.listen(128)
            pass_on = os.dup(held.fileno())

            def third():
                os.dup2(pass_on, 3)
                os.set_inheritable(3, True)
            # A shell, since LISTEN_PID is the number of the process that the socket is for.
            whole = manager.args
            manager.args = lambda c: ["sh", "-c", "LISTEN_FDS=1 LISTEN_PID=$$ exec \"$@\"", "sh",
                                      *(a for a in whole(c) if not a.startswith("--listen="))]
            try:
                return plain(manager, create, preexec=third, close_fds=False, **kw)
            finally:
                manager.args = whole
                os.close(pass_on)
        harness.Manager.launch = launch
        super().setUp()

    def test_while_somebody_else_holds_the_socket(self):
        self.killed_under(10, 3)


if __name__ == "__main__":
    harness.main()
