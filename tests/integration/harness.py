"""What the integration tests share: the built program under test, processes with bounded waits, temporary places.

Every test runs in its own directory with its own sockets and ports, so that files can run in parallel. Nothing waits
without a bound; a process that outlives its test is killed and its log is printed when the test failed.

Environment: VTPMD, the program; VTPMD_SLOW, a factor on all bounds (a sanitized build is slow).
"""
import contextlib
import ctypes
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
import unittest
import uuid as uuids

VTPMD = os.environ.get("VTPMD", "")
SLOW = float(os.environ.get("VTPMD_SLOW", "1"))
PATIENCE = 20.0 * SLOW  # seconds that a step may take before it has failed

# sysexits(3)
EX_OK, EX_USAGE, EX_DATAERR, EX_NOINPUT, EX_UNAVAILABLE = 0, 64, 65, 66, 69
EX_SOFTWARE, EX_OSERR, EX_CANTCREAT, EX_IOERR, EX_TEMPFAIL, EX_NOPERM, EX_CONFIG = 70, 71, 73, 74, 75, 77, 78

_libc = ctypes.CDLL(None, use_errno=True)
PR_SET_PDEATHSIG, CLONE_NEWNS, MS_BIND, MS_REC, MS_PRIVATE = 1, 0x00020000, 0x1000, 0x4000, 1 << 18


def need_root():
    """Runs this test file again through sudo if it is not root's."""
    if os.geteuid() != 0:
        keep = [f"{k}={v}" for k, v in os.environ.items() if k.startswith("VTPM") or k in ("ASAN_OPTIONS", "UBSAN_OPTIONS")]
        os.execvp("sudo", ["sudo", "-n", "env", *keep, sys.executable, "-E", "-s", "-B", *sys.argv])


def private_mounts():
    """A mount namespace of our own: what is mounted from here on is ours alone and goes when we go."""
    if _libc.unshare(CLONE_NEWNS) != 0:
        raise OSError(ctypes.get_errno(), "unshare(CLONE_NEWNS): " + os.strerror(ctypes.get_errno()))
    mount("none", "/", None, MS_REC | MS_PRIVATE)


def mount(source, target, kind, flags=0, data=None):
    enc = lambda s: s.encode() if s is not None else None
    if _libc.mount(enc(source), enc(target), enc(kind), ctypes.c_ulong(flags), enc(data)) != 0:
        raise OSError(ctypes.get_errno(), f"mount {target}: " + os.strerror(ctypes.get_errno()))


def umount(target):
    if _libc.umount2(target.encode(), 2) != 0:  # MNT_DETACH
        raise OSError(ctypes.get_errno(), f"umount {target}: " + os.strerror(ctypes.get_errno()))


def _die_with_parent():
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def wait_until(condition, what, patience=None):
    """Calls condition() until it gives something true, which is returned."""
    deadline = time.monotonic() + (patience or PATIENCE)
    pause = 0.002
    while True:
        got = condition()
        if got:
            return got
        if time.monotonic() > deadline:
            raise AssertionError(f"{what}: not within {patience or PATIENCE:.0f} s")
        time.sleep(pause)
        pause = min(pause * 1.5, 0.05)


def free_ports(count=2):
    """The first of `count` TCP ports in a row that nobody has, below the range that the kernel hands out."""
    for _ in range(200):
        first = random.randrange(10000, 30000)
        with contextlib.ExitStack() as stack:
            try:
                for port in range(first, first + count):
                    s = stack.enter_context(socket.socket())
                    s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    s.bind(("127.0.0.1", port))
            except OSError:
                continue
        return first
    raise AssertionError("no free TCP ports")


def connect(address, patience=None):
    """A stream socket to a path or (host, port), waiting until somebody listens there."""
    def attempt():
        s = socket.socket(socket.AF_UNIX if isinstance(address, str) else socket.AF_INET)
        s.settimeout(PATIENCE)
        try:
            s.connect(address)
            return s
        except (FileNotFoundError, ConnectionRefusedError, BlockingIOError):  # the last: its queue is full
            s.close()
            return None
    return wait_until(attempt, f"connecting to {address}", patience)


def end_leftovers(folder):
    """Ends the processes that a test's managers left running, as they are to: those that name the test's folder."""
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/cmdline", "rb") as f:
                words = f.read().split(b"\0")
            if int(pid) != os.getpid() and any(f"{folder}/".encode() in w for w in words):
                os.kill(int(pid), signal.SIGKILL)
        except OSError:
            pass  # it has ended meanwhile, or is another user's


