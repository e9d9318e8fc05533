#!/usr/bin/python3
"""swtpm as the hardware TPM: its PCRs change, and the manager refuses, keeps everything, and opens once they are back."""
import hashlib

import harness

DATA = 0x01500002
BOOT = {0: "11" * 32, 4: "22" * 32, 7: "33" * 32}


class PcrChange(harness.Case):
    def extend(self, *measurements):
        for pcr, digest in measurements:
            self.run_command("tpm2_pcrextend", f"{pcr}:sha256={digest}", env={"TPM2TOOLS_TCTI": self.root.tcti})

    def begin(self):
        self.root = harness.Swtpm(self).start()
        self.extend(*BOOT.items())
        self.manager = harness.Manager(self, tpm=self.root.driver, seal_pcrs="sha256:0,4,7").start(create=True)
        self.instance = harness.Instance(self, self.manager).start(create=True)
        with self.instance.client() as guest:
            guest.nv_define(DATA, 8)
            guest.nv_write(DATA, b"precious")

    def stop(self):
        self.instance.process.terminate()
        self.manager.process.terminate()

    def assert_intact(self):
        self.manager.start()
        self.instance.start()
        with self.instance.client() as guest:
            self.assertEqual(guest.nv_read(DATA), b"precious")
        self.stop()

    def images(self):
        digests = []
        for path in (self.manager.store, self.instance.image):
            with open(path, "rb") as f:
                digests.append(hashlib.sha256(f.read()).hexdigest())
        return digests

    def refused(self, *pcrs):
        process = self.manager.launch()
        self.assertEqual(process.wait(), harness.EX_DATAERR, process.log())
        for pcr in BOOT:
            named = f"{pcr}" in [w.strip(":,;()") for w in process.log().replace("sha256:", " ").split()]
            self.assertEqual(named, pcr in pcrs, f"PCR {pcr} in: {process.log()}")

    def test_changed_and_back(self):
        self.begin()
        self.stop()
        self.assert_intact()
        before = self.images()

        self.extend((7, "44" * 32))
        self.refused(7)
        self.refused(7)  # and it says the same again: nothing was made anew
        self.assertNotEqual(self.manager.launch(create=True).wait(), 0)
        self.assertEqual(self.images(), before)

        # The machine is started again, another way first, then the way it was.
        self.root.stop()
        self.root.start()
        self.extend((0, "55" * 32), (4, BOOT[4]), (7, BOOT[7]))
        self.refused(0)
        self.root.stop()
        self.root.start()
        self.refused(0, 4, 7)
        self.assertEqual(self.images(), before)
        self.extend(*BOOT.items())
        self.assert_intact()

    def test_root_of_trust_away_while_running(self):
        self.begin()
        self.root.process.kill()
        with self.instance.client() as guest:
            guest.get_random()
            self.assertEqual(guest.nv_read(DATA), b"precious")
        self.assertTrue(self.manager.process.running())
        self.instance.process.terminate()
        self.manager.process.kill()
        process = self.manager.launch()
        self.assertEqual(process.wait(), harness.EX_UNAVAILABLE, process.log())
        self.assertIn(self.root.socket, process.log())
        self.root.start()
        self.extend(*BOOT.items())
        self.assert_intact()

    def test_zero_pcrs_are_no_measurement(self):
        self.root = harness.Swtpm(self).start()
        manager = harness.Manager(self, tpm=self.root.driver, seal_pcrs="sha256:0,4,7")
        process = manager.launch(create=True)
        self.assertEqual(process.wait(), harness.EX_DATAERR, process.log())
        self.assertRegex(process.log(), "nothing was measured into sha256:0, sha256:4, sha256:7")
        self.extend(*BOOT.items())
        manager.start(create=True)


if __name__ == "__main__":
    harness.main()
