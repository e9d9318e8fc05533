"""The administrator's domain: a PV guest whose /dev/tpm0, of its unmodified xen-tpmfront, is attached to the manager. It sends
the very messages of Xen's manage-vtpmmgr.pl (vtpmmgr.py), once before and once after the manager is started again.
"""
import hashlib
import os
import subprocess
import uuid as uuids

import lab
from lab import harness
import tpm
import vtpmmgr

UUID = harness.new_uuid()
PCRS = (0, 4)
NONCE = bytes(range(20))
GROUP_RECOVERY = os.path.join(os.path.dirname(os.path.abspath(__file__)), "../../contrib/xl/group-recovery")


class Administrator:
    def __init__(self, case, dom0, version):
        self.case, self.dom0, self.version = case, dom0, version
        self.guest = lab.Guest(dom0, "admin", vtpm=f"backend=0,uuid={UUID}")

    def boot(self):
        self.guest.create()
        self.guest.load_driver()
        self.device = self.guest.tpm()
        self.manager = vtpmmgr.Manager(self.device)

    def first_run(self):
        case, manager = self.case, self.manager
        case.assertEqual(len(self.device.get_random12(16)), 16)
        before = manager.list()
        case.assertEqual(len(before), 1)  # the store's own
        approver = self.approver = vtpmmgr.Approver(case.path(""))

        uuid, attestation, binding = manager.group_add(approver.modulus)
        self.attestation = attestation
        case.assertEqual(manager.show(1), (uuid, approver.modulus, bytes(16)))
        identity = b"\1\1\0\0" + b"\0\0\0\x79" + bytes(20) + b"".join((
            b"\0\0\0\1\0\1\0\2", b"\0\0\0\x0c\0\0\x08\0\0\0\0\2\0\0\0\0", b"\0\0\1\0", attestation))
        if self.version == "1.2":  # TPM_IDENTITY_CONTENTS, signed by the new key
            case.assertTrue(vtpmmgr.signed_by(case.path(""), attestation, "sha1", identity, binding))

        values = [self.device.pcr_read12(n) for n in PCRS]
        good = (PCRS, vtpmmgr.composite(PCRS, values))
        signed = approver.sign(2, [(PCRS, bytes(20)), good])
        manager.group_update(1, signed)
        case.assertEqual(manager.show(1), (uuid, approver.modulus, vtpmmgr.config_of(signed)))
        self.refusals(approver.sign(1, [good]), signed)

        chosen = bytes.fromhex(harness.new_uuid().replace("-", ""))
        case.assertEqual(manager.vtpm_add(1, chosen), chosen)
        random = manager.vtpm_add(1)
        self.vtpms = sorted((chosen, random))
        self.quoted(attestation, values)
        self.listed = manager.list()
        case.assertEqual(self.listed[1], (uuid, approver.modulus, vtpmmgr.config_of(signed), self.vtpms))

        # Only this device may: PCR 23 can be extended by anybody, where it is not debug's.
        pcr = 23
        old = self.device.pcr_read12(pcr)
        case.assertEqual(self.device.extend12(pcr, NONCE), tpm.extended(old, NONCE, "sha1"))

    def refusals(self, older, replayed):
        """Each leaves everything as it was."""
        case, manager = self.case, self.manager
        forged = bytearray(self.approver.sign(9, [(PCRS, bytes(20))]))
        forged[10] ^= 1
        stranger = vtpmmgr.Approver(case.path("")).sign(9, [(PCRS, bytes(20))])
        for signed_list, status in ((bytes(forged), 1), (stranger, 1), (older, 0x406), (replayed, 0x406), (replayed[:-1], 0x19),
                                    (replayed + b"\0", 0x19)):
            case.assertEqual(manager.status(vtpmmgr.GROUP_UPDATE, b"\0\0\0\1" + signed_list), status)
        case.assertEqual(manager.status(vtpmmgr.GROUP_SHOW, b"\0\0\0\2"), 2)
        case.assertEqual(manager.status(vtpmmgr.GROUP_DEL, b"\0\0\0\0"), 3)
        case.assertEqual(manager.show(1)[2], vtpmmgr.config_of(replayed))

    def quoted(self, attestation, values):
        """A quote by the group's key; what is signed is over flags of zero and the nonce."""
        signature, rest = self.manager.group_quote(1, NONCE, PCRS)
        self.case.assertEqual(rest[:40], b"".join(values))
        self.check_quote(attestation, signature, rest[40:], hashlib.sha1(bytes(4) + NONCE).digest(), values)

    def check_quote(self, attestation, signature, attest, data, values):
        """By OpenSSL: this key over these PCRs and this data. Of a TPM 2.0 the structure follows the signature."""
        case, directory = self.case, self.case.path("")
        if self.version == "1.2":
            info = b"\1\1\0\0QUOT" + vtpmmgr.composite(PCRS, values) + data
            case.assertTrue(vtpmmgr.signed_by(directory, attestation, "sha1", info, signature))
        else:
            case.assertEqual(attest[:6], b"\xffTCG\x80\x18")
            case.assertIn(b"\0\x14" + data, attest)
            case.assertTrue(vtpmmgr.signed_by(directory, attestation, "sha256", attest, signature))

    def after_restart(self):
        case, manager = self.case, self.manager
        case.assertEqual(manager.list(), self.listed)
        self.recovered()
        later = manager.vtpm_add(1)  # its group is open
        case.assertEqual(manager.status(vtpmmgr.GROUP_DEL, b"\0\0\0\1"), 0x402)  # it has vTPMs
        for uuid in (*self.vtpms, later):
            manager.vtpm_del(uuid)
        case.assertEqual(manager.vtpms(1), [])
        case.assertNotEqual(manager.status(vtpmmgr.VTPM_DEL, later), 0)
        manager.group_del(1)
        case.assertEqual(manager.group_count(), 1)

    def agent(self, *args, data=b""):
        """The approver's side (contrib/xl/group-recovery), on this machine."""
        return subprocess.run(["sh", GROUP_RECOVERY, *args], input=data, check=True, timeout=60, stdout=subprocess.PIPE).stdout

    def recovered(self):
        """The approver registers, the group is closed by a list without this platform, and comes back by its approver's answer."""
        case, manager, agent = self.case, self.manager, self.case.path("agent")
        uuid, _, _ = manager.show(1)
        name = str(uuids.UUID(bytes=uuid))
        values = [self.device.pcr_read12(n) for n in PCRS]
        self.agent("new", agent)
        with open(f"{agent}/half", "rb") as f:
            ours = f.read()
        proof = self.agent("proof", agent, name, self.approver.key)
        case.assertEqual(manager.status(vtpmmgr.GROUP_REGISTER, b"\0\0\0\1" + proof[:-1] + bytes([proof[-1] ^ 1])
                                        + vtpmmgr.selection(PCRS)), 1)
        theirs, signature, attest = manager.group_register(1, proof, PCRS)
        self.check_quote(self.attestation, signature, attest, hashlib.sha1(b"REGR" + ours + theirs).digest(), values)
        self.agent("take", agent, name, data=theirs)
        case.assertEqual(manager.group_register(1, proof, PCRS)[0], theirs)  # the same, asked again

        _, proxy, _ = manager.group_add(self.approver.modulus)  # whose key says whose platform it is
        case.assertEqual(manager.status(vtpmmgr.GROUP_RECOVER2, b"\0\0\0\1" + bytes(288)), 0x40A)  # it is open
        manager.group_update(1, self.approver.sign(3, [(PCRS, bytes(20))]))
        case.assertEqual(manager.status(vtpmmgr.VTPM_NEW, b"\0\0\0\1"), 0x407)  # closed
        half, signature, attest = manager.group_recover1(1, proxy, NONCE, PCRS)
        self.check_quote(proxy, signature, attest, hashlib.sha1(b"RCVR" + NONCE + half).digest(), values)
        answer = self.agent("give", agent, name, data=half)
        case.assertEqual(manager.status(vtpmmgr.GROUP_RECOVER2, b"\0\0\0\1" + answer[:-1] + bytes([answer[-1] ^ 1])), 1)
        case.assertEqual(manager.status(vtpmmgr.GROUP_RECOVER2, b"\0\0\0\1" + answer), 3)  # one answer each
        half, _, _ = manager.group_recover1(1, proxy, NONCE, PCRS)
        manager.group_recover2(1, self.agent("give", agent, name, data=half))
        manager.group_del(2)

    def leave(self):
        self.guest.destroy()
