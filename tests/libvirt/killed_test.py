#!/usr/bin/python3
"""A test of libvirt that is killed, as Meson does with one that takes too long, leaves no QEMU, no libvirtd and no TPM."""
import os
import shutil
import signal
import sys

import libvirt  # first: it knows where the harness is
import control_group
import harness

harness.need_root()
if "the killed one" in sys.argv:
    harness.private_mounts()


class TheKilledOne(harness.Case):
    def runTest(self):
        manager = harness.Manager(self).start(create=True)
        tpm = harness.Instance(self, manager, options=[f"--guest=qemu:{self.path('q')}"]).start(create=True)
        host = libvirt.Libvirt(self)
        domain = libvirt.Domain(host, "guest", libvirt.external(self.path("q"))).define()
        domain.virsh("start")
        print("up", domain.pid(), host.daemon.pid, tpm.process.pid, self.dir, flush=True)
        tpm.process.wait(1000)


class Killed(harness.Case):
    def test_nothing_is_left(self):
        for number in (signal.SIGTERM, signal.SIGKILL):
            with self.subTest(signal=number.name):
                test = self.spawn("killed", sys.executable, "-E", "-s", "-B", __file__, "the killed one", start_new_session=True)
                up = test.wait_log(r"^up (\d+) (\d+) (\d+) (\S+)$", libvirt.PATIENCE)
                self.addCleanup(shutil.rmtree, up[4], ignore_errors=True)
                with open(f"/proc/{up[1]}/comm") as f:
                    self.assertTrue(f.read().startswith("qemu-system"))
                groups = [os.path.join(os.path.dirname(group), f"vtpmd-test-{test.pid}") for group, _ in control_group.control_groups()]
                self.assertTrue(groups and all(map(os.path.isdir, groups)), groups)
                os.killpg(test.pid, number)
                self.assertEqual(test.wait(), -number)
                for pid in up.groups()[:3]:
                    harness.wait_until(lambda: not os.path.exists(f"/proc/{pid}"), f"process {pid} to end", libvirt.PATIENCE)
                harness.wait_until(lambda: not any(map(os.path.exists, groups)), "the control groups to go", libvirt.PATIENCE)


if __name__ == "__main__":
    if "the killed one" in sys.argv:
        sys.argv[1:] = ["TheKilledOne"]
        libvirt.main()
    else:
        sys.argv[1:] = sys.argv[1:] or ["Killed"]
        harness.main()
