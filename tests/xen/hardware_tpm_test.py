#!/usr/bin/python3
"""The machine's own TPM, 1.2 and 2.0, as the manager's root of trust in dom0: through the registers and through the kernel.

One disk goes through three machines: it is set up, found again after a power cut, and put beside another TPM. On the registers
and on the kernel's device a guest's whole chain stands: xen-tpmfront, instance, manager, TPM. On the first of the machines the
administrator's domain manages groups and vTPMs as Xen's own script does (administrator.py).
"""
import administrator
import lab
from lab import harness

DATA = 0x01500002
TIS = ("--tpm=tis", "--tpm-locality=2")
UUIDS = {"tis": harness.new_uuid(), "device": harness.new_uuid()}  # of the guests' vTPMs, by their store


class Host:
    """A manager in dom0 with what it keeps on the disk, and a guest on one of its vTPMs."""
    ADMIN = f"--admin={administrator.UUID}"

    def __init__(self, dom0, bank, tpm_options=TIS, store="tis", options=(ADMIN,)):
        self.dom0 = dom0
        self.bank, self.tpm_options, self.store, self.options = bank, tpm_options, store, options
        self.uuid = UUIDS[store]
        self.guest = lab.Guest(dom0, f"on-{store}", vtpm=f"backend=0,uuid={self.uuid}")

    def manager(self, *options):
        return lab.Daemon(self.dom0, f"manager-{self.store}", "--mode=manager", f"--store=/mnt/{self.store}.img", *self.tpm_options,
                          f"--seal-pcrs={self.bank}:0,2,4,7", "--xen=guests", "--spawn", "--auto-create", "--state-dir=/mnt",
                          *self.options, *options)

    def boot_guest(self):
        """The TPM of the guest, that has just booted."""
        self.guest.create()
        self.guest.load_driver()
        return self.guest.tpm()

    def refusal(self, *options):
        """(exit status, log) of a manager that does not start."""
        daemon = self.manager(*options).launch()
        return daemon.wait(), daemon.log()

    def images(self):
        return self.dom0.sh(f"sha256sum /mnt/{self.store}.img /mnt/{self.uuid}.img")


