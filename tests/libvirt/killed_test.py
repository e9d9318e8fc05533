#!/usr/bin/python3
"""A test of libvirt that is killed, as Meson does with one that takes too long, leaves no QEMU, no libvirtd and no TPM."""
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
        def look(pids):
            with open(f"/proc/{pids[0]}/comm") as f:
                self.assertTrue(f.read().startswith("qemu-system"))
        control_group.killed_leaves_nothing(self, __file__, libvirt.PATIENCE, libvirt.PATIENCE, look)


if __name__ == "__main__":
    if "the killed one" in sys.argv:
        sys.argv[1:] = ["TheKilledOne"]
        libvirt.main()
    else:
        sys.argv[1:] = sys.argv[1:] or ["Killed"]
        harness.main()
