#!/usr/bin/python3
"""A test of a host that is killed, as Meson does with one that takes too long, leaves no container and no control group."""
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
        control_group.killed_leaves_nothing(self, __file__, 3 * container.PATIENCE, container.PATIENCE)


if __name__ == "__main__":
    if "the killed one" in sys.argv:
        sys.argv[1:] = ["TheKilledOne"]
        container.main()
    else:
        sys.argv[1:] = sys.argv[1:] or ["Killed"]
        harness.main()
