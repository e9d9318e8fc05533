#!/usr/bin/python3
"""Domains of libvirt whose TPM is an instance: everything that an operator does with them by virsh."""
import os
import struct

import libvirt
import harness
import tpm

harness.need_root()
harness.private_mounts()
DATA = 0x01500002
DATA12 = 0x00010002
LOCKED = 0x01500003
PASSWORD = b"right"
PROTECTED = 1 << 2 | 1 << 18  # TPMA_NV AUTHWRITE, AUTHREAD; without NO_DA: wrong passwords count
TOOLS = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "tools")


class External(harness.Case):
    """<backend type='external'>: the instance is its operator's, libvirt connects to it."""
    VERSION, MODEL, ZERO = "2.0", "tpm-crb", bytes(32)

    def setUp(self):
        super().setUp()
        self.manager = harness.Manager(self).start(create=True)
        self.vtpm = harness.Instance(self, self.manager, name="vtpm", version=self.VERSION,
                                     options=[f"--guest=qemu:{self.path('q')}"])
        self.vtpm.start(create=True)
        self.libvirt = libvirt.Libvirt(self)
        self.domain = libvirt.Domain(self.libvirt, "guest", libvirt.external(self.path("q")), self.MODEL).define()
        self.addCleanup(self.domain.gone)

    def off(self, command, *words):
        """A command that ends the machine in order; its TPM's instance ends with it, and is started again as a service is."""
        self.domain.virsh(command, *words)
        self.assertEqual(self.domain.state(), "shut off")
        self.assertEqual(self.vtpm.process.wait(), 0)
        self.vtpm.start()

    def guest(self):
        return self.vtpm.client()

    def write(self, value, define=False):
        with self.guest() as guest:
            if define:
                guest.nv_define(DATA, 8)
            guest.nv_write(DATA, struct.pack(">Q", value))

    def read(self):
        with self.guest() as guest:
            return struct.unpack(">Q", guest.nv_read(DATA))[0]

    def pcr(self, number):
        with self.guest() as guest:
            return guest.pcr_read(number)

    def measured(self):
        """What the firmware measured: in each of its PCRs there is something."""
        values = [self.pcr(n) for n in range(8)]
        self.assertNotIn(self.ZERO, values)
        return values

    def extend(self, value):
        with self.guest() as guest:
            guest.pcr_extend(16, value * 32)
        return self.pcr(16)

    def off_already(self):
        """The instance may have ended with a QEMU that libvirt gave up."""
        if not self.vtpm.process.running():
            self.vtpm.start()

    def saved_and_restored(self, measured):
        """Where 1 was written: once, and the same state not again after it has gone on to 2."""
        saved, domain = self.path("saved"), self.domain
        with self.subTest("save and restore"):
            registers, boots = self.extend(b"\x16"), domain.boots()
            self.off("save", saved)
            self.libvirt.virsh("restore", saved)
            self.assertEqual((domain.state(), domain.boots()), ("running", boots))
            self.assertEqual((self.read(), self.pcr(16), self.measured()), (1, registers, measured))
            self.write(2)
        with self.subTest("the same state once more, after it has gone on"):
            self.off("destroy")
            status, said = self.libvirt.virsh("restore", saved, ok=False)
            self.assertNotEqual(status, 0, said)
            self.off_already()


