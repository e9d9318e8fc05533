#!/usr/bin/python3
"""The log and those who read it, or do not: no TPM waits for a reader, and no peer fills the log or writes lines of its own."""
import contextlib
import fcntl
import json
import os
import pty
import pwd
import re
import signal
import socket
import struct
import subprocess
import sys
import termios

import harness
import tpm

harness.need_root()
F_SETPIPE_SZ = 1031
DATA = 0x01500002
RESETS = 120  # two lines each: far more than a page
DROPPED = rb"(\d+) lines of this log were dropped: nobody took them"


def take(fd):
    """What can be read at once."""
    os.set_blocking(fd, False)
    text = b""
    with contextlib.suppress(BlockingIOError, OSError):
        while part := os.read(fd, 65536):
            text += part
    return text


class NobodyReads(harness.Case):
    """The story of a log that stopped a TPM: a pipe of one page, a guest that is reset again and again."""

    def setUp(self):
        super().setUp()
        self.manager = harness.Manager(self).start(create=True)

    def instance(self, log, name="vtpm", manager=None, wrapper=(), **kw):
        """An instance whose standard error is `log`, a descriptor."""
        vtpm = harness.Instance(self, manager or self.manager, name=name)
        vtpm.popen = subprocess.Popen([*wrapper, *vtpm.args(create=True)], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                      stderr=log, preexec_fn=kw.pop("preexec", harness._die_with_parent), **kw)
        self.addCleanup(vtpm.popen.stdout.close)
        self.addCleanup(vtpm.popen.wait)
        self.addCleanup(vtpm.popen.kill)
        return vtpm

    def work(self, vtpm, resets=RESETS):
        """The machine is reset, each time it writes."""
        with vtpm.control() as control, vtpm.client() as guest:
            guest.nv_define(DATA, 8)
            for i in range(resets):
                control.must(control.STOP)
                control.must(control.INIT, struct.pack(">I", 0))
                guest.nv_write(DATA, struct.pack(">Q", i))
            self.assertEqual(guest.nv_read(DATA), struct.pack(">Q", resets - 1))

    def ends(self, vtpm):
        vtpm.popen.send_signal(signal.SIGTERM)
        self.assertEqual(vtpm.popen.wait(harness.PATIENCE), 0)

    def pipe(self):
        read, write = os.pipe()
        self.addCleanup(os.close, read)
        fcntl.fcntl(write, F_SETPIPE_SZ, 4096)
        return read, write

    def test_a_pipe_that_is_full(self):
        read, write = self.pipe()
        vtpm = self.instance(write)
        self.work(vtpm)
        # It is ours alone that does not block: whoever shares the pipe goes on as it was.
        self.assertTrue(os.get_blocking(write))
        os.close(write)
        # Read again, it says how much is missing, by itself.
        text = bytearray(take(read))
        self.assertIn(b"VTPM attached to Frontend", text)
        harness.wait_until(lambda: text.extend(take(read)) or re.search(DROPPED, text), "the count of dropped lines",
                           patience=4 * harness.PATIENCE)
        dropped = int(re.search(DROPPED, text)[1])
        self.assertGreaterEqual(dropped + text.count(b"\n"), RESETS)
        for line in text.splitlines():
            self.assertRegex(line, rb"^\d{4}-\d\d-\d\dT[\d:.]+Z (error|warning|info): ")
        self.ends(vtpm)
        self.assertTrue(take(read).endswith(b"info: ended in good order\n"))

    def test_one_that_is_never_read_to_the_end(self):
        _, write = self.pipe()
        vtpm = self.instance(write)
        self.work(vtpm)
        self.ends(vtpm)
        os.close(write)

    def test_a_reader_that_is_stopped(self):
        read, write = self.pipe()
        reader = subprocess.Popen(["sleep", "1000"], stdin=read, preexec_fn=harness._die_with_parent)
        self.addCleanup(reader.wait)
        self.addCleanup(reader.kill)
        reader.send_signal(signal.SIGSTOP)
        vtpm = self.instance(write)
        os.close(write)
        self.work(vtpm)
        self.ends(vtpm)

    def test_a_reader_that_goes_away(self):
        read, write = os.pipe()
        vtpm = self.instance(write)
        os.close(write)
        with vtpm.client() as guest:
            guest.get_random(8)
        os.close(read)
        self.work(vtpm)
        self.ends(vtpm)

    def test_a_socket_that_nobody_reads(self):
        ours, theirs = socket.socketpair()
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        vtpm = self.instance(theirs.fileno())
        theirs.close()
        self.work(vtpm)
        self.ends(vtpm)
        self.assertIn(b"VTPM attached to Frontend", take(ours.fileno()))
        ours.close()

    def test_a_full_device(self):
        with open("/dev/full", "wb") as full:
            vtpm = self.instance(full)
        self.work(vtpm)
        self.ends(vtpm)

    def test_a_terminal_that_is_stopped(self):
        master, slave = pty.openpty()
        self.addCleanup(os.close, master)
        self.addCleanup(os.close, slave)
        termios.tcflow(slave, termios.TCOOFF)
        vtpm = self.instance(slave)
        self.work(vtpm)
        termios.tcflow(slave, termios.TCOON)
        text = bytearray(take(master))
        harness.wait_until(lambda: text.extend(take(master)) or re.search(DROPPED, text), "the count of dropped lines",
                           patience=4 * harness.PATIENCE)
        self.ends(vtpm)

    def test_a_terminal_that_stops_its_background(self):
        """stty tostop: whoever writes from the background is sent SIGTTOU, which stops it."""
        master, slave = pty.openpty()
        self.addCleanup(os.close, master)
        attributes = termios.tcgetattr(slave)
        attributes[3] |= termios.TOSTOP
        termios.tcsetattr(slave, termios.TCSANOW, attributes)
        vtpm = self.instance(slave, wrapper=[sys.executable, "-I", "-c", """
import os, sys
os.setsid()
os.close(os.open(sys.argv[1], os.O_RDWR))  # the controlling terminal: this process has its foreground
pid = os.fork()
if pid == 0:
    os.setpgid(0, 0)
    os.execv(sys.argv[2], sys.argv[2:])
print(pid, flush=True)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
""", os.ttyname(slave)])
        os.close(slave)
        pid = int(vtpm.popen.stdout.readline())
        self.addCleanup(self.kill, pid)
        self.work(vtpm, resets=3)
        os.kill(pid, signal.SIGTERM)
        self.assertEqual(vtpm.popen.wait(harness.PATIENCE), 0)

    @staticmethod
    def kill(pid):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)

    def test_a_terminal_that_is_closed(self):
        """SIGHUP ends a TPM in good order, unless nohup(1) said otherwise."""
        for ignored in (False, True):
            with self.subTest(ignored=ignored), open(os.devnull, "wb") as null:
                def before():
                    harness._die_with_parent()
                    signal.signal(signal.SIGHUP, signal.SIG_IGN if ignored else signal.SIG_DFL)
                vtpm = self.instance(null, name=f"hup{ignored}", preexec=before)
                self.work(vtpm, resets=1)
                vtpm.popen.send_signal(signal.SIGHUP)
                if ignored:
                    self.work_again(vtpm)
                    self.ends(vtpm)
                self.assertEqual(vtpm.popen.wait(harness.PATIENCE), 0)

    def work_again(self, vtpm):
        with vtpm.client() as guest:
            guest.nv_write(DATA, b"still on")

    def test_the_manager_and_all_that_share_its_log(self):
        """What a manager starts has its log: nobody of them waits, nor do those who come later."""
        read, write = self.pipe()
        api, run = self.path("api.sock"), self.path("run")
        os.mkdir(run)
        quiet = harness.Manager(self, name="quiet", options=["--auto-create", f"--api=unix:{api}", f"--run-dir={run}"])
        popen = subprocess.Popen(quiet.args(create=True), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=write,
                                 preexec_fn=harness._die_with_parent)
        self.addCleanup(popen.wait)
        self.addCleanup(popen.kill)
        os.close(write)
        harness.connect(api).close()
        ctl = lambda *args: self.run_command(os.environ["VTPMCTL"], f"--socket={api}", *args)[1]
        uuids = [json.loads(ctl("create", "--json"))["uuid"] for _ in range(3)]
        for _ in range(12):  # several lines each, of the manager and of the instance
            for uuid in uuids:
                ctl("start", uuid)
                with tpm.Client(harness.connect(f"{run}/{uuid}.sock")) as guest:
                    guest.get_random(8)
                ctl("stop", uuid)
        ctl("start", uuids[0])
        with tpm.Client(harness.connect(f"{run}/{uuids[0]}.sock")) as guest:
            guest.nv_define(DATA, 8)
            guest.nv_write(DATA, b"all well")
        popen.send_signal(signal.SIGTERM)
        self.assertEqual(popen.wait(harness.PATIENCE), 0)
        self.assertIn(b"Waiting for commands from vTPMs", take(read))


