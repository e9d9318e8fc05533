#!/usr/bin/python3
"""Every command of a TPM that changes something persistent: acknowledged, then the instance is killed, and what it changed is there
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


class Killed(harness.Case):
    VERSION = "2.0"

    def setUp(self):
        super().setUp()
        self.manager = harness.Manager(self).start(create=True)
        self.instance = harness.Instance(self, self.manager, version=self.VERSION).start(create=True)
        self.open()

    def open(self):
        self.guest = device_model.Guest(harness.connect(self.instance.socket))

    def kill(self):
        self.instance.process.kill()
        self.guest.close()
        self.instance.start()
        self.open()

    def kept(self, change, look):
        """What is looked at before the kill, and after it."""
        was = look()
        change()
        now = look()
        self.assertNotEqual(was, now, "the command changes nothing that is looked at")
        self.kill()
        return now, look()


class Persistent(Killed):

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
                now, after = self.kept(change, look)
                # A power cut counts as one wrong password where a password was in use (Library part 1, section 19.8).
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


class Persistent12(Killed):
    """TPM Main part 3: what its commands change in TPM_PERMANENT_FLAGS, TPM_PERMANENT_DATA, NV and the tables beside them."""
    VERSION = "1.2"
    OWNER_WRITE, AUTH_WRITE, PRESENCE_WRITE, WRITE_DEFINE = 2, 4, 1, 1 << 13
    ALONE, BY_OWNER, BY_SECRET, LOCKING = 0x1000, 0x1001, 0x1002, 0x1003
    COUNTER, NEW = b"\x07" * 20, b"\xa5" * 20

    def open(self):
        super().open()
        self.owner = tpm.Owner12(self.guest, self.secret)

    def setUp(self):
        self.secret = b"\x5a" * 20
        self.counter = 0
        super().setUp()

    def plain(self, ordinal, parameters=b""):
        return self.guest.must(f"ordinal {ordinal:#x}", 0x00C1, ordinal, parameters)

    def capability(self, area, part):
        return self.plain(0x65, struct.pack(">III", area, 4, part))[4:]

    def flags(self):
        return self.capability(4, 0x108)

    def owned(self):
        return self.capability(5, 0x111)

    def indices(self):
        return self.plain(0x65, struct.pack(">II", 0x0D, 0))

    def defined_written(self):
        """bWriteDefine; bWriteSTClear, before it, goes with the power."""
        return self.capability(0x11, self.LOCKING)[-5]

    def audited(self):
        body = self.plain(0x85, bytes(4))
        size = struct.unpack(">I", body[31:35])[0]
        return body[35:35 + size]

    def counted(self):
        status, body = self.guest.command(0x00C1, 0xDE, struct.pack(">I", self.counter))
        return None if status else body[-4:]

    def present(self):
        self.plain(0x4000000A, struct.pack(">H", 0x20))
        self.plain(0x4000000A, struct.pack(">H", 0x08))

    def create_counter(self):
        self.counter = struct.unpack(">I", self.owner.run_with_secret(0xDC, self.COUNTER, after=b"life")[:4])[0]

    def new_owner(self):
        self.owner.run_with_secret(0x10, self.NEW, struct.pack(">H", 4), struct.pack(">H", 2))
        self.secret = self.owner.secret = self.NEW

    def owned_by_new(self):
        try:
            return bool(tpm.Owner12(self.guest, self.NEW).run(0x81, struct.pack(">I", 0x40000006)))
        except tpm.TpmError:
            return False

    def take(self):
        self.owner.take_by_openssl(self)

    def take_again(self):
        """After OwnerClear the TPM is disabled and deactivated, until its next start."""
        self.present()
        self.plain(0x6F)
        self.plain(0x72, b"\0")
        self.kill()
        self.take()

    def test_every_command(self):
        """(name, what comes before it, the command, what is looked at), as above."""
        def write(index, data):
            return struct.pack(">III", index, 0, len(data)) + data
        rows = [
            ("TSC_PhysicalPresence", None, lambda: self.plain(0x4000000A, struct.pack(">H", 0x20)), self.flags),
            ("PhysicalDisable", self.present, lambda: self.plain(0x70), self.flags),
            ("PhysicalEnable", self.present, lambda: self.plain(0x6F), self.flags),
            ("PhysicalSetDeactivated", self.present, lambda: self.plain(0x72, b"\1"), self.flags),
            ("PhysicalSetDeactivated, off", self.present, lambda: self.plain(0x72, b"\0"), self.flags),
            ("SetOwnerInstall", self.present, lambda: self.plain(0x71, b"\0"), self.flags),
            ("SetOwnerInstall, on", self.present, lambda: self.plain(0x71, b"\1"), self.flags),
            ("SetOperatorAuth", self.present, lambda: self.plain(0x74, b"\7" * 20), self.flags),
            ("NV_DefineSpace", self.kill, lambda: self.guest.nv_define12(self.ALONE, 8, self.PRESENCE_WRITE), self.indices),
            ("NV_WriteValue", None, lambda: self.guest.nv_write12(self.ALONE, b"written."), lambda: self.guest.nv_read12(self.ALONE, 8)),
            ("NV_DefineSpace of none", None, lambda: self.guest.nv_define12(self.ALONE, 0, self.PRESENCE_WRITE), self.indices),
            ("NV_WriteValue of none",
             lambda: self.guest.nv_define12(self.LOCKING, 8, self.PRESENCE_WRITE | self.WRITE_DEFINE),
             lambda: self.guest.nv_write12(self.LOCKING, b""), self.defined_written),
            ("NV_DefineSpace, the lock of NV",
             lambda: (self.guest.nv_define12(self.BY_OWNER, 8, self.OWNER_WRITE), self.guest.nv_define12(self.BY_SECRET, 8, self.AUTH_WRITE)),
             lambda: self.guest.nv_define12(0xFFFFFFFF, 0), self.flags),
            ("TakeOwnership", None, self.take, self.owned),
            ("NV_WriteValueAuth", None, lambda: tpm.Owner12(self.guest, bytes(20)).run(0xCE, write(self.BY_SECRET, b"secretly")),
             lambda: self.guest.nv_read12(self.BY_SECRET, 8)),
            ("NV_WriteValue by the owner", None, lambda: self.owner.run(0xCD, write(self.BY_OWNER, b"by owner")),
             lambda: self.guest.nv_read12(self.BY_OWNER, 8)),
            ("OwnerSetDisable", None, lambda: self.owner.run(0x6E, b"\1"), self.flags),
            ("OwnerSetDisable, off", None, lambda: self.owner.run(0x6E, b"\0"), self.flags),
            ("SetCapability", None, lambda: self.owner.run(0x3F, struct.pack(">IIIIB", 1, 4, 4, 1, 1)), self.flags),
            ("DisablePubekRead", None, lambda: self.owner.run(0x7E), self.flags),
            ("SetOrdinalAuditStatus", None, lambda: self.owner.run(0x8D, struct.pack(">IB", 0x46, 1)), self.audited),
            ("CreateCounter", None, self.create_counter, self.counted),
            ("IncrementCounter", None, lambda: tpm.Owner12(self.guest, self.COUNTER).run(0xDD, struct.pack(">I", self.counter)),
             self.counted),
            ("ReleaseCounterOwner", None, lambda: self.owner.run(0xE0, struct.pack(">I", self.counter)), self.counted),
            ("Delegate_Manage", None, lambda: self.owner.run(0xD2, struct.pack(">IIIB", 0, 1, 1, 7)), lambda: self.plain(0xDB)),
            ("ChangeAuthOwner", None, self.new_owner, self.owned_by_new),
            ("OwnerClear", None, lambda: self.owner.run(0x5B), self.owned),
            ("DisableOwnerClear", self.take_again, lambda: self.owner.run(0x5C), self.flags),
            ("ForceClear", self.present, lambda: self.plain(0x5D), self.owned),
            ("TSC_PhysicalPresence, its lock", None, lambda: self.plain(0x4000000A, struct.pack(">H", 0x80)), self.flags),
        ]
        for name, before, change, look in rows:
            with self.subTest(name):
                if before is not None:
                    before()
                now, after = self.kept(change, look)
                self.assertEqual(after, now)


if __name__ == "__main__":
    harness.main()
