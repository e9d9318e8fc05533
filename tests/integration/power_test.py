#!/usr/bin/python3
"""A guest whose passwords are right is never locked out: every end of a running TPM's power is an orderly one, whoever asks for it."""
import struct

import device_model
import harness
import tpm


class Resets(device_model.Host):
    def setUp(self):
        super().setUp()
        self.machine = self.boot()
        self.machine.guest.define_secret()

    def uses(self):
        self.assertEqual(self.machine.guest.use_secret(), 0)

    def counter_stays(self, after=0):
        self.assertEqual(self.machine.guest.startup(), 0)
        self.assertEqual(self.machine.guest.lockout_counter(), after)
        self.uses()

    def test_lockout_story(self):
        """Four resets, and a right password each time."""
        for how in ("STOP, INIT", "INIT", "STOP, INIT", "INIT"):
            with self.subTest(how=how):
                self.uses()
                self.machine.reset() if "STOP" in how else self.assertEqual(self.machine.init(), 0)
                self.counter_stays()

    def test_the_device_model_is_gone(self):
        for _ in range(3):
            self.uses()
            self.machine.vanish()
            self.machine = self.device_model()
            self.machine.reset()
            self.counter_stays()

    def test_ends_of_the_instance(self):
        for how in ("SIGTERM", "SHUTDOWN", "the device model first"):
            with self.subTest(how=how):
                self.uses()
                if how == "SHUTDOWN":
                    self.shut_down(self.machine)
                else:
                    if how != "SIGTERM":
                        self.machine.vanish()
                    self.process.terminate()
                    self.machine.vanish()
                self.start()
                self.machine = self.device_model()
                self.machine.reset()
                self.counter_stays()

    def test_a_kill_is_a_power_cut(self):
        """Which counts as one attempt, as the specification has it (Library part 1, section 19.8)."""
        self.uses()
        self.process.kill()
        self.machine.vanish()
        self.start()
        self.machine = self.device_model()
        self.machine.reset()
        self.counter_stays(after=1)

    def test_a_wrong_password_counts_all_the_same(self):
        self.assertNotEqual(self.machine.guest.use_secret(b"guess"), 0)
        self.machine.reset()
        self.counter_stays(after=1)

    def test_sleep(self):
        """S3: the guest shuts its TPM down by itself, and resumes its registers after the reset."""
        guest = self.machine.guest
        for _ in range(2):
            self.uses()
            guest.pcr_extend(12, b"\x07" * 32)
            measured = guest.pcr_read(12)
            guest.shutdown(device_model.STATE)
            self.machine.reset()
            self.assertEqual(guest.startup(device_model.STATE), 0)
            self.assertEqual(guest.pcr_read(12), measured)
            self.assertEqual(guest.lockout_counter(), 0)

    def test_shut_down_to_sleep_and_on_again(self):
        """What runs after the guest's TPM2_Shutdown undoes it: the power's end is one of ours again."""
        self.machine.guest.shutdown(device_model.STATE)
        self.uses()
        self.machine.reset()
        self.assertNotEqual(self.machine.guest.startup(device_model.STATE), 0)
        self.counter_stays()

    def test_stored_registers(self):
        """STORE_VOLATILE, then INIT: the TPM goes on from them, not shut down."""
        self.uses()
        guest = self.machine.guest
        guest.pcr_extend(12, b"\x07" * 32)
        measured = guest.pcr_read(12)
        self.machine.control.must(tpm.Control.STORE_VOLATILE)
        self.machine.reset()
        self.assertEqual(guest.pcr_read(12), measured)
        self.assertEqual(guest.lockout_counter(), 0)
        # A change that no command made passes the stored registers, too.
        self.machine.control.must(tpm.Control.STORE_VOLATILE)
        self.machine.control.must(tpm.Control.RESET_TPMESTABLISHED, b"\x03")
        self.process.kill()
        self.machine.vanish()
        self.start()
        self.machine = self.device_model()
        self.machine.reset()
        self.assertEqual(self.machine.guest.startup(), 0)  # not resumed
        self.assertNotEqual(self.machine.guest.pcr_read(12), measured)


class Sockets(harness.Case):
    def test_socket_guests(self):
        """The same over --guest=socket:, where the TPM is started for its guest."""
        manager = harness.Manager(self).start(create=True)
        instance = harness.Instance(self, manager).start(create=True)
        guest = lambda: device_model.Guest(harness.connect(instance.socket))
        with guest() as one:
            one.define_secret()
        for how in ("-i", "--stop -i", "SIGTERM"):
            with self.subTest(how=how), guest() as one:
                self.assertEqual(one.use_secret(), 0)
                if how == "SIGTERM":
                    instance.process.terminate()
                    instance.start()
                else:
                    with instance.control() as control:
                        if "stop" in how:
                            control.must(control.STOP)
                        control.must(control.INIT, struct.pack(">I", 0))
            with guest() as one:
                self.assertEqual(one.lockout_counter(), 0)


if __name__ == "__main__":
    harness.main()
