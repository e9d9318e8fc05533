#!/usr/bin/python3
"""An instance that nobody needs any more, with a real clock: it says so, and ends after the minute that vtpmd(8) states. One that has
a guest, or its image, stays. It costs no processor time: nothing is polled."""
import os
import time

import harness

harness.need_root()
STATED = 60.0  # seconds
# It looks at least every 10 s, and its last save waits for a manager.
LATEST = STATED + 10 + 15 * harness.SLOW


class Orphan(harness.Case):
    def test_ends_after_its_minute(self):
        manager = harness.Manager(self).start(create=True)
        nobodys, has_guest, has_image = (harness.Instance(self, manager, name=name).start(create=True)
                                         for name in ("nobodys", "guest", "image"))
        guest = has_guest.client()
        self.addCleanup(guest.close)
        manager.process.kill()
        for vtpm in (nobodys, has_guest):
            os.unlink(vtpm.image)
        nobodys.process.wait_log(r"no manager, no guest, and at .*if it stays so for 60 s this instance ends")
        said = time.monotonic()
        status = nobodys.process.wait(LATEST)
        self.assertGreaterEqual(time.monotonic() - said, STATED - 2)
        self.assertEqual(status, 0, nobodys.process.log())
        self.assertIn("nobody needs this instance any more", nobodys.process.log())
        for vtpm in (has_guest, has_image):
            self.assertTrue(vtpm.process.running(), vtpm.process.log())
            self.assertNotIn("this instance ends", vtpm.process.log())
        self.assertEqual(len(guest.get_random()), 8)
        with has_image.client() as other:
            self.assertEqual(len(other.get_random()), 8)


if __name__ == "__main__":
    harness.main()