class Process:
    """A child whose standard output and error go to one file."""

    def __init__(self, case, name, args, env=None, **popen):
        case.children.append(self)
        self.name, self.args = name, [str(a) for a in args]
        self.log_path = os.path.join(case.dir, f"{name}.{len(case.children)}.log")
        preexec = popen.pop("preexec", None)

        def before_exec():
            _die_with_parent()
            if preexec:
                preexec()
        with open(self.log_path, "wb") as log:
            self.popen = subprocess.Popen(self.args, stdin=subprocess.DEVNULL, stdout=popen.pop("stdout", log), stderr=log,
                                          env=dict(os.environ, **(env or {})), preexec_fn=before_exec, **popen)

    @property
    def pid(self):
        return self.popen.pid

    def log(self):
        with open(self.log_path, errors="replace") as f:
            return f.read()

    def running(self):
        return self.popen.poll() is None

    def wait_log(self, pattern, patience=None):
        """Waits for a line of the log; a process that ends without it has failed."""
        def look():
            text = self.log()
            if m := re.search(pattern, text, re.M):
                return m
            if not self.running():
                if m := re.search(pattern, self.log(), re.M):
                    return m
                raise AssertionError(f"{self.name} ended ({self.popen.returncode}) without '{pattern}':\n{text[-3000:]}")
            return None
        return wait_until(look, f"{self.name}: '{pattern}' in its log", patience)

    def wait(self, patience=None):
        """The exit status; negative for a signal."""
        try:
            return self.popen.wait(patience or PATIENCE)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self.name} does not end:\n{self.log()[-3000:]}") from None

    def terminate(self):
        """SIGTERM, and it must end well."""
        self.popen.send_signal(signal.SIGTERM)
        status = self.wait()
        if status != 0:
            raise AssertionError(f"{self.name}: exit status {status} after SIGTERM:\n{self.log()[-3000:]}")

    def kill(self):
        if self.running():
            self.popen.kill()
        return self.popen.wait()

    def rss(self):
        """Resident memory in bytes."""
        with open(f"/proc/{self.pid}/statm") as f:
            return int(f.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def descriptors(self):
        return len(os.listdir(f"/proc/{self.pid}/fd"))


class Case(unittest.TestCase):
    """A test with a directory of its own (short: socket paths end at 107 bytes)."""

    def setUp(self):
        self.children = []
        self.dir = tempfile.mkdtemp(prefix="vtpmd-it-", dir="/tmp")
        os.chmod(self.dir, 0o755)
        self.addCleanup(self._clean)

    def _callTestMethod(self, method):
        try:
            super()._callTestMethod(method)
        except BaseException:
            for child in self.children:
                if text := child.log().strip():
                    print(f"--- log of {child.name} ({' '.join(child.args)})\n{text[-3000:]}", file=sys.stderr)
            raise

    def _clean(self):
        for child in self.children:
            child.kill()
        end_leftovers(self.dir)
        shutil.rmtree(self.dir, ignore_errors=True)

    def path(self, *parts):
        return os.path.join(self.dir, *parts)

    def run_command(self, *args, ok=True, env=None, input=None, patience=None, **kw):
        """A short-lived command: (status, output and errors together). With ok it must succeed."""
        done = subprocess.run([str(a) for a in args], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                              env=dict(os.environ, **(env or {})), timeout=(patience or 3 * PATIENCE),
                              **({"input": input} if input is not None else {"stdin": subprocess.DEVNULL}), **kw)
        text = done.stdout.decode(errors="replace")
        if ok and done.returncode != 0:
            raise AssertionError(f"{' '.join(map(str, args))}: exit status {done.returncode}\n{text}")
        return done.returncode, text

    def vtpmd(self, *args, **kw):
        """Runs the program to its end."""
        return self.run_command(VTPMD, *args, ok=False, **kw)

    def spawn(self, name, *args, **kw):
        return Process(self, name, args, **kw)


def new_uuid():
    return str(uuids.uuid4())


class Manager:
    """A manager in a case's directory. start() may be called again and again."""

    def __init__(self, case, name="manager", tpm=None, seal_pcrs="none", options=("--auto-create",), dir=None):
        self.case, self.name = case, name
        self.dir = dir or case.dir
        self.store = os.path.join(self.dir, f"{name}.img")
        self.socket = case.path(f"{name}.sock")
        self.tpm = tpm or f"embedded:{case.path(name + '.tpm')}"
        if not tpm:
            os.makedirs(case.path(name + ".tpm"), exist_ok=True)
        self.seal_pcrs, self.options, self.process = seal_pcrs, list(options), None
        self.state_dir = self.dir
        # Else managers of tests that run at the same time share the host's, and hear of each other's instances.
        self.run_dir = case.path(f"{name}.run")
        os.makedirs(self.run_dir, exist_ok=True)

    def args(self, create):
        run_dir = [] if any(o.startswith("--run-dir=") for o in self.options) else [f"--run-dir={self.run_dir}"]
        return [VTPMD, "--mode=manager", f"--store={self.store}", *(["--create"] if create else []), f"--tpm={self.tpm}",
                f"--seal-pcrs={self.seal_pcrs}", f"--listen=unix:{self.socket}",
                f"--state-dir={self.state_dir}", *run_dir, *self.options]

    def launch(self, create=False, **kw):
        self.process = self.case.spawn(self.name, *self.args(create), **kw)
        return self.process

    def start(self, create=False, **kw):
        self.launch(create, **kw).wait_log("Waiting for commands from vTPMs")
        return self


class Instance:
    """An instance of a manager, with a Unix socket for its guest, and a TCP one if asked."""

    def __init__(self, case, manager, version="2.0", uuid=None, name=None, tcp=False, options=(), dir=None):
        self.case, self.manager, self.version = case, manager, version
        self.uuid = uuid or new_uuid()
        self.name = name or f"i{self.uuid[:8]}"
        self.image = os.path.join(dir or case.dir, f"{self.name}.img")
        self.socket = case.path(f"{self.name}.sock")
        self.port = free_ports(2) if tcp else None
        self.options, self.process = list(options), None

    @property
    def tcti(self):
        """For tpm2-tools."""
        return f"swtpm:host=127.0.0.1,port={self.port}"

    def args(self, create):
        guests = [f"--guest=socket:unix:{self.socket}"]
        if self.port:
            guests.append(f"--guest=socket:tcp:{self.port}")
        return [VTPMD, "--mode=instance", f"--uuid={self.uuid}", f"--manager=unix:{self.manager.socket}",
                f"--state={self.image}", *(["--create"] if create else []),
                *([f"--tpm-version={self.version}"] if self.version else []), *guests, *self.options]

    def launch(self, create=False, **kw):
        self.process = self.case.spawn(self.name, *self.args(create), **kw)
        return self.process

    def start(self, create=False, **kw):
        self.launch(create, **kw).wait_log("VTPM attached to Frontend")
        return self

    def client(self):
        import tpm
        return tpm.Client(connect(self.socket))

    def control(self):
        import tpm
        return tpm.Control(connect(self.socket + ".ctrl"))


class Swtpm:
    """swtpm in the place of the hardware TPM."""

    def __init__(self, case, name="hw", version="2.0"):
        self.case, self.name, self.version = case, name, version
        self.state, self.socket = case.path(name + ".state"), case.path(name + ".sock")
        os.makedirs(self.state, exist_ok=True)
        self.process = None

    @property
    def driver(self):
        return f"swtpm:unix:{self.socket}"

    @property
    def tcti(self):
        return f"swtpm:path={self.socket}"

    def start(self):
        for path in (self.socket, self.socket + ".ctrl"):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
        self.process = self.case.spawn(
            self.name, "swtpm", "socket", *(["--tpm2"] if self.version == "2.0" else []), "--tpmstate", f"dir={self.state}",
            "--server", f"type=unixio,path={self.socket}", "--ctrl", f"type=unixio,path={self.socket}.ctrl",
            "--flags", "not-need-init,startup-clear", "--seccomp", "action=none")
        wait_until(lambda: os.path.exists(self.socket) and os.path.exists(self.socket + ".ctrl"), "swtpm's sockets")
        return self

    def stop(self):
        self.process.popen.terminate()
        self.process.wait()


class TapResult(unittest.TestResult):
    """Prints TAP for Meson. There is no skipping: what cannot run has failed."""

    def __init__(self):
        super().__init__()
        self.number = 0

    def _line(self, test, problem=None):
        self.number += 1
        print(f"{'not ok' if problem else 'ok'} {self.number} - {test.id().replace('__main__.', '')}", flush=True)
        if problem:
            print(problem, file=sys.stderr, flush=True)

    def addSuccess(self, test):
        self._line(test)

    def addError(self, test, err):
        super().addError(test, err)
        self._line(test, "".join(traceback.format_exception(*err)))

    def addFailure(self, test, err):
        super().addFailure(test, err)
        self._line(test, "".join(traceback.format_exception(*err)))

    def addSkip(self, test, reason):
        self.addFailure(test, (AssertionError, AssertionError(f"skipped: {reason}"), None))

    def addSubTest(self, test, subtest, err):
        if err is not None:
            super().addSubTest(test, subtest, err)
            print(f"{subtest.id()}:\n" + "".join(traceback.format_exception(*err)), file=sys.stderr, flush=True)
            self._line(subtest, " ")


def main():
    """Runs the tests of the calling file, or those named on the command line."""
    if not VTPMD or not os.access(VTPMD, os.X_OK):
        sys.exit("VTPMD must name the built program (meson test sets it)")
    names = sys.argv[1:]
    loader = unittest.TestLoader()
    module = sys.modules["__main__"]
    suite = loader.loadTestsFromNames(names, module) if names else loader.loadTestsFromModule(module)
    seed = int(os.environ.get("VTPMD_SEED", "0")) or random.SystemRandom().randrange(1, 1 << 31)
    random.seed(seed)
    print(f"# seed {seed} (VTPMD_SEED={seed} repeats it)")
    print(f"1..{suite.countTestCases()}", flush=True)
    result = TapResult()
    suite.run(result)
    sys.exit(0 if result.wasSuccessful() and result.testsRun else 1)
