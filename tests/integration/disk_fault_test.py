#!/usr/bin/python3
"""ENOSPC and EIO under the running product: a clear error, a TPM failure for the guest, nothing lost, service goes on."""
import errno
import os

import faultfs
import harness
import tpm
from store_case import Stored

harness.need_root()
harness.private_mounts()
COUNTER, DATA = 0x01500001, 0x01500002


class DiskFault(harness.Case):
    def setUp(self):
        super().setUp()
        self.fs = faultfs.FaultFs(self)

    def begin(self, manager_dir=None, instance_dir=None):
        self.manager = harness.Manager(self, dir=manager_dir).start(create=True)
        self.instance = harness.Instance(self, self.manager, dir=instance_dir).start(create=True)
        self.guest = self.instance.client()
        self.addCleanup(self.guest.close)
        self.guest.nv_define_counter(COUNTER)
        self.guest.nv_define(DATA, 8)
        self.guest.nv_increment(COUNTER)
        self.guest.nv_write(DATA, b"before..")
        self.count = self.guest.nv_count(COUNTER)

    def refused(self, culprit, log_pattern):
        """While the fault lasts: failures for the guest, each answered, and a line in the log."""
        for _ in range(3):
            with self.assertRaises(tpm.TpmError):
                self.guest.nv_write(DATA, b"during..")
            self.guest.command(tpm.TPM_ST_NO_SESSIONS, 0x17B, b"\0\x08")  # answered, this way or that
        self.assertGreater(self.fs.hits, 0, "the fault never happened")
        culprit.process.wait_log(log_pattern)
        for p in (self.manager.process, self.instance.process):
            self.assertTrue(p.running(), f"{p.name} ended")

    def recovered(self):
        """Afterwards: service goes on, and a restart finds what was acknowledged."""
        harness.wait_until(self.read_works, "reads work again")
        self.assertIn(self.guest.nv_read(DATA), (b"before..", b"during.."))
        harness.wait_until(self.write_works, "writes work again")
        self.guest.nv_increment(COUNTER)
        self.assertEqual(self.guest.nv_count(COUNTER), self.count + 1)
        self.restart()
        self.assertEqual(self.guest.nv_read(DATA), b"after...")
        self.assertEqual(self.guest.nv_count(COUNTER), self.count + 1)

    def read_works(self):
        try:
            return self.guest.nv_read(DATA)
        except tpm.TpmError:
            return None

    def write_works(self):
        try:
            self.guest.nv_write(DATA, b"after...")
            return True
        except tpm.TpmError:
            return False

    def restart(self, kill=False):
        self.guest.close()
        for p in (self.instance, self.manager):
            p.process.kill() if kill else p.process.terminate()
        self.manager.start()
        self.instance.start()
        self.guest = self.instance.client()
        self.addCleanup(self.guest.close)

    def test_instance_write_eio(self):
        self.begin(instance_dir=self.fs.dir)
        self.fs.fail("write", "*", errno.EIO)
        self.refused(self.instance, r"Input/output error")
        self.fs.heal()
        self.recovered()

    def test_instance_fsync_eio(self):
        self.begin(instance_dir=self.fs.dir)
        self.fs.fail("fsync", "*", errno.EIO)
        self.refused(self.instance, r"Input/output error")
        self.fs.heal()
        self.recovered()

    def test_instance_no_space(self):
        self.begin(instance_dir=self.fs.dir)
        self.fs.fail("write", "*", errno.ENOSPC)
        self.refused(self.instance, r"No space left on device")
        self.fs.heal()
        self.recovered()

    def test_instance_grows_into_a_full_disk(self):
        self.begin(instance_dir=self.fs.dir)
        self.fs.capacity = self.fs.used()
        index, written = 0x01510000, []
        # The TPM's own NV may be full before the disk is: then there is nothing to see here, and the test must say so.
        try:
            for n in range(64):
                self.guest.nv_define(index + n, 256)
                self.guest.nv_write(index + n, bytes([n]) * 256)
                written.append(n)
        except tpm.TpmError:
            pass
        self.guest.command(tpm.TPM_ST_NO_SESSIONS, 0x17B, b"\0\x08")
        self.fs.capacity = 1 << 30
        self.restart()
        for n in written:
            self.assertEqual(self.guest.nv_read(index + n, 256), bytes([n]) * 256)
        self.assertEqual(self.guest.nv_read(DATA), b"before..")

    def test_manager_write_eio(self):
        self.begin(manager_dir=self.fs.dir)
        self.fs.fail("write", "manager.img", errno.EIO)
        self.refused(self.manager, r"Input/output error")
        self.fs.heal()
        self.recovered()

    def test_manager_fsync_eio(self):
        self.begin(manager_dir=self.fs.dir)
        self.fs.fail("fsync", "manager.img", errno.EIO)
        self.refused(self.manager, r"Input/output error")
        self.fs.heal()
        self.recovered()

    def test_manager_no_space(self):
        self.begin(manager_dir=self.fs.dir)
        self.fs.fail("write", "manager.img", errno.ENOSPC)
        self.refused(self.manager, r"No space left on device")
        self.fs.heal()
        self.recovered()

    def test_killed_while_both_disks_fail(self):
        self.begin(manager_dir=self.fs.dir, instance_dir=self.fs.dir)
        self.fs.fail("write", "*", errno.EIO)
        with self.assertRaises(tpm.TpmError):
            self.guest.nv_write(DATA, b"during..")
        for p in (self.instance.process, self.manager.process):
            p.kill()
        # What cannot be read is an error that says so; it is never taken for no state.
        self.fs.heal()
        self.fs.fail("read", "*", errno.EIO)
        self.assertEqual(self.manager.launch().wait(), harness.EX_IOERR)
        self.assertIn("Input/output error", self.manager.process.log())
        self.fs.heal()
        self.manager.start()
        self.fs.fail("read", self.instance.name + "*", errno.EIO)
        self.assertEqual(self.instance.launch(create=True).wait(), harness.EX_IOERR)
        self.assertIn("Input/output error", self.instance.process.log())
        self.fs.heal()
        self.instance.start()
        with self.instance.client() as guest:
            self.assertIn(guest.nv_read(DATA), (b"before..", b"during.."))
            self.assertEqual(guest.nv_count(COUNTER), self.count)

    def test_creation_on_a_full_disk(self):
        self.fs.capacity = 0
        manager = harness.Manager(self, dir=self.fs.dir)
        self.assertEqual(manager.launch(create=True).wait(), harness.EX_CANTCREAT)
        self.assertIn("No space left on device", manager.process.log())
        self.fs.capacity = 1 << 30
        manager.start(create=True)
        self.fs.capacity = self.fs.used()
        instance = harness.Instance(self, manager, dir=self.fs.dir)
        self.assertEqual(instance.launch(create=True).wait(), harness.EX_CANTCREAT)
        self.assertIn("No space left on device", instance.process.log())
        self.fs.capacity = 1 << 30
        instance.start(create=True)
        with instance.client() as guest:
            guest.nv_define(DATA, 8)


class Unhealthy(Stored):
    """A store that takes no writes does not look alive."""

    def healthy(self):
        """Whether a vTPM can be made; the status and the figures have to say the same."""
        made = self.call("POST", "/v1/vtpms", {})[0] == 201
        trouble = self.must("GET", "/v1/host")["trouble"]
        figures = self.must("GET", "/metrics").decode().splitlines()
        self.assertEqual((trouble == "", f"vtpmd_store_writable {int(made)}" in figures), (made, True), trouble)
        return made

    def test_shown(self):
        fs = faultfs.FaultFs(self)
        self.manager.store = os.path.join(fs.dir, "manager.img")
        self.manager.start(create=True)
        self.assertTrue(self.healthy())
        for what in ("write", "fsync"):
            fs.fail(what, "manager.img", errno.EIO)
            self.assertFalse(self.healthy())
            fs.heal()
            harness.wait_until(self.healthy, "it takes writes again")
        self.restart()
        self.assertTrue(self.healthy())


if __name__ == "__main__":
    harness.main()
