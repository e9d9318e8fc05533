#!/usr/bin/python3
"""Old copies put back, and bytes flipped: refused with the reason, and never answered with a fresh TPM."""
import os
import random
import shutil

import harness

COUNTER, DATA = 0x01500001, 0x01500002
FLIPS = int(os.environ.get("VTPMD_FLIPS", "40"))


class Rollback(harness.Case):
    def begin(self, freshness="window:900"):
        self.manager = harness.Manager(self, options=["--auto-create", f"--freshness={freshness}"]).start(create=True)
        self.instance = harness.Instance(self, self.manager).start(create=True)
        with self.instance.client() as guest:
            guest.nv_define_counter(COUNTER)
            guest.nv_define(DATA, 8)
            guest.nv_increment(COUNTER)
            self.count = guest.nv_count(COUNTER)

    def stop(self):
        self.instance.process.terminate()
        self.manager.process.terminate()

    def write(self, data):
        with self.instance.client() as guest:
            guest.nv_write(DATA, data)

    def assert_intact(self, data):
        with self.instance.client() as guest:
            self.assertEqual(guest.nv_count(COUNTER), self.count)
            self.assertEqual(guest.nv_read(DATA), data)

    def keep(self, image, name):
        shutil.copyfile(image, self.path(name))

    def put_back(self, name, image):
        shutil.copyfile(self.path(name), image)

    def refused(self, who, *words, create=False):
        """Ends with EX_DATAERR and one error line that has the words."""
        process = who.launch(create=create)
        self.assertEqual(process.wait(), harness.EX_DATAERR, process.log())
        for word in words:
            self.assertRegex(process.log().lower(), word)

    def test_old_manager_image_after_clean_stop(self):
        self.begin()
        self.write(b"first...")
        self.stop()
        self.keep(self.manager.store, "old")
        self.manager.start()
        self.instance.start()
        self.write(b"second..")
        self.stop()
        self.keep(self.manager.store, "new")
        self.put_back("old", self.manager.store)
        self.refused(self.manager, "counter")
        # Asking for a new one does not help either: there is one.
        process = self.manager.launch(create=True)
        self.assertNotEqual(process.wait(), 0)
        self.put_back("new", self.manager.store)
        self.manager.start()
        self.instance.start()
        self.assert_intact(b"second..")

    def test_old_manager_image_after_a_crash_under_strict(self):
        self.begin(freshness="strict")
        self.write(b"first...")
        self.keep(self.manager.store, "old")
        self.write(b"second..")
        self.write(b"third...")
        self.manager.process.kill()
        self.instance.process.kill()
        self.keep(self.manager.store, "new")
        self.put_back("old", self.manager.store)
        self.refused(self.manager, "counter")
        self.put_back("new", self.manager.store)
        self.manager.start()
        self.instance.start()
        self.assert_intact(b"third...")

    def test_old_instance_image(self):
        self.begin()
        self.write(b"first...")
        self.instance.process.terminate()
        self.keep(self.instance.image, "old")
        for steps in (1, 2, 3):
            self.instance.start()
            for n in range(steps):
                self.write(b"%08d" % (steps * 10 + n))
            last = b"%08d" % (steps * 10 + steps - 1)
            self.instance.process.terminate()
            self.keep(self.instance.image, "new")
            self.put_back("old", self.instance.image)
            # --create must not turn an old state into a fresh TPM.
            for create in (False, True):
                self.refused(self.instance, "slot|sequence|hash", create=create)
            self.put_back("new", self.instance.image)
            self.instance.start()
            self.assert_intact(last)
            self.instance.process.terminate()
            self.keep(self.instance.image, "old")

    def test_instance_image_gone(self):
        self.begin()
        self.write(b"first...")
        self.instance.process.terminate()
        os.rename(self.instance.image, self.path("aside"))
        for create in (False, True):
            process = self.instance.launch(create=create)
            self.assertNotEqual(process.wait(), 0, "a fresh TPM for a vTPM that had state")
            self.assertIn(self.instance.image, process.log())
            if os.path.exists(self.instance.image):
                os.unlink(self.instance.image)
        os.rename(self.path("aside"), self.instance.image)
        self.instance.start()
        self.assert_intact(b"first...")

    def test_image_of_another_vtpm(self):
        self.begin()
        self.write(b"first...")
        other = harness.Instance(self, self.manager).start(create=True)
        other.process.terminate()
        self.instance.process.terminate()
        self.keep(self.instance.image, "mine")
        self.put_back("mine", other.image)
        self.refused(other, self.instance.uuid, other.uuid)
        self.instance.version = "1.2"
        self.refused(self.instance, r"1\.2", r"2\.0")
        self.instance.version = "2.0"
        self.instance.start()
        self.assert_intact(b"first...")

    def test_another_hardware_tpm(self):
        self.begin()
        self.write(b"first...")
        self.stop()
        right = self.manager.tpm
        other = harness.Manager(self, name="other").start(create=True)
        other.process.terminate()
        self.manager.tpm = other.tpm
        self.refused(self.manager, "tpm")
        self.manager.tpm = right
        self.manager.start()
        self.instance.start()
        self.assert_intact(b"first...")

    def offsets(self, image):
        """Positions all over, most of them where something is written."""
        with open(image, "rb") as f:
            data = f.read()
        written = [i for i in range(0, len(data), 7) if data[i]] or [0]
        some = {0, 4, 8, 16, len(data) - 1} | set(random.sample(written, min(len(written), FLIPS)))
        return sorted(some | {random.randrange(len(data)) for _ in range(5)})

    def flip(self, image, offset):
        with open(image, "r+b") as f:
            f.seek(offset)
            byte = f.read(1)[0]
            f.seek(offset)
            f.write(bytes([byte ^ (1 << random.randrange(8))]))

    def test_flipped_bytes_of_the_instance_image(self):
        self.begin()
        self.write(b"first...")
        self.instance.process.terminate()
        self.keep(self.instance.image, "good")
        detected = 0
        for offset in self.offsets(self.instance.image):
            self.put_back("good", self.instance.image)
            self.flip(self.instance.image, offset)
            process = self.instance.launch()
            harness.wait_until(lambda: not process.running() or "VTPM attached" in process.log(), "an outcome")
            if process.running():
                self.assert_intact(b"first...")  # the flip was in what is not used now
                process.terminate()
                self.keep(self.instance.image, "good")  # a start may have saved: this is the state to go on from
            else:
                self.assertEqual(process.wait(), harness.EX_DATAERR, f"offset {offset}: {process.log()}")
                detected += 1
        self.assertGreater(detected, FLIPS // 4)
        self.put_back("good", self.instance.image)
        self.instance.start()
        self.assert_intact(b"first...")

    def test_flipped_bytes_of_the_manager_image(self):
        self.begin(freshness="off")
        self.write(b"first...")
        self.stop()
        self.keep(self.manager.store, "good")
        self.keep(self.instance.image, "good instance")
        detected = 0
        for offset in self.offsets(self.manager.store):
            self.put_back("good", self.manager.store)
            self.put_back("good instance", self.instance.image)
            self.flip(self.manager.store, offset)
            process = self.manager.launch()
            harness.wait_until(lambda: not process.running() or "Waiting for commands" in process.log(), "an outcome")
            if process.running():
                self.instance.start()
                self.assert_intact(b"first...")
                self.instance.process.kill()
                process.kill()
            else:
                self.assertEqual(process.wait(), harness.EX_DATAERR, f"offset {offset}: {process.log()}")
                self.assertIn(self.manager.store, process.log())
                detected += 1
        self.assertGreater(detected, FLIPS // 4)
        self.put_back("good", self.manager.store)
        self.put_back("good instance", self.instance.image)
        self.manager.start()
        self.instance.start()
        self.assert_intact(b"first...")


if __name__ == "__main__":
    harness.main()