class Flood(harness.Case):
    """Whatever a peer repeats, the log has a few lines of it. And they are text."""
    TIMES = 400
    MOST = 30  # lines of one kind of request

    def setUp(self):
        super().setUp()
        self.api = self.path("api.sock")
        self.manager = harness.Manager(self, options=["--auto-create", f"--api=unix:{self.api}", "--api-read-group=nogroup"])
        self.manager.start(create=True)
        self.vtpm = harness.Instance(self, self.manager).start(create=True)

    def lines(self, process):
        return process.log().count("\n")

    def flood(self, what, process, request):
        with self.subTest(what):
            before = self.lines(process)
            for _ in range(self.TIMES):
                request()
            self.assertLessEqual(self.lines(process) - before, self.MOST, process.log()[-2000:])

    def hello(self, uuid, version=2, flags=0):
        return struct.pack(">H", 1) + bytes.fromhex(uuid.replace("-", "")) + bytes([version]) + struct.pack(">I", flags)

    def test_peers_of_the_manager(self):
        process, path = self.manager.process, self.manager.socket
        mine, other = harness.new_uuid(), harness.new_uuid()
        link = tpm.ManagerLink(path)
        self.assertEqual(link.call(0x56500001, self.hello(mine))[0], 0)
        for what, ordinal, body, tag in (("a boot hash", 3, b"", 0x1C1), ("CERTIFY, malformed", 0x56500004, b"", 0x1C1),
                                         ("RESET_INFO, never reset", 0x56500009, b"", 0x1C1), ("unknown", 0x7777, b"", 0x1C1),
                                         ("management", 0x02000101, b"", 0x1C2)):
            self.flood(what, process, lambda ordinal=ordinal, body=body, tag=tag: link.call(ordinal, body, tag))
        link.close()

        def greet(uuid, version=2, tail=b""):
            again = tpm.ManagerLink(path)
            again.call(0x56500001, self.hello(uuid, version))
            again.close()
        self.flood("one that is open", process, lambda: greet(self.vtpm.uuid))
        self.flood("opened and closed", process, lambda: greet(other))
        self.flood("the wrong version", process, lambda: greet(other, version=1))

        def cut_off():
            s = harness.connect(path)
            s.sendall(b"\1")
            s.close()
        self.flood("one byte", process, cut_off)
        self.assertTrue(process.running())

    def test_guests_and_device_models(self):
        process = self.vtpm.process
        with self.vtpm.client() as guest:
            self.flood("unknown commands", process, lambda: guest.command(0x8001, 0xDEADBEEF))
        with self.vtpm.control() as control:
            self.flood("unknown control commands", process, lambda: control.call(99))

            def reset():
                control.must(control.INIT, struct.pack(">I", 0))
            # Two lines a second in the long run, a thousand at once: a host's restart is no flood.
            self.TIMES, before = 1500, self.lines(process)
            for _ in range(self.TIMES):
                reset()
            self.assertLess(self.lines(process) - before, 1300)
        with self.vtpm.client() as guest:
            self.assertEqual(len(guest.get_random(8)), 8)

    def raw(self, data):
        with harness.connect(self.api) as s:
            s.sendall(data)
            return s.recv(65536)

    def test_management(self):
        process = self.manager.process
        ask = lambda target: b"POST " + target + b" HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        self.assertIn(b" 404 ", self.raw(ask(b"/v1/\x9b31m\xff")))
        text = process.log()
        self.assertIn(r"POST /v1/\x9b31m\xff", text)
        with open(process.log_path, "rb") as f:
            self.assertNotRegex(f.read(), rb"[\x00-\x09\x0b-\x1f\x7f-\xff]")
        # A reader asks for changes: it is told so, and the log has a few lines of it.
        uid = pwd.getpwnam("nobody").pw_uid
        reader = subprocess.run(["/usr/bin/python3", "-I", "-c", f"""
import os, socket
os.setgroups([]); os.setgid({pwd.getpwnam("nobody").pw_gid}); os.setuid({uid})
for i in range({self.TIMES}):
    s = socket.socket(socket.AF_UNIX); s.settimeout({harness.PATIENCE}); s.connect({self.api!r})
    s.sendall(b"DELETE /v1/vtpms/x HTTP/1.1\\r\\nHost: x\\r\\nConnection: close\\r\\n\\r\\n")
    assert b" 403 " in s.recv(65536)
    s.close()
"""], capture_output=True, text=True, timeout=6 * harness.PATIENCE)
        self.assertEqual((reader.returncode, reader.stderr), (0, ""))
        self.assertLessEqual(self.lines(process) - text.count("\n"), self.MOST)
        self.assertIn("DELETE /v1/vtpms/x without the right to change anything", process.log())


if __name__ == "__main__":
    harness.main()
