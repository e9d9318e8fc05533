#!/usr/bin/python3
"""Where a host is narrow or odd: an ordinary user, little locked memory, few descriptors, closed standard ones, long paths, a
configuration file from another system, groups by number, clients that send slowly or stop halfway."""
import os
import resource
import signal
import socket
import struct

import harness
import tpm

harness.need_root()
VTPMCTL = os.environ["VTPMCTL"]
NOBODY = 65534
RANDOM = struct.pack(">HIIH", 0x8001, 12, 0x17B, 4)


class Limits(harness.Case):
    def as_nobody(self, locked):
        """A process of an ordinary user's, with that much memory that it may lock: KubeVirt runs swtpm so."""
        def drop():
            resource.setrlimit(resource.RLIMIT_MEMLOCK, (locked, locked))
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
        return drop

    def test_an_ordinary_user(self):
        """Manager and instance work as nobody. Where they may lock too little memory for their secrets they say so; where it is too
        little for the kernel's rings they end, and say that."""
        program = self.path("vtpmd")  # where nobody may run it
        with open(harness.VTPMD, "rb") as source, open(program, "wb") as target:
            target.write(source.read())
        os.chmod(program, 0o755)
        for locked in (0, 65536, 8 << 20):
            with self.subTest(locked=locked):
                folder = self.path(f"m{locked}")
                os.makedirs(f"{folder}/tpm")
                for path in (folder, f"{folder}/tpm"):
                    os.chown(path, NOBODY, NOBODY)
                manager = harness.Manager(self, name="manager", tpm=f"embedded:{folder}/tpm", dir=folder)
                manager.socket = f"{folder}/m.sock"
                process = self.spawn("manager", program, *manager.args(create=True)[1:], preexec=self.as_nobody(locked))
                instance = harness.Instance(self, manager, name="guest", dir=folder)
                instance.socket = f"{folder}/g.sock"
                if not self.serves(process, "Waiting for commands", locked):
                    continue
                vtpm = self.spawn("guest", program, *instance.args(create=True)[1:], preexec=self.as_nobody(locked))
                if self.serves(vtpm, "VTPM attached", locked):
                    with tpm.Client(harness.connect(instance.socket)) as guest:
                        guest.nv_define(0x01500001)
                    vtpm.terminate()
                process.terminate()

    def serves(self, process, line, locked):
        harness.wait_until(lambda: line in process.log() or not process.running(), f"'{line}', or the end")
        enough = locked > 1 << 20
        self.assertEqual("could be swapped out: raise RLIMIT_MEMLOCK" in process.log(), not enough and "warning" in process.log())
        if process.running():
            return True
        self.assertFalse(enough, process.log())
        self.assertEqual(process.wait(), harness.EX_UNAVAILABLE, process.log())
        self.assertRegex(process.log(), f"may lock {locked // 1024} KiB together; raise RLIMIT_MEMLOCK to 8 MiB")
        return False

    def test_few_descriptors(self):
        """A soft limit of 64 is raised as far as the administrator lets it be."""
        manager = harness.Manager(self)
        manager.start(create=True, preexec=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (64, 1024)))
        with open(f"/proc/{manager.process.pid}/limits") as f:
            self.assertRegex(f.read(), r"Max open files +1024 +1024 ")
        held = [harness.connect(manager.socket) for _ in range(100)]
        with harness.Instance(self, manager).start(create=True).client() as guest:
            guest.nv_define(0x01500001)
        for one in held:
            one.close()

    def test_closed_standard_descriptors(self):
        """Nothing that is logged lands in the store or in the image, which would have their numbers."""
        for closed in ("<&- >&- 2>&-", "2>&-", "<&-"):
            with self.subTest(closed=closed):
                manager = harness.Manager(self, name=f"m{len(closed)}")
                args = ["sh", "-c", f'exec "$@" {closed}', "sh"]
                process = self.spawn("manager", *args, *manager.args(create=True))
                harness.connect(manager.socket).close()
                instance = harness.Instance(self, manager, name=f"i{len(closed)}")
                vtpm = self.spawn("instance", *args, *instance.args(create=True))
                with tpm.Client(harness.connect(instance.socket)) as guest:
                    guest.nv_define(0x01500001)
                    guest.nv_write(0x01500001, b"kept....")
                for one in (vtpm, process):
                    one.terminate()
                for path in (manager.store, instance.image):
                    with open(path, "rb") as f:
                        self.assertNotIn(b"info: ", f.read())
                manager.start()
                with instance.start().client() as guest:
                    self.assertEqual(guest.nv_read(0x01500001), b"kept....")
                manager.process.terminate()

    def test_a_terminal_that_goes(self):
        """SIGHUP is a good end; under nohup it is nothing."""
        manager = harness.Manager(self).start(create=True)
        instance = harness.Instance(self, manager)
        instance.start(create=True, preexec=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL))  # nohup may run the tests
        other = harness.Instance(self, manager)
        other.start(create=True, preexec=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))
        for one in (instance, other):
            one.process.popen.send_signal(signal.SIGHUP)
        self.assertEqual(instance.process.wait(), 0)
        self.assertIn("ended in good order", instance.process.log())
        with other.client() as guest:
            guest.get_random()

    def test_long_paths(self):
        """Each option that names a socket: one line with the limit, and the exit status of a wrong command line."""
        long = self.path("d" * 60, "e" * 60)
        os.makedirs(long)
        manager = harness.Manager(self, name="m").start(create=True)
        of_manager = ["--mode=manager", f"--store={self.path('n.img')}", "--create", f"--tpm=embedded:{self.path('tpm')}", "--seal-pcrs=none",
                      "--log-level=error"]
        os.mkdir(self.path("tpm"))
        of_instance = ["--mode=instance", f"--uuid={harness.new_uuid()}", f"--state={self.path('z.img')}", "--create", "--log-level=error"]
        fine = f"--manager=unix:{manager.socket}"
        for args in ([*of_manager, f"--listen=unix:{long}/m.sock"],
                     [*of_manager, f"--listen=unix:{self.path('n.sock')}", f"--api=unix:{long}/a.sock"],
                     [*of_instance, f"--manager=unix:{long}/m.sock", f"--guest=qemu:{self.path('g')}"],
                     [*of_instance, fine, f"--guest=qemu:{long}/g"], [*of_instance, fine, f"--guest=socket:unix:{long}/g"],
                     [*of_instance, fine, f"--guest=qemu:{self.path('g')}", f"--handover=unix:{long}/h"]):
            with self.subTest(args=args[-1]):
                status, text = self.vtpmd(*args)
                self.assertEqual(status, harness.EX_USAGE, text)
                self.assertEqual(len(text.splitlines()), 1, text)
                self.assertIn("107", text)
        status, text = self.run_command(VTPMCTL, f"--socket={long}/a.sock", "list", ok=False)
        self.assertEqual(status, harness.EX_USAGE)
        self.assertIn("107", text)

    def test_configuration_from_another_system(self):
        """A byte order mark, and lines that end in CR LF."""
        manager = harness.Manager(self).start(create=True)
        instance = harness.Instance(self, manager)
        options = [a[2:].replace("=", " = ", 1) for a in instance.args(create=False)[2:]]
        with open(self.path("i.conf"), "wb") as f:
            f.write(b"\xef\xbb\xbf# made with notepad\r\n" + "".join(o + "\r\n" for o in options).encode())
        process = self.spawn("configured", harness.VTPMD, "--mode=instance", "--create", f"--config={self.path('i.conf')}")
        process.wait_log("VTPM attached")
        with instance.client() as guest:
            guest.get_random()
        self.assertEqual([f for f in os.listdir(self.dir) if "\r" in f], [])

    def test_groups_by_number(self):
        """A container's group has no name here."""
        manager = harness.Manager(self, options=["--auto-create", f"--api=unix:{self.path('api.sock')}", "--api-group=64998"]).start(create=True)

        def member():
            os.setgroups([])
            os.setgid(64998)
            os.setuid(NOBODY)
        program = self.path("vtpmctl")
        with open(VTPMCTL, "rb") as source, open(program, "wb") as target:
            target.write(source.read())
        os.chmod(program, 0o755)
        self.run_command(program, f"--socket={self.path('api.sock')}", "list", preexec_fn=member)
        instance = harness.Instance(self, manager, options=["--socket-group=64999"]).start(create=True)
        self.assertEqual((os.stat(instance.socket).st_gid, os.stat(instance.socket).st_mode & 0o777), (64999, 0o660))
        for args, told in (([*instance.args(False)[1:-1], "--socket-group=no-such-group"], "no-such-group"),
                           (manager.args(False)[1:] + ["--api-read-group=no-such-group"], "no-such-group")):
            instance.process.terminate() if instance.process.running() else None
            status, text = self.vtpmd(*args)
            self.assertEqual(status, harness.EX_USAGE, text)
            self.assertIn(told, text)

    def test_nobodys_uuid(self):
        status, text = self.vtpmd("--mode=instance", "--uuid=00000000-0000-0000-0000-000000000000", f"--state={self.path('x.img')}", "--create")
        self.assertEqual(status, harness.EX_USAGE)
        self.assertIn("means nobody", text)
        self.assertFalse(os.path.exists(self.path("x.img")))

    def test_slow_and_half_closed_clients(self):
        """A client that sends no more has its answers; one that sends byte by byte, too; the half of a command has none."""
        manager = harness.Manager(self).start(create=True)
        instance = harness.Instance(self, manager, tcp=True).start(create=True)

        def answers_to(payload):
            with harness.connect(("127.0.0.1", instance.port)) as s:
                s.sendall(payload)
                s.shutdown(socket.SHUT_WR)
                told = b""
                while piece := s.recv(4096):
                    told += piece
                return told
        self.assertEqual([len(answers_to(p)) for p in (RANDOM, RANDOM + RANDOM, RANDOM[:7])], [16, 32, 0])
        with harness.connect(("127.0.0.1", instance.port)) as s:
            for byte in RANDOM:
                s.sendall(bytes([byte]))
            self.assertEqual(len(s.recv(100)), 16)
        self.run_command("tpm2_getrandom", "4", "-T", f"swtpm:host=localhost,port={instance.port}")


if __name__ == "__main__":
    harness.main()
