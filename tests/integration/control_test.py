#!/usr/bin/python3
"""swtpm's own tools on the control channel, locality, power cycle, and what the command line says of the guest's TPM."""
import hashlib
import json
import select
import struct

import harness
import tpm

DATA = 0x01500002


class Control(harness.Case):
    def begin(self, version="2.0", **kw):
        self.manager = harness.Manager(self).start(create=True)
        self.instance = harness.Instance(self, self.manager, version=version, tcp=True, **kw).start(create=True)
        return self.instance

    def ioctl(self, *args, ok=True):
        return self.run_command("swtpm_ioctl", "--unix", self.instance.socket + ".ctrl", *args, ok=ok)

    def test_swtpm_ioctl(self):
        instance = self.begin()
        _, caps = self.ioctl("-c")
        self.assertIn("ptm capability is 0x", caps)
        self.assertEqual(int(caps.split("0x")[1].split()[0], 16) & 0b1011, 0b1011)  # INIT, SHUTDOWN, SET_LOCALITY
        with instance.client() as guest:
            guest.nv_define(DATA, 8)
            guest.nv_write(DATA, b"kept....")
            guest.pcr_extend(10, b"\x01" * 32)
            self.assertNotEqual(guest.pcr_read(10), bytes(32))
        _, info = self.ioctl("--info", "1")
        json.loads(info[info.index("{"):])
        # Another locality extends what locality 0 may not.
        self.ioctl("-l", "4")
        self.ioctl("-l", "0")
        self.assertNotEqual(self.ioctl("-l", "5", ok=False)[0], 0)
        self.ioctl("-C")
        # A power cycle: PCRs at their start, NV as it was.
        self.ioctl("--stop")
        with instance.client() as guest:
            self.assertNotEqual(guest.command(tpm.TPM_ST_NO_SESSIONS, 0x17B, struct.pack(">H", 8))[0], 0)
        self.ioctl("-i")
        with instance.client() as guest:
            self.assertEqual(guest.pcr_read(10), bytes(32))
            self.assertEqual(guest.nv_read(DATA), b"kept....")
        self.run_command("swtpm_ioctl", "--tcp", f"127.0.0.1:{instance.port + 1}", "-c")
        self.ioctl("-s")
        self.assertEqual(instance.process.wait(), 0)
        instance.start()
        with instance.client() as guest:
            self.assertEqual(guest.nv_read(DATA), b"kept....")

    def test_locality_reaches_the_tpm(self):
        instance = self.begin()
        extend = struct.pack(">III", 20, 9, 0x40000009) + bytes(5) + struct.pack(">IH", 1, tpm.TPM_ALG_SHA256) + bytes(32)
        with instance.client() as guest:
            refused, _ = guest.command(tpm.TPM_ST_SESSIONS, 0x182, extend)
            self.assertEqual(refused, 0x907)  # TPM_RC_LOCALITY: PCR 20 is not locality 0's
            with instance.control() as control:
                control.must(control.SET_LOCALITY, b"\x02")
                self.assertEqual(guest.command(tpm.TPM_ST_SESSIONS, 0x182, extend)[0], 0)
                control.must(control.SET_LOCALITY, b"\x00")
            self.assertEqual(guest.command(tpm.TPM_ST_SESSIONS, 0x182, extend)[0], 0x907)

    def test_cancel_during_key_generation(self):
        """CANCEL_TPM_CMD ends a key search under way, and spoils nothing."""
        instance = self.begin()
        with instance.client() as guest, instance.control() as control:
            for attempt in range(60):  # until one is caught in the middle: a search can be short
                # TPM2_CreatePrimary: owner hierarchy, RSA-2048 signing key, `attempt` makes it another key each time.
                unique = struct.pack(">HI", 4, attempt)
                public = struct.pack(">HHIH", 0x0001, 0x000B, 0x00040072, 0) + struct.pack(">HHHI", 0x10, 0x10, 2048, 0) + unique
                body = (struct.pack(">IIIHBH", 0x40000001, 9, tpm.TPM_RS_PW, 0, 0, 0) + struct.pack(">HHH", 4, 0, 0)
                        + struct.pack(">H", len(public)) + public + bytes(2) + bytes(4))
                guest.sock.sendall(struct.pack(">HII", tpm.TPM_ST_SESSIONS, 10 + len(body), 0x131) + body)
                while not select.select([guest.sock], [], [], 0.005)[0]:
                    control.must(control.CANCEL)
                _, size, result = struct.unpack(">HII", guest.read_exactly(10))
                answer = guest.read_exactly(size - 10)
                if result == 0x909:  # TPM_RC_CANCELED
                    break
                self.assertEqual(result, 0)
                guest.must("TPM2_FlushContext", tpm.TPM_ST_NO_SESSIONS, 0x165, answer[:4])
            else:
                self.fail("no key search was ended early")
            self.assertEqual(len(guest.get_random()), 8)

    def test_buffer_size(self):
        """QEMU's tpm-crb asks for 3968 bytes and must get them; the guest's TPM tells of them."""
        instance = self.begin()
        with instance.client() as guest, instance.control() as control:
            self.assertEqual(control.call(control.SET_BUFFERSIZE, struct.pack(">I", 3968))[0], 0x0A)
            control.must(control.STOP)
            self.assertEqual(struct.unpack(">III", control.must(control.SET_BUFFERSIZE, struct.pack(">I", 3968), 12))[0], 3968)
            control.must(control.INIT, bytes(4))
            size, least, most = struct.unpack(">III", control.must(control.SET_BUFFERSIZE, bytes(4), 12))
            self.assertEqual(size, 3968)
            self.assertLessEqual(least, size)
            self.assertEqual(most, 4096)
            # TPM2_GetCapability(TPM_CAP_TPM_PROPERTIES, TPM_PT_MAX_COMMAND_SIZE, 1)
            told = guest.must("TPM2_GetCapability", tpm.TPM_ST_NO_SESSIONS, 0x17A, struct.pack(">III", 6, 0x11E, 1))
            self.assertEqual(struct.unpack(">II", told[-8:]), (0x11E, 3968))

    def test_hash_data_of_any_length(self):
        """One HASH_DATA is hashed as it comes, as by swtpm: the same PCR as in pieces, and the channel goes on."""
        instance = self.begin(options=["--startup=none"])
        data = bytes(range(256)) * 79 + b"odd"
        values = []
        for pieces in ([len(data)], [4096, 1, len(data) - 4097], [4097, len(data) - 4097], [4095, len(data) - 4095]):
            with instance.control() as control:
                control.must(control.STOP)
                control.must(control.INIT, bytes(4))
                with instance.client() as guest:
                    guest.must("TPM2_Startup", tpm.TPM_ST_NO_SESSIONS, 0x144, bytes(2))
                    control.must(6)
                    at = 0
                    for size in pieces:
                        control.must(7, struct.pack(">I", size) + data[at:at + size])
                        at += size
                    control.must(8)
                    values.append(guest.pcr_read(17))
                # Refused as a whole, and what follows is still understood.
                control.must(control.STOP)
                self.assertEqual(control.call(7, struct.pack(">I", len(data)) + data)[0], 0x0A)
                control.must(control.GET_CAPABILITY, answer=4)
        self.assertEqual(len(set(values)), 1)
        self.assertEqual(values[0], tpm.extended(bytes(32), hashlib.sha256(data).digest()))

    def test_malformed_control_commands(self):
        instance = self.begin()
        with instance.control() as control:
            self.assertEqual(control.call(0)[0], 0x0A)
            self.assertEqual(control.call(20)[0], 0x0A)
            self.assertEqual(control.call(control.SET_LOCALITY, b"\x09")[0], 0x3D)  # TPM_BAD_LOCALITY
            self.assertEqual(control.must(control.GET_CAPABILITY, answer=4) != bytes(4), True)

    def test_pcrs_from_the_host(self):
        """--hwinitpcrs: the guest finds the host's values in its PCRs before its first command."""
        for version in ("2.0", "1.2"):
            with self.subTest(version=version):
                root = harness.Swtpm(self, name=f"hw{version}").start()
                env = {"TPM2TOOLS_TCTI": root.tcti}
                self.run_command("tpm2_pcrextend", "5:sha1=" + "ab" * 20 + ",sha256=" + "cd" * 32, env=env)
                self.run_command("tpm2_pcrextend", "13:sha1=" + "ab" * 20 + ",sha256=" + "cd" * 32, env=env)
                manager = harness.Manager(self, name=f"m{version}", tpm=root.driver).start(create=True)
                banks = ["--pcr-banks=sha1,sha256"] if version == "2.0" else []
                instance = harness.Instance(self, manager, version=version,
                                            options=["--hwinitpcrs=5,12-16", *banks]).start(create=True)
                with instance.client() as guest:
                    if version == "2.0":
                        for pcr in (5, 13):
                            self.assertEqual(guest.pcr_read(pcr), hashlib.sha256(bytes(32) + b"\xcd" * 32).digest())
                            self.assertEqual(guest.pcr_read(pcr, tpm.TPM_ALG_SHA1), hashlib.sha1(bytes(20) + b"\xab" * 20).digest())
                        self.assertEqual(guest.pcr_read(6), bytes(32))
                        guest.pcr_extend(5, bytes(32))
                    else:
                        for pcr in (5, 13):
                            self.assertEqual(guest.pcr_read12(pcr), hashlib.sha1(bytes(20) + b"\xab" * 20).digest())
                        self.assertEqual(guest.pcr_read12(6), bytes(20))
                        guest.extend12(5, bytes(20))
                instance.process.terminate()
                manager.process.terminate()

    def test_startup_modes(self):
        """With save a stop and start is a suspend and resume to the guest; with clear it is a power cycle."""
        for version in ("2.0", "1.2"):
            with self.subTest(version=version):
                manager = harness.Manager(self, name=f"m{version}").start(create=True)
                instance = harness.Instance(self, manager, version=version, options=["--startup=save"]).start(create=True)
                read = lambda guest: guest.pcr_read(3) if version == "2.0" else guest.pcr_read12(3)
                with instance.client() as guest:
                    if version == "2.0":
                        guest.pcr_extend(3, b"\x07" * 32)
                    else:
                        guest.extend12(3, b"\x07" * 20)
                    kept = read(guest)
                self.assertNotEqual(kept, bytes(len(kept)))
                for _ in range(2):
                    instance.process.terminate()
                    instance.start()
                    with instance.client() as guest:
                        self.assertEqual(read(guest), kept)
                instance.process.kill()  # nothing was saved this time: a power cut, and no way to resume
                instance.start()
                with instance.client() as guest:
                    self.assertEqual(read(guest), bytes(len(kept)))
                instance.process.terminate()
                instance.options = ["--startup=clear"]
                instance.start()
                with instance.client() as guest:
                    self.assertEqual(read(guest), bytes(len(kept)))

    def test_a_start_that_the_guests_firmware_does_not_expect(self):
        manager = harness.Manager(self).start(create=True)
        for startup, told in (("clear", True), ("save", True), (None, False)):
            with self.subTest(startup=startup):
                instance = harness.Instance(self, manager, options=[f"--guest=qemu:{self.path('q.sock')}"])
                instance.options += [f"--startup={startup}"] if startup else []
                instance.start(create=True)
                self.assertEqual("a guest's firmware starts its TPM" in instance.process.log(), told)
                instance.process.terminate()

    def test_deactivated(self):
        instance = self.begin(version="1.2", options=["--startup=deactivated"])
        with instance.client() as guest:
            self.assertEqual(guest.command(0x00C1, 0x46, struct.pack(">I", 8))[0], 6)  # TPM_DEACTIVATED

    def test_maintenance_commands(self):
        """TPM 1.2's maintenance ordinals would take the endorsement key out: refused unless asked for."""
        instance = self.begin(version="1.2")
        with instance.client() as guest:
            for ordinal in (0x2C, 0x2D, 0x2E, 0x2F, 0x30):  # Create, Load, KillMaintenanceFeature, Load-, ReadManuMaintPub
                status, _ = guest.command(0x00C1, ordinal, bytes(20))
                self.assertEqual(status, 8, f"ordinal 0x{ordinal:x}")  # TPM_DISABLED_CMD
            self.assertEqual(len(guest.get_random12(16)), 16)

    def test_second_opener(self):
        """One vTPM, one instance: the second is refused, and the first does not notice."""
        instance = self.begin()
        second = harness.Instance(self, self.manager, uuid=instance.uuid, name="second")
        process = second.launch(create=True)
        self.assertEqual(process.wait(), harness.EX_TEMPFAIL, process.log())
        self.assertIn(instance.uuid, process.log())
        second.image = instance.image
        process = second.launch()
        self.assertEqual(process.wait(), harness.EX_TEMPFAIL, process.log())
        with instance.client() as guest:
            guest.nv_define(DATA, 8)
            guest.nv_write(DATA, b"mine....")
        # The lock dies with its holder.
        instance.process.kill()
        second.start()
        with second.client() as guest:
            self.assertEqual(guest.nv_read(DATA), b"mine....")

    def test_second_manager(self):
        self.begin()
        second = harness.Manager(self, name="second").start(create=True)
        second.process.terminate()
        second.store = self.manager.store
        process = second.launch()
        self.assertEqual(process.wait(), harness.EX_TEMPFAIL, process.log())
        self.assertIn(self.manager.store, process.log())
        with self.instance.client() as guest:
            guest.get_random()


if __name__ == "__main__":
    harness.main()
