#!/usr/bin/python3
"""PV guests with their unmodified xen-tpmfront, on vTPMs that a manager in dom0 starts: their whole life, as an
operator and a guest see it. The manager's root of trust is the machine's TPM, through its registers.
"""
import re
import struct

import lab
from lab import harness
import tpm

DATA = 0x00011111      # an NV index of a TPM 1.2
DATA20 = 0x01500002    # and of a TPM 2.0
PORT = 2321            # where a guest has a vTPM of its own making
ZERO = bytes(20)
DIGEST = bytes(range(20))


class Host(lab.SharedMachineCase):
    """A manager in dom0, on the machine's TPM 2.0; hardware_tpm_test.py has both families."""

    @classmethod
    def make_machine(cls):
        hardware = lab.HardwareTpm(cls.holder, "hardware", "2.0")
        return lab.Machine(cls.holder, hardware, cls.holder.make_disk(megabytes=512)).power_on()

    @classmethod
    def prepare(cls):
        cls.dom0.sh("mount -t ext4 /dev/vda /mnt; mkdir -p /mnt/vtpms")
        cls.manager = lab.Daemon(cls.dom0, "manager", "--mode=manager", "--store=/mnt/manager.img", "--create", "--tpm=tis",
                                 "--tpm-locality=2", "--seal-pcrs=sha256:0,2,4,7", "--listen=unix:/run/vtpmd/manager.sock",
                                 "--state-dir=/mnt/vtpms", "--spawn", "--auto-create", "--xen=guests").start()

    @classmethod
    def finish(cls):
        cls.manager.terminate()

    def make_vtpm(self, version):
        """The UUID of a new vTPM, made before its guest is: keys of a TPM 1.2 take their time here."""
        uuid = harness.new_uuid()
        maker = lab.Daemon(self.dom0, f"maker-{uuid[:8]}", "--mode=instance", f"--uuid={uuid}", f"--tpm-version={version}",
                           "--create", "--manager=unix:/run/vtpmd/manager.sock", f"--state=/mnt/vtpms/{uuid}.img",
                           f"--guest=socket:unix:/run/{uuid}.sock").start(seconds=150 * harness.SLOW)
        maker.terminate()
        return uuid

    def guest_with(self, name, version):
        guest = self.guest(name, vtpm=f"backend=0,uuid={self.make_vtpm(version)}")
        guest.create()
        guest.load_driver()
        return guest

    def sysfs(self, guest, attribute):
        return guest.sh(f"cat /sys/class/tpm/tpm0/{attribute} 2>/dev/null || cat /sys/class/tpm/tpm0/device/{attribute}")

    def sysfs_pcr(self, guest, number):
        found = re.search(rf"^PCR-{number:02}: ([0-9A-F ]+)$", self.sysfs(guest, "pcrs"), re.M)
        self.assertIsNotNone(found)
        return bytes.fromhex(found[1])

    def assert_nothing_left(self, domid, uuid):
        left = self.dom0.run(f"xenstore ls -f | grep -E '/vtpm/{domid}(/|$| )|{uuid}|domain/{domid}/device/vtpm'", ok=False)[1]
        self.assertEqual(left, "")

    def uuid_of(self, guest):
        return guest.vtpm.split("uuid=")[1]


