#!/usr/bin/python3
"""A vTPM in a driver domain: its instance serves a guest's ring there, and reaches the manager, in dom0 with the hardware TPM,
by a ring of its own. No process maps guest memory and holds the hardware TPM.
"""
import lab
from lab import harness
import tpm

DATA = 0x01500002


class DriverDomain(lab.SharedMachineCase):
    @classmethod
    def make_machine(cls):
        return lab.Machine(cls.holder, lab.HardwareTpm(cls.holder, "hardware", "2.0"), cls.holder.make_disk()).power_on()

    @classmethod
    def prepare(cls):
        cls.dom0.sh("mount -t ext4 /dev/vda /mnt")
        cls.manager = lab.Daemon(cls.dom0, "manager", "--mode=manager", "--store=/mnt/manager.img", "--create", "--tpm=tis",
                                 "--tpm-locality=2", "--seal-pcrs=sha256:0,2,4,7", "--auto-create", "--xen=vtpms").start()

    @classmethod
    def finish(cls):
        cls.manager.terminate()

    def serve(self, driver, uuid):
        """Starts what becomes the instance in the driver domain when the toolstack has made the guest's device there."""
        driver.sh(f"(exec vtpmd-xen-guest {uuid} --state=/run/vtpm.img >>/run/log/instance 2>&1) </dev/null &")

    def create(self, driver, guest, uuid):
        self.serve(driver, uuid)
        try:
            guest.create()
            guest.load_driver()
        except AssertionError as e:
            raise AssertionError(f"{e}\nin the driver domain:\n{driver.run('cat /run/log/instance', ok=False)[1]}") from None

    def test_driver_domain(self):
        uuid = harness.new_uuid()
        driver = self.guest("vtpmdom", vtpm=f"backend=0,uuid={uuid}")
        driver.create()
        maker = lab.Daemon(driver, "maker", "--mode=instance", f"--uuid={uuid}", "--manager=xen", "--state=/run/vtpm.img",
                           "--create", "--guest=socket:unix:/run/maker.sock").start()
        maker.terminate()

        guest = self.guest("guest", vtpm=f"backend=vtpmdom,uuid={uuid}")
        self.create(driver, guest, uuid)
        device = guest.tpm()
        device.pcr_extend(16, bytes(32))
        self.assertEqual(device.pcr_read(16), tpm.extended(bytes(32), bytes(32)))
        device.nv_define(DATA, 8)
        device.nv_write(DATA, b"overring")
        self.assertEqual(device.nv_read(DATA), b"overring")

        # The driver domain clears away what is its own, and the toolstack does not wait for it in vain.
        domid = guest.domid()
        guest.destroy()  # libxl waits 10 s for a back end that stays, and then says an error
        self.assertEqual(self.dom0.run(f"xenstore ls -f | grep -E 'vtpm/{domid}(/| )'", ok=False)[1], "")

        # The guest's next domain: switched off and on.
        self.create(driver, guest, uuid)
        self.assertEqual(guest.tpm().pcr_read(16), bytes(32))
        self.assertEqual(guest.tpm().nv_read(DATA), b"overring")


if __name__ == "__main__":
    harness.main()