class ExternalTpm(External):
    def test_its_life(self):
        """define, start, reset, save, restore, managedsave, destroy, QEMU killed, libvirtd restarted, undefine."""
        domain = self.domain
        domain.boot("start")
        measured = self.measured()
        self.write(1, define=True)
        with self.subTest("reset"):
            self.extend(b"\x15")
            domain.boot("reset")
            self.assertEqual((self.read(), self.pcr(16), self.measured()), (1, self.ZERO, measured))
        self.saved_and_restored(measured)
        domain.boot("start")
        self.assertEqual((self.read(), self.pcr(16)), (2, self.ZERO))
        with self.subTest("managedsave"):
            registers = self.extend(b"\x17")
            self.off("managedsave")
            domain.virsh("start")
            self.assertEqual((self.read(), self.pcr(16), self.measured()), (2, registers, measured))
        with self.subTest("managedsave is given up, and the domain starts anew"):
            self.write(3)
            self.extend(b"\x18")
            self.off("managedsave")
            domain.virsh("managedsave-remove")
            domain.boot("start")
            self.assertEqual((self.read(), self.pcr(16), self.measured()), (3, self.ZERO, measured))
        with self.subTest("destroy"):
            self.write(4)
            self.off("destroy")
            domain.boot("start")
            self.assertEqual(self.read(), 4)
        with self.subTest("QEMU is killed"):
            self.write(5)
            self.extend(b"\x19")
            domain.kill()
            domain.boot("start")
            self.assertEqual((self.read(), self.pcr(16), self.measured()), (5, self.ZERO, measured))
        with self.subTest("libvirtd is restarted"):
            self.libvirt.restart()
            self.assertEqual(domain.state(), "running")
            self.write(6)
        with self.subTest("undefine"):
            self.off("destroy")
            domain.virsh("undefine")
            self.assertNotEqual(domain.virsh("domstate", ok=False)[0], 0)
            domain.define().boot("start")
            self.assertEqual(self.read(), 6)

    def unlock(self):
        """Who has the right password gets what it protects, and nothing was counted."""
        with self.guest() as guest:
            self.assertEqual(tpm.again(guest.nv_read, LOCKED, password=PASSWORD), b"a secret")
            self.assertEqual(guest.lockout_counter(), 0)

    def test_three_resets_and_a_right_password(self):
        """A machine that is reset, or whose QEMU is killed, has not guessed at a password: its owner is not locked out."""
        domain = self.domain
        domain.boot("start")
        with self.guest() as guest:
            guest.nv_define(LOCKED, 8, PROTECTED, PASSWORD)
            tpm.again(guest.nv_write, LOCKED, b"a secret", password=PASSWORD)
        for i in range(4):
            with self.subTest(reset=i):
                self.unlock()
                domain.boot("reset")
        for i in range(3):
            with self.subTest(killed=i):
                self.unlock()
                domain.kill()
                domain.boot("start")
        self.unlock()
        # A wrong one counts, still.
        with self.guest() as guest:
            with self.assertRaises(tpm.TpmError):
                guest.nv_read(LOCKED, password=b"wrong")
            self.assertEqual(guest.lockout_counter(), 1)


class ExternalTis(External):
    """The same by the other model of a TPM that QEMU has, the one that a TPM 1.2 can be."""
    MODEL = "tpm-tis"

    def test_its_life(self):
        domain = self.domain
        domain.boot("start")
        measured = self.measured()
        self.write(1, define=True)
        self.extend(b"\x15")
        domain.boot("reset")
        self.assertEqual((self.read(), self.pcr(16), self.measured()), (1, self.ZERO, measured))
        self.saved_and_restored(measured)
        with self.subTest("managedsave, and its instance is killed meanwhile"):
            domain.boot("start")
            registers = self.extend(b"\x17")
            self.off("managedsave")
            self.vtpm.process.kill()
            self.vtpm.start()
            domain.virsh("start")
            self.assertEqual((self.read(), self.pcr(16), self.measured()), (2, registers, measured))
        with self.subTest("QEMU is killed"):
            self.write(3)
            self.extend(b"\x19")
            domain.kill()
            domain.boot("start")
            self.assertEqual((self.read(), self.pcr(16), self.measured()), (3, self.ZERO, measured))
        with self.subTest("destroy, undefine"):
            self.off("destroy")
            domain.virsh("undefine")
            domain.define().boot("start")
            self.assertEqual(self.read(), 3)


class ExternalTis12(ExternalTis):
    VERSION, ZERO = "1.2", bytes(20)

    def write(self, value, define=False):
        with self.guest() as guest:
            if define:
                guest.nv_define12(DATA12, 8)
            guest.nv_write12(DATA12, struct.pack(">Q", value))

    def read(self):
        with self.guest() as guest:
            return struct.unpack(">Q", guest.nv_read12(DATA12, 8))[0]

    def pcr(self, number):
        with self.guest() as guest:
            return guest.pcr_read12(number)

    def extend(self, value):
        with self.guest() as guest:
            guest.extend12(16, value * 20)
        return self.pcr(16)


