"""A control group of a test's own, for tests that start what ends by itself only (a container, libvirt's QEMU): whatever became of the
test, what runs in the group is ended, and the group goes."""
import contextlib
import os
import shutil
import signal
import sys
import time

import harness

sys.path.append(os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "tools", "lib"))
import left  # noqa: E402

PATIENCE = 60.0


def control_groups():
    """(a control group to be this process's own, the one that it is in), in each hierarchy that systemd uses."""
    with open("/proc/self/cgroup") as f:
        lines = [line.rstrip("\n").split(":", 2) for line in f]
    with open("/proc/self/mountinfo") as f:
        mounts = [line.split() for line in f]
    for _, controllers, path in lines:
        if controllers not in ("", "name=systemd"):
            continue
        for fields in mounts:
            rest = fields[fields.index("-") + 1:]
            if (rest[0] == "cgroup2") if controllers == "" else (rest[0] == "cgroup" and controllers in rest[2].split(",")):
                yield os.path.join(fields[4], f"vtpmd-test-{os.getpid()}"), os.path.join(fields[4], path.lstrip("/"))
                break


def move_to(group):
    with open(os.path.join(group, "cgroup.procs"), "w") as f:
        f.write(str(os.getpid()))


class OwnControlGroup:
    """A control group of this process's own in each hierarchy that systemd uses, which a container takes for its root. A keeper
    removes them, with all that runs in them, when leave() says so, or when this process has ended, however that was."""

    def __init__(self):
        self.groups = list(control_groups())
        over, self._alive = os.pipe()
        self._keeper = os.fork()
        if self._keeper == 0:
            os.setsid()  # who ends the test by its process group, or its session, does not end this
            os.close(self._alive)
            null = os.open("/dev/null", os.O_RDWR)
            for descriptor in range(3):
                os.dup2(null, descriptor)
            try:
                os.read(over, 1)
                ended = [left.end_group(group, PATIENCE) for group, _ in self.groups]
                os._exit(0 if all(ended) else 1)
            finally:
                os._exit(2)
        os.close(over)
        for group, _ in self.groups:
            os.makedirs(group, exist_ok=True)
            move_to(group)

    def leave(self):
        """Nothing but this process may be in them: tests end what they start."""
        deadline = time.monotonic() + left.PATIENCE
        while (found := self._others()) and time.monotonic() < deadline:
            time.sleep(0.05)
        for _, before in self.groups:
            move_to(before)
        os.close(self._alive)
        status = os.waitstatus_to_exitcode(os.waitpid(self._keeper, 0)[1])
        if status or found:
            raise AssertionError(f"control groups: {'still there' if status else 'ended what was left'}: {found}")

    def _others(self):
        found = {}
        for group, _ in self.groups:
            for folder, _, _ in os.walk(group):
                with contextlib.suppress(OSError):
                    for pid in left.members(folder):
                        with open(f"/proc/{pid}/cmdline", "rb") as f:
                            words = f.read().replace(b"\0", b" ").decode(errors="replace").strip()
                        if pid != os.getpid():
                            found[pid] = words
        return found


def run_in_own(main):
    """main() in a control group that goes when the tests have ended."""
    group = OwnControlGroup()
    try:
        main()
    finally:
        group.leave()


def killed_leaves_nothing(case, script, begin, end, look=None):
    """`script`, told "the killed one", says "up PID... FOLDER" within `begin` seconds. Whatever kills it, those processes and its control
    groups are gone within `end` seconds. `look` at the processes before that."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with case.subTest(signal=number.name):
            test = case.spawn("killed", sys.executable, "-E", "-s", "-B", script, "the killed one", start_new_session=True)
            up = test.wait_log(r"^up ((?:\d+ )+)(\S+)$", begin)
            pids = up[1].split()
            case.addCleanup(shutil.rmtree, up[2], ignore_errors=True)
            if look:
                look(pids)
            groups = [os.path.join(os.path.dirname(group), f"vtpmd-test-{test.pid}") for group, _ in control_groups()]
            case.assertTrue(groups and all(map(os.path.isdir, groups)), groups)
            os.killpg(test.pid, number)
            case.assertEqual(test.wait(), -number)
            for pid in pids:
                harness.wait_until(lambda: not os.path.exists(f"/proc/{pid}"), f"process {pid} to end", end)
            harness.wait_until(lambda: not any(map(os.path.exists, groups)), "the control groups to go", end)
