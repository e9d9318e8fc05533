#!/usr/bin/python3
"""What must not be heard of the program: secrets in logs, images and core dumps, and anything at all when nothing is to be done."""
import os
import resource
import secrets
import signal
import time

import harness

DATA = 0x01500002


def unlimited_core():
    signal.signal(signal.SIGQUIT, signal.SIG_DFL)  # a shell's background job begins with it ignored, and so would ours
    resource.setrlimit(resource.RLIMIT_CORE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


def ended_by(process):
    """How the kernel says it ended, without reaping it."""
    return harness.wait_until(lambda: os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG),
                              f"the end of {process.name}")


def activity(process):
    """Every time that one of its threads began to wait, or was made to, and its processor time. Without the kernel's workers
    for io_uring, which look every 5 s whether they may go, and run nothing of ours."""
    switches, ticks = 0, 0
    for thread in os.listdir(f"/proc/{process.pid}/task"):
        with open(f"/proc/{process.pid}/task/{thread}/comm") as f:
            if f.read().startswith("iou-"):
                continue
        with open(f"/proc/{process.pid}/task/{thread}/status") as f:
            switches += sum(int(line.split()[1]) for line in f if "ctxt_switches" in line)
        with open(f"/proc/{process.pid}/task/{thread}/stat") as f:
            ticks += sum(map(int, f.read().rsplit(")", 1)[1].split()[11:13]))
    return switches, ticks


class Quiet(harness.Case):
    def test_no_secret_in_logs_or_images(self):
        root = harness.Swtpm(self).start()
        recovery = self.path("recovery")
        manager = harness.Manager(self, tpm=root.driver, options=(
            "--auto-create", "--log-level=debug", f"--recovery-file={recovery}"))
        manager.start(create=True)
        instance = harness.Instance(self, manager, options=("--log-level=debug",)).start(create=True)
        data = secrets.token_bytes(24)
        with instance.client() as guest:
            guest.nv_define(DATA, len(data))
            guest.nv_write(DATA, data)
            self.assertEqual(guest.nv_read(DATA, len(data)), data)
        instance.process.terminate()
        manager.process.terminate()
        with open(recovery, "rb") as f:
            key_lines = [line for line in f.read().split(b"\n") if line and not line.startswith(b"#")]
        self.assertTrue(key_lines)
        found = {data: "the guest's data", data.hex().encode(): "the guest's data"}
        found.update({word: "the recovery key" for line in key_lines for word in line.split() if len(word) >= 16})
        for child in self.children:
            log = child.log().encode(errors="replace").lower()
            for secret, what in found.items():
                self.assertNotIn(secret.lower(), log, f"{what} in the log of {child.name}")
        for image in (manager.store, instance.image):
            with open(image, "rb") as f:
                content = f.read()
            for secret, what in found.items():
                self.assertNotIn(secret, content, f"{what} in {image}")

    def test_no_core_dump(self):
        """Killed by a signal that dumps, with every limit lifted: memory is full of keys, and stays out of files."""
        manager = harness.Manager(self)
        manager.start(create=True, preexec=unlimited_core, cwd=self.dir)
        instance = harness.Instance(self, manager).start(create=True, preexec=unlimited_core, cwd=self.dir)
        for process in (instance.process, manager.process):
            with open(f"/proc/{process.pid}/limits") as f:
                limit = next(line for line in f if line.startswith("Max core file size"))
            self.assertEqual(limit.split()[4:6], ["0", "0"], limit)
            before = set(os.listdir(self.dir))
            os.kill(process.pid, signal.SIGQUIT if process is manager.process else signal.SIGABRT)
            end = ended_by(process)
            self.assertEqual(end.si_code, os.CLD_KILLED, f"{process.name}: {end}")
            self.assertFalse([name for name in set(os.listdir(self.dir)) - before if "core" in name])
            process.wait()

    def test_idle_is_idle(self):
        """A manager and three vTPMs, one with a guest connected: once all is settled no thread of them wakes for 10 seconds."""
        manager = harness.Manager(self).start(create=True)
        instances = [harness.Instance(self, manager).start(create=True) for _ in range(3)]
        with instances[0].client() as guest:
            guest.nv_define(DATA, 8)
            guest.nv_write(DATA, b"precious")
            processes = [manager.process, *(i.process for i in instances)]
            seen = []
            for _ in range(6):  # on a busy machine it takes a while to settle
                before = [activity(p) for p in processes]
                time.sleep(10)
                after = [activity(p) for p in processes]
                if before == after:
                    break
                seen.append([(a[0] - b[0], a[1] - b[1]) for a, b in zip(after, before)])
            else:
                self.fail(f"(switches, ticks) of manager and instances in stretches of 10 s: {seen}")
            self.assertEqual(guest.nv_read(DATA), b"precious")


if __name__ == "__main__":
    harness.need_root()
    harness.main()
