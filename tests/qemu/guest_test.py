#!/usr/bin/python3
"""Linux in QEMU on a vtpmd vTPM: firmware measures, the kernel finds the TPM, tools work, reboot and power-off keep what a
TPM keeps and reset what it resets."""
import machine  # first: it knows where the others are
import harness
import tpm

# PCR 12 is nobody else's here: 10 is the kernel's (IMA).
DATA, DATA12 = 0x01500002, 0x00011001
ZERO = bytes(32)


class Guest(machine.Case):
    def begin(self, version="2.0"):
        self.manager = harness.Manager(self).start(create=True)
        self.vtpm = machine.Vtpm(self, self.manager, version=version).start(create=True)

    def measured(self, guest):
        """PCRs 0 to 7 as the firmware left them; a separator at least is in each."""
        client = guest.tpm()
        values = [client.pcr_read(n) for n in range(8)]
        for number, value in enumerate(values):
            self.assertNotEqual(value, ZERO, f"PCR {number}")
        return values

    def test_tpm20_crb(self):
        self.begin()
        box = machine.Machine(self, self.vtpm, "crb").power_on()
        guest = box.guest
        self.assertEqual(guest.sh("cat /sys/class/tpm/tpm0/tpm_version_major").strip(), "2")
        measured = self.measured(guest)
        self.assertIn("0x", guest.sh("tpm2_pcrread sha256:0,1,2,3,4,5,6,7"))
        self.assertEqual(len(guest.sh("tpm2_getrandom --hex 16").strip()), 32)
        self.assertGreater(int(guest.sh("wc -c </sys/kernel/security/tpm0/binary_bios_measurements")), 100)
        client = guest.tpm()
        client.nv_define(DATA, 8)
        client.nv_write(DATA, b"kept....")
        guest.sh("tpm2_pcrextend 12:sha256=" + "ab" * 32)
        self.assertEqual(client.pcr_read(12), tpm.extended(ZERO, b"\xab" * 32))
        box.reboot()
        self.assertEqual(client.pcr_read(12), ZERO)
        self.assertEqual(self.measured(guest), measured)
        self.assertEqual(client.nv_read(DATA), b"kept....")
        client.nv_write(DATA, b"later...")
        box.power_off()
        self.assertEqual(self.vtpm.process.wait(), 0)
        self.vtpm.start()
        box.power_on()
        client = box.guest.tpm()
        self.assertEqual(client.nv_read(DATA), b"later...")
        self.assertEqual(client.pcr_read(12), ZERO)
        self.assertEqual(self.measured(box.guest), measured)

    def test_tpm20_tis_and_a_device_model_that_dies(self):
        self.begin()
        box = machine.Machine(self, self.vtpm, "tis").power_on()
        self.assertEqual(box.guest.sh("cat /sys/class/tpm/tpm0/tpm_version_major").strip(), "2")
        measured = self.measured(box.guest)
        client = box.guest.tpm()
        client.nv_define(DATA, 8)
        client.nv_write(DATA, b"kept....")
        client.pcr_extend(12, b"\x01" * 32)
        box.qemu.kill()
        self.vtpm.process.wait_log("the device model is gone")
        box.power_on()  # to the instance that is there
        client = box.guest.tpm()
        self.assertEqual(client.nv_read(DATA), b"kept....")
        self.assertEqual(client.pcr_read(12), ZERO)
        self.assertEqual(self.measured(box.guest), measured)

    def test_snapshots(self):
        """loadvm puts the TPM back to what it was only where the operator says so."""
        self.begin()
        disk = self.path("snapshots.qcow2")
        machine.make_qcow2(disk)
        drive = ["-drive", f"if=none,id=snapshots,format=qcow2,file={disk}"]
        box = machine.Machine(self, self.vtpm, "crb", options=drive).power_on()
        client = box.guest.tpm()
        client.nv_define(DATA, 8)
        client.nv_write(DATA, b"first...")
        client.pcr_extend(12, b"\x01" * 32)
        self.assertEqual(box.qmp("human-monitor-command", **{"command-line": "savevm s1"}), "")
        client.nv_write(DATA, b"later...")
        client.pcr_extend(12, b"\x02" * 32)
        self.assertNotEqual(box.qmp("human-monitor-command", **{"command-line": "loadvm s1"}), "")
        self.assertIn("a state from outside was refused", self.vtpm.process.log())
        box.qemu.kill()
        self.vtpm.process.wait_log("the device model is gone")
        self.vtpm.process.terminate()
        self.vtpm.process.wait()
        beside = self.path("beside")
        self.vtpm.options = ["--rollback=allow", "--startup=wait", f"--guest=socket:unix:{beside}"]
        self.vtpm.start()
        with tpm.Control(harness.connect(beside + ".ctrl")) as control, tpm.Client(harness.connect(beside)) as guest:
            control.must(control.INIT, bytes(4))
            guest.must("TPM2_Startup", tpm.TPM_ST_NO_SESSIONS, 0x144, bytes(2))
            self.assertEqual(guest.nv_read(DATA), b"later...")  # nothing was put back
            control.must(control.STOP)
        box.options = [*drive, "-loadvm", "s1"]
        box.launch()
        box.attach()
        client = box.guest.tpm()
        self.assertEqual(client.nv_read(DATA), b"first...")
        self.assertEqual(client.pcr_read(12), tpm.extended(ZERO, b"\x01" * 32))
        self.assertIn("replaced from outside (--rollback=allow)", self.vtpm.process.log())

    def test_tpm12_tis(self):
        self.begin("1.2")
        box = machine.Machine(self, self.vtpm, "tis").power_on()
        guest = box.guest
        self.assertEqual(guest.sh("cat /sys/class/tpm/tpm0/tpm_version_major").strip(), "1")
        client = guest.tpm()
        measured = [client.pcr_read12(n) for n in range(8)]
        for number, value in enumerate(measured):
            self.assertNotEqual(value, bytes(20), f"PCR {number}")
        self.assertEqual(len(client.get_random12(16)), 16)
        client.nv_define12(DATA12, 8)
        client.nv_write12(DATA12, b"kept....")
        client.extend12(12, b"\x01" * 20)
        self.assertNotEqual(client.pcr_read12(12), bytes(20))
        box.reboot()
        self.assertEqual(client.pcr_read12(12), bytes(20))
        self.assertEqual([client.pcr_read12(n) for n in range(8)], measured)
        self.assertEqual(client.nv_read12(DATA12, 8), b"kept....")
        client.nv_write12(DATA12, b"later...")
        client.extend12(12, b"\x01" * 20)
        box.power_off()
        self.assertEqual(self.vtpm.process.wait(), 0)
        self.vtpm.start()
        client = box.power_on().guest.tpm()
        self.assertEqual(client.nv_read12(DATA12, 8), b"later...")
        self.assertEqual(client.pcr_read12(12), bytes(20))
        self.assertEqual([client.pcr_read12(n) for n in range(8)], measured)


if __name__ == "__main__":
    harness.main()
