#!/usr/bin/python3
"""A test of a host that is killed, as Meson does with one that takes too long, leaves no container and no control group."""
import os
import shutil
import signal
import sys

import container
import control_group
import harness

harness.need_root()
if "the killed one" in sys.argv:
    harness.private_mounts()


class TheKilledOne(container.Case):
    def runTest(self):
        host = self.host(container.built_tree(self)).boot()
        host.start("work", "sleep 1000")
        print("up", host.pid, self.dir, flush=True)
        host.nspawn.wait(1000)


class Killed(harness.Case):
    def test_nothing_is_left(self):
        for number in (signal.SIGTERM, signal.SIGKILL):
            with self.subTest(signal=number.name):
                test = self.spawn("killed", sys.executable, "-E", "-s", "-B", __file__, "the killed one", start_new_session=True)
                up = test.wait_log(r"^up (\d+) (\S+)$", 3 * container.PATIENCE)
                systemd = int(up[1])
                self.addCleanup(shutil.rmtree, up[2], ignore_errors=True)
                groups = [os.path.join(os.path.dirname(group), f"vtpmd-test-{test.pid}") for group, _ in control_group.control_groups()]
                self.assertTrue(groups and all(map(os.path.isdir, groups)), groups)
                os.killpg(test.pid, number)
                self.assertEqual(test.wait(), -number)
                harness.wait_until(lambda: not os.path.exists(f"/proc/{systemd}"), "the container to end", container.PATIENCE)
                harness.wait_until(lambda: not any(map(os.path.exists, groups)), "the control groups to go", container.PATIENCE)


if __name__ == "__main__":
    if "the killed one" in sys.argv:
        sys.argv[1:] = ["TheKilledOne"]
        container.main()
    else:
        sys.argv[1:] = sys.argv[1:] or ["Killed"]
        harness.main()
