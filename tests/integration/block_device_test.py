#!/usr/bin/python3
"""Both images on block devices (loop devices here), where there is no file system to help."""
import os

import harness

harness.need_root()
DATA = 0x01500002


class BlockDevice(harness.Case):
    def device(self, name, size):
        backing = self.path(name)
        with open(backing, "wb") as f:
            f.truncate(size)
        _, text = self.run_command("losetup", "--find", "--show", backing)
        node = text.strip()
        self.addCleanup(self.run_command, "losetup", "--detach", node, ok=False)
        return node, backing

    def test_both_images(self):
        manager = harness.Manager(self)
        manager.store, backing = self.device("manager.disk", 16 << 20)
        manager.start(create=True)
        instance = harness.Instance(self, manager)
        instance.image, _ = self.device("instance.disk", 4 << 20)
        instance.start(create=True)
        with instance.client() as guest:
            guest.nv_define(DATA, 8)
            guest.nv_write(DATA, b"on disk.")
        instance.process.kill()
        manager.process.kill()
        manager.start()
        instance.start()
        with instance.client() as guest:
            self.assertEqual(guest.nv_read(DATA), b"on disk.")
            guest.nv_write(DATA, b"on disk2")
        # A device in use is nobody else's.
        second = harness.Instance(self, manager)
        second.image = instance.image
        self.assertEqual(second.launch(create=True).wait(), harness.EX_TEMPFAIL, second.process.log())
        instance.process.terminate()
        manager.process.terminate()
        # Somebody's disk is not formatted.
        with open(backing, "rb") as f:
            before = f.read()
        manager.tpm = f"embedded:{self.path('other.tpm')}"
        os.mkdir(self.path("other.tpm"))
        self.assertNotEqual(manager.launch(create=True).wait(), 0)
        with open(backing, "rb") as f:
            self.assertEqual(f.read(), before)

    def test_too_small(self):
        manager = harness.Manager(self)
        manager.store, _ = self.device("manager.disk", 64 << 10)
        process = manager.launch(create=True)
        self.assertEqual(process.wait(), harness.EX_USAGE, process.log())
        self.assertIn(manager.store, process.log())

    def test_an_instance_fills_its_device(self):
        """A state that has outgrown its device: the guest gets an error, what it had stays."""
        manager = harness.Manager(self).start(create=True)
        instance = harness.Instance(self, manager)
        instance.image, _ = self.device("instance.disk", 4 << 20)
        instance.start(create=True)
        with instance.client() as guest:
            guest.nv_define(DATA, 8)
            guest.nv_write(DATA, b"on disk.")
        instance.process.terminate()
        tiny = harness.Instance(self, manager)
        tiny.image, _ = self.device("tiny.disk", 4 << 10)
        process = tiny.launch(create=True)
        self.assertEqual(process.wait(), harness.EX_CANTCREAT, process.log())
        self.assertIn(tiny.image, process.log())
        # The room is found again, and so is the vTPM's name: nothing of it was kept.
        tiny.image, _ = self.device("larger.disk", 4 << 20)
        tiny.start(create=True)


if __name__ == "__main__":
    harness.main()