class Stories:
    """Both families; VERSION and BANK are the subclass's."""

    def machine(self, hardware, disk, **options):
        machine = lab.Machine(self, hardware, disk, **options).power_on()
        machine.dom0.sh("mount -t ext4 /dev/vda /mnt")
        return machine

    def kernel_device(self, dom0):
        """/dev/tpm0; /dev/tpm1 where it was bound again, since the kernel's IMA keeps the first one's number."""
        dom0.await_("[ -c /dev/tpm0 ] || [ -c /dev/tpm1 ]")
        return dom0.sh("ls /dev/tpm[01]").strip()

    def bind_kernel_driver(self, dom0):
        dom0.sh("cat /run/tpm-device >$(cat /run/tpm-driver)/bind")

    def unbind_kernel_driver(self, dom0):
        dom0.sh("device=$(readlink -f /sys/class/tpm/tpm?/device); basename $device >/run/tpm-device; "
                "readlink -f $device/driver >/run/tpm-driver; cat /run/tpm-device >$device/driver/unbind")
        dom0.await_("[ ! -e /dev/tpm0 ] && [ ! -e /dev/tpm1 ]")

    def extend_hardware(self, dom0, pcr):
        device = dom0.tpm(self.kernel_device(dom0))
        if self.VERSION == "2.0":
            device.pcr_extend(pcr, bytes([0x44]) * 32)
        else:
            device.extend12(pcr, bytes([0x44]) * 20)

    def assert_no_guest(self, host):
        """Where the manager refused, the toolstack cannot give the guest its TPM, and says so, after twice its 10 seconds."""
        status, text = host.guest.create(ok=False)
        self.assertNotEqual(status, 0)
        self.assertIn("vtpm", text)

    def chain_on_the_kernel_device(self, kernel):
        """dom0's kernel drives the TPM's registers, and a guest stands on its device, through a restart of the manager."""
        manager = kernel.manager("--create").start()
        self.assertIn(f"TPM {self.VERSION}: device:/dev/tpm0", manager.log())
        guest = kernel.boot_guest()
        guest.nv_define(DATA, 8)
        guest.nv_write(DATA, b"by /dev/")
        guest.pcr_extend(16, bytes(32))
        extended = guest.pcr_read(16)
        manager.terminate()
        manager.start()
        self.assertEqual(guest.nv_read(DATA), b"by /dev/")
        self.assertEqual(guest.pcr_read(16), extended)
        guest.nv_write(DATA, b"the next")
        self.assertEqual(guest.nv_read(DATA), b"the next")
        kernel.guest.destroy()
        manager.terminate()

    def test_state_is_bound_to_the_machine(self):
        hardware, disk = lab.HardwareTpm(self, "hardware", self.VERSION), self.make_disk()

        # No kernel driver has ever run: the firmware's locality 0 is still active.
        machine = self.machine(hardware, disk)
        host = Host(machine.dom0, self.BANK)
        manager = host.manager("--create").start()
        self.assertIn(f"TPM {self.VERSION}: tis:0xfed40000", manager.log())
        guest = host.boot_guest()
        guest.nv_define(DATA, 8)
        guest.nv_write(DATA, b"precious")
        self.assertEqual(guest.nv_read(DATA), b"precious")
        guest.pcr_extend(16, bytes(32))
        admin = administrator.Administrator(self, machine.dom0, self.VERSION)
        admin.boot()
        admin.first_run()
        manager.terminate()
        manager.start()
        admin.after_restart()
        admin.leave()
        guest.nv_write(DATA, b"the last")
        machine.power_cut()

        # The same disk and the same TPM, with the kernel's driver bound.
        machine = self.machine(hardware, disk, kernel_options="")
        host = Host(machine.dom0, self.BANK)
        status, log = host.refusal()
        self.assertEqual(status, harness.EX_NOPERM, log)
        self.assertRegex(log, "its own driver is bound.*--tpm=device:/dev/tpm0")

        # With a TPM 1.2 without a freshness counter: it steps only one from boot to boot, and that is the other store's.
        freshness = ("--freshness=off",) if self.VERSION == "1.2" else ()
        kernel = Host(machine.dom0, self.BANK, ("--tpm=device:/dev/tpm0", *freshness), store="device", options=())
        status, log = kernel.refusal("--create", "--tpm-locality=2")
        self.assertEqual(status, harness.EX_USAGE, log)
        self.chain_on_the_kernel_device(kernel)

        self.unbind_kernel_driver(machine.dom0)
        # The guest after the reboot: what it wrote last is there, its PCRs are as after power on.
        manager, guest = host.manager().start(), host.boot_guest()
        self.assertEqual(guest.nv_read(DATA), b"the last")
        self.assertEqual(guest.pcr_read(16), bytes(32))
        host.guest.destroy()
        manager.terminate()

        # Something else was measured: refused, by both drivers, naming the PCR; no guest gets a TPM, nothing changes on the disk.
        before, kernel_before = host.images(), kernel.images()
        self.bind_kernel_driver(machine.dom0)
        self.extend_hardware(machine.dom0, 4)
        kernel.tpm_options = (f"--tpm=device:{self.kernel_device(machine.dom0)}", *freshness)
        status, log = kernel.refusal()
        self.assertEqual(status, harness.EX_DATAERR, log)
        self.assertRegex(log, rf"{self.BANK}:4\b")
        self.unbind_kernel_driver(machine.dom0)
        for options in ((), ("--create",)):
            status, log = host.refusal(*options)
            self.assertEqual(status, harness.EX_DATAERR, log)
            self.assertRegex(log, rf"{self.BANK}:4\b")
            self.assertNotRegex(log, rf"{self.BANK}:(0|2|7)\b.* now")
        self.assert_no_guest(host)
        self.assertEqual(host.images(), before)
        self.assertEqual(kernel.images(), kernel_before)
        machine.power_off()

        # The same disk beside another TPM.
        machine = self.machine(lab.HardwareTpm(self, "other", self.VERSION), disk)
        host = Host(machine.dom0, self.BANK)
        for options in ((), ("--create",)):
            status, log = host.refusal(*options)
            self.assertEqual(status, harness.EX_DATAERR, log)
            self.assertRegex(log, "another TPM|cleared")
        self.assertEqual(host.images(), before)
        machine.power_off()


class WithTpm20(Stories, lab.Case):
    VERSION, BANK = "2.0", "sha256"


class WithTpm12(Stories, lab.Case):
    VERSION, BANK = "1.2", "sha1"


if __name__ == "__main__":
    harness.main()
