#!/usr/bin/python3
"""Every command of a TPM 2.0 that changes something persistent: acknowledged, then the instance is killed, and what it changed is there
after the restart. And the clock, which libtpms keeps without storing it: set or told, it does not go back further than the TPM says."""
import struct

import device_model
import harness
import tpm

OWNER, PLATFORM, LOCKOUT, ENDORSEMENT = 0x40000001, 0x4000000C, 0x4000000A, 0x4000000B
AUTH = tpm.NV_ORDINARY
INDEX = 0x01500100
KEY = 0x81000010
TPMA_NV = {"counter": 1 << 4, "bits": 2 << 4, "extend": 4 << 4, "written": 1 << 29, "writelocked": 1 << 11}
WRITEDEFINE = 1 << 13


class Persistent(harness.Case):
    def setUp(self):
        super().setUp()
        self.manager = harness.Manager(self).start(create=True)
        self.instance = harness.Instance(self, self.manager).start(create=True)
        self.open()

    def open(self):
        self.guest = device_model.Guest(harness.connect(self.instance.socket))

    def kill(self):
        self.instance.process.kill()
        self.guest.close()
        self.instance.start()
        self.open()

    def do(self, code, handles, parameters=b""):
        """With one empty password for each handle that has to be authorised: the first."""
        return self.guest._sessions(f"command {code:#x}", code, handles, parameters)

    def sized(self, data):
        return struct.pack(">H", len(data)) + data

    def public(self, index=INDEX):
        """Attributes of an index, or None."""
        status, body = self.guest.command(tpm.TPM_ST_NO_SESSIONS, 0x169, struct.pack(">I", index))
        return None if status else struct.unpack(">I", body[2 + 4 + 2:][:4])[0]

    def handles(self, first):
        body = self.guest.must("TPM2_GetCapability", tpm.TPM_ST_NO_SESSIONS, 0x17A, struct.pack(">III", 1, first, 32))
        count = struct.unpack(">I", body[5:9])[0]
        return struct.unpack(f">{count}I", body[9:9 + 4 * count])

    def banks(self):
        return self.guest.must("TPM2_GetCapability", tpm.TPM_ST_NO_SESSIONS, 0x17A, struct.pack(">III", 5, 0, 8))

    def primary(self, hierarchy=OWNER):
        """An ECC storage key: its handle, and its name's place in the answer stands for which key it is."""
        template = (struct.pack(">HHIH", 0x23, 0x0B, 0x00030072, 0) + struct.pack(">HHH", 6, 128, 0x43)
                    + struct.pack(">HHH", 0x10, 3, 0x10) + bytes(4))
        auth = struct.pack(">IHBH", tpm.TPM_RS_PW, 0, 0, 0)
        body = (struct.pack(">II", hierarchy, len(auth)) + auth + self.sized(bytes(4)) + self.sized(template) + bytes(2) + bytes(4))
        answer = self.guest.must("TPM2_CreatePrimary", tpm.TPM_ST_SESSIONS, 0x131, body)
        size = struct.unpack(">H", answer[8:10])[0]
        handle = struct.unpack(">I", answer[:4])[0]
        return handle, answer[10:10 + size]

    def flush(self, handle):
        self.guest.must("TPM2_FlushContext", tpm.TPM_ST_NO_SESSIONS, 0x165, struct.pack(">I", handle))

    def which_primary(self, hierarchy):
        handle, public = self.primary(hierarchy)
        self.flush(handle)
        return public

    def evict(self):
        handle, _ = self.primary()
        self.do(0x120, [OWNER, handle], struct.pack(">I", KEY))
        self.flush(handle)

    def define(self, extra=0, size=8):
        self.guest.nv_define(INDEX, size, AUTH | extra)

    def read(self, size=8):
        return self.guest.nv_read(INDEX, size)

    def test_every_command(self):
        """(name, what is there before it, the command, what is looked at): what is looked at changes, and is kept."""
        big = struct.pack(">H", 32) + bytes(range(32))
        rows = [
            ("NV_DefineSpace", None, lambda: self.define(), self.public),
            ("NV_UndefineSpace", self.define, lambda: self.guest.nv_undefine(INDEX), self.public),
            ("NV_Write", self.define, lambda: self.guest.nv_write(INDEX, b"written."), lambda: (self.public() or 0) & TPMA_NV["written"] and self.read()),
            ("NV_Write again", lambda: (self.define(), self.guest.nv_write(INDEX, b"written.")),
             lambda: self.guest.nv_write(INDEX, b"twice", 2), self.read),
            ("NV_Increment", lambda: (self.define(TPMA_NV["counter"]), self.guest.nv_increment(INDEX)),
             lambda: self.guest.nv_increment(INDEX), self.read),
            ("NV_SetBits", lambda: (self.define(TPMA_NV["bits"]), self.do(0x135, [INDEX, INDEX], struct.pack(">Q", 1))),
             lambda: self.do(0x135, [INDEX, INDEX], struct.pack(">Q", 1 << 40)), self.read),
            ("NV_Extend", lambda: (self.define(TPMA_NV["extend"], 32), self.do(0x136, [INDEX, INDEX], self.sized(b"a"))),
             lambda: self.do(0x136, [INDEX, INDEX], self.sized(b"b")), lambda: self.read(32)),
            ("NV_WriteLock", lambda: (self.define(WRITEDEFINE), self.guest.nv_write(INDEX, b"written.")),
             lambda: self.do(0x138, [INDEX, INDEX]), self.public),
            ("EvictControl", None, self.evict, lambda: self.handles(0x81000000)),
            ("EvictControl away", None, lambda: self.do(0x120, [OWNER, KEY], struct.pack(">I", KEY)), lambda: self.handles(0x81000000)),
            ("DictionaryAttackParameters", None, lambda: self.do(0x13A, [LOCKOUT], struct.pack(">III", 7, 77, 777)),
             lambda: [self.guest.property(p) for p in (0x20F, 0x210, 0x211)]),
            ("a wrong password", lambda: self.guest.define_secret(), lambda: self.guest.use_secret(b"guess"), self.guest_counter),
            ("DictionaryAttackLockReset", None, lambda: self.do(0x139, [LOCKOUT]), self.guest_counter),
            ("SetPrimaryPolicy", None, lambda: self.do(0x12E, [OWNER], big + struct.pack(">H", 0x0B)), self.owner_policy),
            ("SetCommandCodeAuditStatus", None, lambda: self.do(0x140, [OWNER], struct.pack(">HII", 0x10, 1, 0x17B) + bytes(4)),
             lambda: self.guest.must("TPM2_GetCapability", 0x8001, 0x17A, struct.pack(">III", 4, 0, 256))),
            ("ClearControl", None, lambda: self.do(0x127, [LOCKOUT], b"\x01"), lambda: self.guest.property(0x200) & (1 << 8)),
            ("ClearControl off", None, lambda: self.do(0x127, [PLATFORM], b"\x00"), lambda: self.guest.property(0x200) & (1 << 8)),
            ("ChangeEPS", None, lambda: self.do(0x124, [PLATFORM]), lambda: self.which_primary(ENDORSEMENT)),
            ("ChangePPS", None, lambda: self.do(0x125, [PLATFORM]), lambda: self.which_primary(PLATFORM)),
            ("Clear", None, lambda: self.do(0x126, [LOCKOUT]), lambda: self.which_primary(OWNER)),
            ("HierarchyChangeAuth", None, lambda: self.do(0x129, [OWNER], self.sized(b"owner")),
             lambda: self.guest.property(0x200) & 1),
        ]
        for name, before, change, look in rows:
            with self.subTest(name):
                if self.public() is not None and before is not None:
                    self.guest.nv_undefine(INDEX)
                if before is not None:
                    before()
                was = look()
                change()
                now = look()
                self.assertNotEqual(was, now, "the command changes nothing that is looked at")
                self.kill()
                # A power cut counts as one wrong password where a password was in use (Library part 1, section 19.8).
                after = look()
                self.assertEqual(after if name != "a wrong password" else min(after, now), now)

    def guest_counter(self):
        return self.guest.lockout_counter()

    def owner_policy(self):
        return self.guest.must("TPM2_GetCapability", tpm.TPM_ST_NO_SESSIONS, 0x17A, struct.pack(">III", 9, OWNER, 1))

    def test_the_clock(self):
        update = self.guest.property(0x119)  # TPM_PT_CLOCK_UPDATE
        self.assertEqual(update, 4096)
        # Set: acknowledged, and not lost.
        ahead = self.guest.clock()[0] + 10 ** 9
        self.do(0x128, [OWNER], struct.pack(">Q", ahead))
        self.kill()
        self.assertGreaterEqual(self.guest.clock()[0], ahead)
        # Told: wherever the kill comes, it does not go back by more than the TPM says.
        told = self.guest.clock()[0]
        harness.wait_until(lambda: self.guest.clock()[0] > told + 2 * update, "the TPM's clock")
        told = self.guest.clock()[0]
        self.kill()
        again = self.guest.clock()[0]
        self.assertGreaterEqual(again, told - update)
        # After an orderly end, not at all.
        told = self.guest.clock()[0]
        self.instance.process.terminate()
        self.guest.close()
        self.instance.start()
        self.open()
        self.assertGreaterEqual(self.guest.clock()[0], told)


if __name__ == "__main__":
    harness.main()