class Guests(Host):
    def front(self, guest, *lines):
        """What the front end of our own says to each line (tpm_front.cpp)."""
        guest.sh("cat >/run/front.in <<'END'\n" + "\n".join(lines) + "\nEND")
        return guest.sh("timeout 100 tpm_front 0 </run/front.in", seconds=110).split("\n")[:-1]

    def test_life_of_a_tpm12(self):
        guest = self.guest("one", vtpm=f"backend=0,uuid={self.make_vtpm('1.2')}")
        guest.create()
        # A front end as mini-os's, with which pv-grub measures the kernel before the guest runs.
        extends = [struct.pack(">HIII", 0x00C1, 34, 0x14, pcr) + DIGEST for pcr in (4, 5)]
        for answer in self.front(guest, *(e.hex() for e in extends)):
            self.assertEqual(bytes.fromhex(answer)[:10], struct.pack(">HII", 0x00C4, 30, 0))
        guest.load_driver()
        measured = tpm.extended(ZERO, DIGEST, "sha1")
        for pcr, value in ((4, measured), (5, measured), (6, ZERO)):
            self.assertEqual(self.sysfs_pcr(guest, pcr), value)
        # What the driver and its users read.
        self.assertIn("TCG version: 1.2", self.sysfs(guest, "caps"))
        self.assertIn("Modulus length: 256", self.sysfs(guest, "pubek"))
        for attribute in ("timeouts", "durations"):
            self.assertTrue(all(int(n) > 0 for n in self.sysfs(guest, attribute).split()[:3]), attribute)
        self.assertEqual(self.sysfs_pcr(guest, 10), ZERO)
        # What goes through /dev/tpm0.
        device = guest.tpm()
        device.extend12(10, DIGEST)
        self.assertEqual(device.pcr_read12(10), measured)
        self.assertEqual(self.sysfs_pcr(guest, 10), measured)
        self.assertNotEqual(device.get_random12(16), device.get_random12(16))
        device.nv_define12(DATA, 8)
        device.nv_write12(DATA, b"lasting!")

        # It needs no vtpm-proxy, which says so.
        status, text = guest.run("vtpm-proxy", ok=False)
        self.assertEqual(status, harness.EX_USAGE, text)
        self.assertIn("TPM 1.2", text)

        # The driver goes and comes back within the domain: nothing was switched off.
        guest.unbind_driver()
        device = guest.tpm(guest.bind_driver())
        self.assertEqual(device.pcr_read12(10), measured)
        self.assertEqual(device.nv_read12(DATA, 8), b"lasting!")

        # The guest reboots, which makes a new domain: its TPM was switched off and on.
        before = guest.domid()
        guest.sh("(sleep 1; reboot -f) >/dev/null 2>&1 &")
        self.dom0.await_(f"[ $(xl domid {guest.name}) -gt {before} ]", "a new domain")
        guest.wait_ready()
        guest.load_driver()
        for pcr in (4, 5, 10):
            self.assertEqual(self.sysfs_pcr(guest, pcr), ZERO)
        self.assertEqual(guest.tpm().nv_read12(DATA, 8), b"lasting!")

        domid = guest.domid()
        guest.destroy()
        self.assert_nothing_left(domid, self.uuid_of(guest))

    def test_two_guests(self):
        """Two at once: what each does, what happens to their manager, and what one does to its ring."""
        left, right = self.guest_with("left", "2.0"), self.guest_with("right", "2.0")
        self.each_has_its_own(left, right)
        self.manager_killed(left)
        self.hostile_front(left, right)
        # And new guests are served.
        right.destroy()
        later = self.guest_with("later", "2.0")
        self.assertEqual(len(later.tpm().get_random(16)), 16)
        self.manager_on_a_vtpm(later)

    def manager_on_a_vtpm(self, guest):
        """A manager in a guest, whose root of trust is the guest's vTPM, without the kernel's driver (--tpm=xen)."""
        manager = lab.Daemon(guest, "nested", "--mode=manager", "--store=/run/nested.img", "--tpm=xen", "--seal-pcrs=sha256:0,4,16",
                             "--allow-zero-pcrs", "--auto-create", "--listen=unix:/run/vtpmd/manager.sock", "--create")
        device = guest.tpm()
        device.pcr_extend(16, bytes([1]) * 32)
        # The kernel's driver has the ring, and keeps it.
        self.assertEqual(manager.launch().wait(), harness.EX_NOPERM)
        self.assertRegex(manager.log(), "xen:0: the kernel's driver has this device.*unbind")
        self.assertEqual(len(device.get_random(16)), 16)
        guest.unbind_driver()
        manager.start()
        self.assertIn("TPM 2.0: xen:0", manager.log())
        instance = lab.Daemon(guest, "inner", "--mode=instance", f"--uuid={harness.new_uuid()}", "--manager=unix:/run/vtpmd/manager.sock",
                              "--state=/run/inner.img", f"--guest=socket:tcp:{PORT}", "--create").start(seconds=150 * harness.SLOW)
        inner = guest.tpm(PORT)
        inner.nv_define(DATA20, 8)
        inner.nv_write(DATA20, b"upon two")
        manager.terminate()
        manager.start()  # unseals
        inner.nv_write(DATA20, b"upon 2x2")
        self.assertEqual(inner.nv_read(DATA20), b"upon 2x2")
        instance.terminate()
        manager.terminate()
        # What the guest's vTPM has measured is what the store is sealed to.
        device = guest.tpm(guest.bind_driver())
        device.pcr_extend(16, bytes([2]) * 32)
        guest.unbind_driver()
        self.assertEqual(manager.launch().wait(), harness.EX_DATAERR)
        self.assertRegex(manager.log(), r"sha256:16\b")

    def each_has_its_own(self, left, right):
        for guest, data in ((left, b"leftdata"), (right, b"rightdat")):
            device = guest.tpm()
            device.nv_define(DATA20, 8)
            device.nv_write(DATA20, data)
        for turn in range(3):
            for guest, fill in ((left, 1), (right, 2)):
                guest.tpm().pcr_extend(16, bytes([fill + turn]) * 32)
        for guest, data, fill in ((left, b"leftdata", 1), (right, b"rightdat", 2)):
            value = bytes(32)
            for turn in range(3):
                value = tpm.extended(value, bytes([fill + turn]) * 32)
            self.assertEqual(guest.tpm().pcr_read(16), value)
            self.assertEqual(guest.tpm().nv_read(DATA20), data)

    def manager_killed(self, guest):
        """The guest's TPM works on without, and is heard by the next manager."""
        device, before = guest.tpm(), guest.tpm().pcr_read(16)
        self.manager.kill()
        self.assertEqual(device.pcr_read(16), before)
        self.manager.start()
        device.nv_write(DATA20, b"afterall")
        device.pcr_extend(16, bytes(32))
        self.assertEqual(device.pcr_read(16), tpm.extended(before, bytes(32)))
        self.assertEqual(device.nv_read(DATA20), b"afterall")

    def hostile_front(self, guest, other):
        """Whatever a front end does to its ring, it hurts only itself, and is served again once it behaves."""
        guest.unbind_driver()
        good = struct.pack(">HIIH", 0x8001, 12, 0x17B, 8)  # TPM2_GetRandom
        attacks = ["raw 1 0 0", "raw 1 9 0", "raw 1 4089 0", "raw 1 4294967295 0", "raw 1 12 255", "raw 1 4096 255",
                   "raw 3 12 0", "raw 2 12 0", "raw 0 12 0", "raw 7 12 0", "raw 255 4294967295 255", "raw 1 9 0 500",
                   "race 200", "storm 100", "notify 5000", "badref 7", "badport 1000"]
        answers = self.front(guest, *(line for a in attacks for line in (a, good.hex())))
        self.assertEqual(len(answers), 2 * len(attacks))
        for attack, answer in zip(attacks, answers[1::2]):
            self.assertRegex(answer, "^8001" "00000014" "00000000" "0008" "[0-9a-f]{16}$", attack)
        self.assertEqual(len(other.tpm().get_random(8)), 8)
        lines = int(self.dom0.sh("grep -c -E 'frontend [0-9]+/0' /run/log/manager"))
        self.assertLess(lines, 150)

    def test_tpm2_tools_to_the_guest_s_end(self):
        """The driver knows no TPM 2.0, but carries its commands; timeouts are sane, so that it waits for long ones."""
        guest = self.guest_with("tools", "2.0")
        self.assertTrue(all(int(n) > 0 for n in self.sysfs(guest, "timeouts").split()[:4]))
        self.assertTrue(all(int(n) > 0 for n in self.sysfs(guest, "durations").split()[:3]))
        first, second = (guest.sh("tpm2_getrandom -T device:/dev/tpm0 --hex 16") for _ in range(2))
        self.assertRegex(first, "^[0-9a-f]{32}$")
        self.assertNotEqual(first, second)
        self.assertRegex(guest.sh("tpm2_pcrread -T device:/dev/tpm0 sha256:16"), "16: 0x0{64}")

        # Through the proxy it is a TPM 2.0 as any other, with its resource manager.
        def start_proxy(name):
            # A kernel that finds the TPM too slow gives the device up, and the tool makes another: the last one counts.
            last = f"$(sed -n \"s/.*tpmrm\\([0-9]*\\) stand for.*/\\1/p\" /run/log/{name} | tail -n 1)"
            seconds = int(30 * harness.SLOW)
            guest.sh(f"vtpm-proxy >/run/log/{name} 2>&1 & await {seconds} '[ -c /dev/tpmrm{last} ]' || "
                     f"{{ cat /run/log/{name}; dmesg | tail -n 20; false; }}", seconds=seconds + 60)
            text = guest.sh(f"cat /run/log/{name}")
            found = re.findall(r"vtpm-proxy: /dev/tpm(\d+) and /dev/tpmrm\1 stand for /dev/tpm0\n", text)
            self.assertTrue(found, text)
            return found[-1]
        self.assertNotEqual(guest.run("timeout 20 vtpm-proxy", ok=False)[0], 0)
        guest.sh("insmod /lib/modules/tpm_vtpm_proxy.ko; await 10 '[ -c /dev/vtpmx ]'")
        number = start_proxy("proxy")
        self.assertEqual(guest.sh(f"cat /sys/class/tpm/tpm{number}/tpm_version_major").strip(), "2")
        self.assertRegex(guest.sh(f"tpm2_getrandom -T device:/dev/tpmrm{number} --hex 16"), "^[0-9a-f]{32}$")
        guest.sh(f"tpm2_createprimary -T device:/dev/tpmrm{number} -G ecc -c /run/key", seconds=60 * harness.SLOW)
        guest.tpm(f"/dev/tpm{number}").pcr_extend(16, DIGEST + bytes(12))
        # The raw device has one user; a stopped proxy takes its devices along, and the TPM is as it was.
        self.assertIn("end the other", guest.run("vtpm-proxy", ok=False)[1])
        guest.sh(f"killall vtpm-proxy; await 20 '[ ! -e /dev/tpm{number} ]'")
        self.assertEqual(guest.tpm().pcr_read(16), tpm.extended(bytes(32), DIGEST + bytes(12)))
        number = start_proxy("again")
        self.assertEqual(guest.tpm(f"/dev/tpm{number}").pcr_read(16), tpm.extended(bytes(32), DIGEST + bytes(12)))
        self.destroyed_in_the_middle_of_a_command(guest, f"/dev/tpmrm{number}")

    def host_device(self, log):
        """The number of the /dev/tpmN that the kernel made last and keeps (it gives one up whose TPM it finds too slow)."""
        last = f"$(sed -n 's|.*vtpmx (/dev/tpm\\([0-9]*\\)).*|\\1|p' {log} | tail -n 1)"
        self.dom0.await_(f"[ -c /dev/tpmrm{last} ]", "the host's device")
        return int(self.dom0.sh(f"echo {last}"))

    def test_the_host_as_a_guest(self):
        """--guest=vtpmx: dom0's kernel makes a TPM device of a vTPM."""
        uuid = self.make_vtpm("2.0")
        instance = lab.Daemon(self.dom0, "host", "--mode=instance", f"--uuid={uuid}", "--manager=unix:/run/vtpmd/manager.sock",
                              f"--state=/mnt/vtpms/{uuid}.img", "--guest=vtpmx").launch()
        self.assertEqual(instance.wait(), harness.EX_UNAVAILABLE, instance.log())
        self.assertIn("modprobe tpm_vtpm_proxy", instance.log())
        self.dom0.sh("insmod /lib/modules/tpm_vtpm_proxy.ko; await 10 '[ -c /dev/vtpmx ]'")
        instance.start()
        number = self.host_device(instance.log_path)
        self.assertEqual(self.dom0.sh(f"cat /sys/class/tpm/tpm{number}/tpm_version_major").strip(), "2")
        for device in (f"/dev/tpm{number}", f"/dev/tpmrm{number}"):
            self.assertEqual(len(self.dom0.tpm(device).get_random(16)), 16)
        client = self.dom0.tpm(f"/dev/tpm{number}")
        client.pcr_extend(16, DIGEST + bytes(12))
        client.nv_define(DATA20, 8)
        client.nv_write(DATA20, b"hosted..")
        instance.terminate()
        self.dom0.await_(f"[ ! -e /dev/tpm{number} ]", "the end of the host's device")
        instance.start()
        client = self.dom0.tpm(f"/dev/tpm{self.host_device(instance.log_path)}")
        self.assertEqual(client.nv_read(DATA20), b"hosted..")
        self.assertEqual(client.pcr_read(16), bytes(32))
        instance.terminate()

    def destroyed_in_the_middle_of_a_command(self, guest, device):
        domid = guest.domid()
        # TPM2_CreatePrimary of an RSA key takes seconds here; one after the other.
        guest.sh(f"(while tpm2_createprimary -T device:{device} -G rsa -c /run/key; do :; done >/run/created 2>&1 &) >/dev/null 2>&1; "
                 "seen=false; for i in $(seq 100); do "
                 "if cat /proc/[0-9]*/comm 2>/dev/null | grep -q '^tpm2_createprim'; then seen=true; break; fi; "
                 "sleep 0.1; done; $seen || { cat /run/created; false; }")
        self.destroy_without_delay(guest)
        self.assert_nothing_left(domid, self.uuid_of(guest))
        # Its vTPM is as it was, for the next domain.
        guest.create()
        guest.load_driver()
        self.assertEqual(len(guest.tpm().get_random(16)), 16)

    def test_saved_and_restored(self):
        """PCRs come back with the guest where its operator says that it is a restore, and only then."""
        guest = self.guest_with("sleeper", "2.0")
        uuid, measured = self.uuid_of(guest), tpm.extended(bytes(32), bytes(32))
        guest.tpm().pcr_extend(16, bytes(32))
        guest.tpm().nv_define(DATA20, 8)
        guest.tpm().nv_write(DATA20, b"sleeping")
        patience = 120 * harness.SLOW

        def save_and_restore():
            before = guest.domid()
            self.dom0.sh(f"xl save {guest.name} /mnt/{guest.name}.save", seconds=patience)
            self.assert_nothing_left(before, uuid)
            return lambda: self.dom0.sh(f"xl restore /mnt/{guest.name}.save && rm /mnt/{guest.name}.save", seconds=patience)

        def device():
            guest.await_("ls /dev/tpm[0-9]*", "xen-tpmfront's device")
            return guest.tpm(guest.sh("ls /dev/tpm[0-9]*").strip())
        restore = save_and_restore()
        self.dom0.sh(f"xenstore write /local/domain/0/vtpmd/restore/{uuid} 1")
        restore()
        guest.find_console()
        self.assertEqual(device().pcr_read(16), measured)
        self.assertEqual(device().nv_read(DATA20), b"sleeping")
        # Nobody says so: it is a new domain as any other.
        save_and_restore()()
        guest.find_console()
        self.assertEqual(device().pcr_read(16), bytes(32))
        self.assertEqual(device().nv_read(DATA20), b"sleeping")

    def test_attach_list_detach(self):
        guest, uuid = self.guest("bare"), harness.new_uuid()  # --auto-create: the toolstack's UUID is enough
        guest.create()
        domid = guest.domid()
        guest.sh("insmod /lib/modules/xen_tpmfront.ko")
        self.dom0.sh(f"xl vtpm-attach {guest.name} backend=0 uuid={uuid}")
        guest.await_("[ -c /dev/tpm0 ]")
        self.assertEqual(len(guest.tpm().get_random(16)), 16)
        self.assertIn(uuid, self.dom0.sh(f"xl vtpm-list {guest.name}"))
        self.dom0.sh(f"xl vtpm-detach {guest.name} {uuid}")
        guest.await_("[ ! -e /dev/tpm0 ]")
        self.dom0.await_(f"! xenstore ls -f | grep -q 'backend/vtpm/{domid}'")
        self.assertNotIn(uuid, self.dom0.sh(f"xl vtpm-list {guest.name}"))


if __name__ == "__main__":
    harness.main()
