#!/usr/bin/python3
"""A guest is saved and restored by its device model, as `virsh save` and `xl save` do it: the state that its TPM gave out last comes back
once; nothing older, mixed, damaged or half does, and a restore that fails leaves the TPM as it was."""
import struct

import device_model
import harness
import tpm

REFUSED = 9


class SaveRestore(device_model.Host):
    def setUp(self):
        super().setUp()
        self.machine = self.boot()
        self.machine.guest.nv_define(device_model.DATA, 8)
        self.machine.guest.nv_write(device_model.DATA, b"before..")
        self.machine.guest.pcr_extend(12, b"\x07" * 32)
        self.measured = self.machine.guest.pcr_read(12)

    def assert_goes_on(self):
        """The guest finds its TPM where it left it."""
        self.assertEqual(self.machine.guest.pcr_read(12), self.measured)
        self.assertEqual(self.machine.guest.nv_read(device_model.DATA), b"before..")

    def assert_own(self, lockout=0):
        """The TPM has its own state, and starts anew with that."""
        self.machine.reset()
        self.assertEqual(self.machine.guest.startup(), 0)
        self.assertEqual(self.machine.guest.nv_read(device_model.DATA), b"before..")
        self.assertNotEqual(self.machine.guest.pcr_read(12), self.measured)
        self.assertEqual(self.machine.guest.lockout_counter(), lockout)

    def again(self, how="SHUTDOWN"):
        """The device model goes, and another one comes."""
        if how == "SHUTDOWN":
            self.shut_down(self.machine)
            self.start()
        elif how == "gone":
            self.machine.vanish()
        elif how == "gone, then killed":  # a host that loses its power after the guest was saved
            self.machine.vanish()
            self.process.wait_log("the device model is gone")
            self.process.kill()
            self.start()
        elif how == "SIGTERM":
            self.process.terminate()
            self.machine.vanish()
            self.start()
        self.machine = self.device_model()

    def test_comes_back_once(self):
        for how in ("SHUTDOWN", "gone", "gone, then killed", "SIGTERM", "at once"):
            with self.subTest(how=how):
                blobs = self.machine.save()
                if how != "at once":
                    self.again(how)
                self.assertEqual(self.machine.restore(blobs), 0)
                self.assert_goes_on()
                # The same again: at once, and after a restart.
                self.assertEqual(self.machine.restore(blobs), REFUSED)
                self.again("SHUTDOWN")
                self.assertEqual(self.machine.restore(blobs), REFUSED)
                self.assert_own()
                self.machine.guest.pcr_extend(12, b"\x07" * 32)
                self.measured = self.machine.guest.pcr_read(12)

    def test_never_started(self):
        """Saved before the firmware has started the TPM."""
        self.machine.reset()
        blobs = self.machine.save()
        self.again()
        self.assertEqual(self.machine.restore(blobs), 0)
        self.assertEqual(self.machine.guest.startup(), 0)
        self.assertEqual(self.machine.restore(blobs), REFUSED)

    def test_saved_while_asleep(self):
        """A guest in S3 is saved: it still wakes with its registers."""
        self.machine.guest.shutdown(device_model.STATE)
        blobs = self.machine.save()
        self.again()
        self.assertEqual(self.machine.restore(blobs), 0)
        self.machine.reset()
        self.assertEqual(self.machine.guest.startup(device_model.STATE), 0)
        self.assert_goes_on()

    def test_taken_twice(self):
        """An unchanged TPM gives the same state, and it comes back once."""
        first, second = self.machine.save(), self.machine.save()
        self.assertEqual(first, second)
        self.again()
        self.assertEqual(self.machine.restore(first), 0)
        self.assertEqual(self.machine.restore(second), REFUSED)

    def test_not_restored(self):
        """A guest that starts anew instead: what was saved is shut down in order, and does not come back any more."""
        self.machine.guest.define_secret()
        self.assertEqual(self.machine.guest.use_secret(), 0)
        for how in ("SHUTDOWN", "gone", "at once"):
            with self.subTest(how=how):
                blobs = self.machine.save()
                if how != "at once":
                    self.again(how)
                self.assert_own()
                self.assertEqual(self.machine.guest.use_secret(), 0)
                self.assertEqual(self.machine.restore(blobs), REFUSED)
                self.machine.reset()
                self.machine.guest.startup()
                self.machine.guest.use_secret()

    def test_older_and_mixed(self):
        self.machine.guest.nv_write(device_model.DATA, b"older...")
        older = self.machine.save()
        self.machine.guest.nv_write(device_model.DATA, b"before..")
        self.machine.guest.pcr_extend(13, bytes(32))
        newer = self.machine.save()
        self.again()
        for blobs in (older, [newer[0], older[1], newer[2]], [older[0], newer[1], newer[2]], [newer[0], b"", newer[2]]):
            self.assertEqual(self.machine.restore(blobs), REFUSED)
        self.machine.set(newer[:1])
        self.assertEqual(self.machine.init(1), REFUSED)  # half of it
        self.assertEqual(self.machine.restore(newer), 0)  # that nobody has used
        self.assert_goes_on()

    def test_after_something_has_run(self):
        happenings = {
            "a command": lambda: self.machine.guest.get_random(),
            "a command that is refused": lambda: self.machine.guest.command(0x8001, 0x1FF),
            "HASH_START": lambda: self.machine.control.must(6),
            "RESET_TPMESTABLISHED": lambda: self.machine.control.must(tpm.Control.RESET_TPMESTABLISHED, b"\x03"),
            "STORE_VOLATILE": lambda: self.machine.control.must(tpm.Control.STORE_VOLATILE),
        }
        for name, happens in happenings.items():
            with self.subTest(name):
                blobs = self.machine.save()
                happens()
                if name == "HASH_START":
                    self.machine.control.must(8)
                self.assertEqual(self.machine.restore(blobs), REFUSED)
                self.again()
                self.assertEqual(self.machine.restore(blobs), REFUSED)
                self.machine.reset()
                self.machine.guest.startup()
        # What only looks does not count.
        blobs = self.machine.save()
        self.machine.control.must(tpm.Control.GET_TPMESTABLISHED, answer=4)
        self.machine.control.must(tpm.Control.GET_CONFIG, answer=4)
        self.machine.control.must(tpm.Control.SET_LOCALITY, b"\x00")
        self.assertEqual(self.machine.restore(blobs), 0)

    def test_broken_off(self):
        """A restore that ends half-way, or another connection's, changes nothing."""
        blobs = self.machine.save()
        self.again()
        self.assertEqual(self.machine.set(blobs[:1]), 0)
        self.again("gone")
        self.assertEqual(self.machine.restore(blobs), 0)  # which is still what was given out last
        self.assert_goes_on()
        blobs = self.machine.save()
        self.again()
        self.assertEqual(self.machine.set(blobs), 0)
        with tpm.Control(harness.connect(self.qemu)) as other:
            other.must(tpm.Control.INIT, struct.pack(">I", 0))  # with the TPM's own
        self.assertEqual(self.machine.guest.startup(), 0)
        self.assertNotEqual(self.machine.guest.pcr_read(12), self.measured)


class Snapshots(SaveRestore):
    """The same where the operator allows any state: a damaged one leaves the TPM as it was."""
    OPTIONS = ("--rollback=allow",)
    test_comes_back_once = test_taken_twice = test_not_restored = test_never_started = None
    test_older_and_mixed = test_after_something_has_run = None

    def test_damaged(self):
        blobs = self.machine.save()
        for n in (0, 1):
            damaged = list(blobs)
            damaged[n] = damaged[n][:20] + bytes([damaged[n][20] ^ 0xFF]) + damaged[n][21:-7]
            self.assertNotEqual(self.machine.restore(damaged), 0)
            self.assert_own()
        self.assertEqual(self.machine.restore(blobs), 0)
        self.assert_goes_on()
        self.assertEqual(self.machine.restore(blobs), 0)


if __name__ == "__main__":
    harness.main()