class EmulatedTpm(harness.Case):
    """<backend type='emulator'>: libvirt starts and ends what it takes for swtpm, and that is an instance."""
    VERSION, MODEL, STATE, OPTIONS = "2.0", "tpm-crb", "tpm2", ["--tpm2"]

    def setUp(self):
        super().setUp()
        self.manager = harness.Manager(self).start(create=True)
        programs = self.path("bin")
        os.mkdir(programs)
        for name, tool in (("swtpm", "vtpmd-swtpm"), ("swtpm_setup", "vtpmd-swtpm-setup")):
            os.symlink(os.path.join(TOOLS, tool), os.path.join(programs, name))
        self.env = {"PATH": f"{programs}:{os.environ['PATH']}", "VTPMD": harness.VTPMD,
                    "VTPMD_MANAGER": f"unix:{self.manager.socket}"}
        self.libvirt = libvirt.Libvirt(self, self.env)
        self.domain = libvirt.Domain(self.libvirt, "guest", libvirt.emulator(self.VERSION), self.MODEL).define()
        self.addCleanup(self.domain.gone)
        self.state = f"/var/lib/libvirt/swtpm/{self.domain.uuid}/{self.STATE}"

    def instance(self):
        """The number of the process that libvirt started."""
        with open("/run/libvirt/qemu/swtpm/" + next(n for n in os.listdir("/run/libvirt/qemu/swtpm") if n.endswith(".pid"))) as f:
            pid = int(f.read())
        self.assertEqual(os.path.realpath(f"/proc/{pid}/exe"), os.path.realpath(harness.VTPMD))
        return pid

    def off(self, command, *words):
        pid = self.instance()
        self.domain.virsh(command, *words)
        self.ended(pid)

    def ended(self, pid):
        harness.wait_until(lambda: self.domain.state() == "shut off" and not os.path.exists(f"/proc/{pid}"),
                           "the domain and its TPM to end", libvirt.PATIENCE)

    def guest(self, work):
        """The TPM of a domain that is off, started by its launcher as users of swtpm do."""
        server = self.path("server")
        swtpm = self.spawn("swtpm", "swtpm", "socket", *self.OPTIONS, "--tpmstate", f"dir={self.state}", "--server",
                           f"type=unixio,path={server}", "--flags", "not-need-init,startup-clear", env=self.env)
        with tpm.Client(harness.connect(server)) as guest:
            found = work(guest)
        swtpm.terminate()
        return found

    def fill(self):
        def work(guest):
            guest.nv_define(DATA, 8)
            guest.nv_write(DATA, b"kept....")
        self.guest(work)

    def read(self):
        return self.guest(lambda guest: guest.nv_read(DATA))

    def test_its_life(self):
        """What ExternalTpm's is, as far as libvirt can do it alone: start, reset, save, restore, managedsave, destroy, a killed
        QEMU, undefine. The TPM is the same all the time."""
        domain = self.domain
        domain.boot("start")
        domain.boot("reset")
        self.off("destroy")
        self.fill()
        with self.subTest("save and restore"):
            domain.boot("start")
            boots, saved = domain.boots(), self.path("saved")
            self.off("save", saved)
            self.libvirt.virsh("restore", saved)
            self.assertEqual((domain.state(), domain.boots()), ("running", boots))
        with self.subTest("managedsave"):
            self.off("managedsave")
            domain.virsh("start")
            self.assertEqual((domain.state(), domain.boots()), ("running", boots))
            domain.boot("reset")
            self.off("destroy")
            self.assertEqual(self.read(), b"kept....")
        with self.subTest("QEMU is killed"):
            domain.boot("start")
            pid = self.instance()
            domain.kill()
            self.ended(pid)
            domain.boot("start")
            self.off("destroy")
            self.assertEqual(self.read(), b"kept....")
        with self.subTest("an older save"):
            status, said = self.libvirt.virsh("restore", saved, ok=False)
            self.assertNotEqual(status, 0, said)
            self.assertEqual(domain.state(), "shut off")
            domain.boot("start")
            self.off("destroy")
            self.assertEqual(self.read(), b"kept....")
        with self.subTest("undefined, and the TPM is kept"):
            domain.virsh("undefine", "--keep-tpm")
            domain.define().boot("start")
            self.off("destroy")
            self.assertEqual(self.read(), b"kept....")
        with self.subTest("undefined with its TPM: the next one is new"):
            domain.virsh("undefine")
            self.assertFalse(os.path.exists(self.state))
            domain.define().boot("start")
            self.off("destroy")
            with self.assertRaises(tpm.TpmError):
                self.read()


class EmulatedTpm12(EmulatedTpm):
    VERSION, MODEL, STATE, OPTIONS = "1.2", "tpm-tis", "tpm1.2", []

    def fill(self):
        def work(guest):
            guest.nv_define12(DATA12, 8)
            guest.nv_write12(DATA12, b"kept....")
        self.guest(work)

    def read(self):
        return self.guest(lambda guest: guest.nv_read12(DATA12, 8))


if __name__ == "__main__":
    libvirt.main()
