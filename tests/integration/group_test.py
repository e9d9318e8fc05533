#!/usr/bin/python3
"""Groups and deep quotes as an operator, an approver and a verifier have them: vtpmctl, on hardware TPMs of both families."""
import glob
import hashlib
import json
import os
import struct

import harness
import tpm

harness.need_root()
VTPMCTL = os.environ["VTPMCTL"]
DEEP_QUOTE, NEW_FORM = 0x20000016, 0x80000000
PARENT_SIGN_EK, UUID_AND_APPROVER = 0x2000007C, 1 | 8


def selection(bank, *pcrs):
    """TPML_PCR_SELECTION of one bank."""
    bits = bytearray(3)
    for pcr in pcrs:
        bits[pcr // 8] |= 1 << (pcr % 8)
    return struct.pack(">IHB", 1, bank, 3) + bytes(bits)


class Groups(harness.Case):
    def begin(self, version):
        self.version = version
        self.bank, self.bank_id = ("sha256", tpm.TPM_ALG_SHA256) if version == "2.0" else ("sha1", tpm.TPM_ALG_SHA1)
        self.root = harness.Swtpm(self, name=f"hw{version}", version=version).start()
        self.api = self.path(f"api{version}.sock")
        self.manager = harness.Manager(self, name=f"m{version}", tpm=self.root.driver, options=[f"--api=unix:{self.api}"])
        self.approver, _ = self.key_pair("approver")
        self.group = harness.new_uuid()
        self.measure(b"one")
        self.manager.start(create=True)

    def end(self):
        self.manager.process.terminate()
        self.root.stop()

    def measure(self, what):
        """Extends PCR 4 of the hardware, which nobody else has open; its value."""
        digest = hashlib.new(self.bank, what).digest()
        with tpm.Client(harness.connect(self.root.socket)) as hardware:
            if self.version == "2.0":
                hardware.pcr_extend(4, digest)
                self.pcr4 = hardware.pcr_read(4).hex()
            else:
                self.pcr4 = hardware.extend12(4, digest).hex()

    def restart(self, what=None):
        self.manager.process.terminate()
        self.root.stop()
        self.root.start()
        if what:
            self.measure(what)
        self.manager.start()

    def key_pair(self, name, kind=("EC", "-pkeyopt", "ec_paramgen_curve:P-256")):
        private, public = self.path(f"{name}.pem"), self.path(f"{name}.pub")
        self.run_command("openssl", "genpkey", "-algorithm", *kind, "-out", private)
        self.run_command("openssl", "pkey", "-in", private, "-pubout", "-out", public)
        return private, public

    def ctl(self, *args, status=0):
        got, text = self.run_command(VTPMCTL, f"--socket={self.api}", *args, ok=False)
        self.assertEqual(got, status, text)
        return text

    def refused(self, status, reason, *args):
        """Says why, and what to do about it."""
        text = self.ctl(*args, status=status)
        self.assertIn(reason, text)
        self.assertIn("what to do", text)

    def approve(self, sequence, *pcrs, epoch=1, key=None, extra=()):
        out = self.path(f"list{sequence}")
        self.ctl("approve", f"--key={key or self.approver}", f"--group={self.group}", f"--sequence={sequence}", f"--epoch={epoch}",
                 *(f"--pcr={self.bank}:4={value}" for value in pcrs), f"--out={out}", *extra)
        return f"--list={out}"

    def show(self):
        return json.loads(self.ctl("group", "show", self.group, "--json"))

    def create_group(self, *extra):
        return self.ctl("group", "create", f"--approver={self.path('approver.pub')}", *extra)

    def test_an_approvers_story(self):
        """Made, closed by an update of the host, opened by an approval alone; old and forged lists; recovery named; deleted."""
        for version in ("2.0", "1.2"):
            with self.subTest(version=version):
                self.begin(version)
                recovery, _ = self.key_pair("recovery")
                public = f"--recovery-key={self.path('recovery.pub')}"
                first = self.approve(1, self.pcr4, extra=[public])
                self.refused(harness.EX_NOPERM, "recovery key", "group", "create", f"--approver={self.path('approver.pub')}", first,
                             public, f"--recovery-signature={self.path('list1')}")
                with open(self.path("locked.pub"), "w") as f:  # nobody is asked for a password
                    f.write(open(self.path("approver.pub")).read().replace(
                        "KEY-----\n", "KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-128-CBC,00112233445566778899AABBCCDDEEFF\n\n", 1))
                self.refused(harness.EX_USAGE, "no public key in PEM", "group", "create", f"--approver={self.path('locked.pub')}", first)
                self.create_group(first, public, f"--recovery-signature={self.path('list1.recovery')}")
                shown = self.show()
                self.assertTrue(shown["open"], shown)
                self.assertIn("BEGIN PUBLIC KEY", shown["attestation_key"])
                self.assertIn("BEGIN PUBLIC KEY", shown["recovery_challenge"])
                self.assertEqual([p["value"] for p in shown["platforms"][0]["pcrs"]], [self.pcr4])
                self.assertIn(self.group, self.ctl("group", "list"))
                self.refused(harness.EX_CANTCREAT, self.group, "group", "create", f"--approver={self.path('approver.pub')}", first)

                uuid = json.loads(self.ctl("create", f"--group={self.group}", "--json"))["uuid"]
                self.assertEqual(json.loads(self.ctl("show", uuid, "--json"))["group"], self.group)
                instance = harness.Instance(self, self.manager, uuid=uuid, name=f"i{version}").start(create=True)
                with instance.client() as guest:
                    guest.nv_define(0x01500002, 8)
                    guest.nv_write(0x01500002, b"for good")
                instance.process.terminate()
                self.refused(harness.EX_TEMPFAIL, "1 vTPMs", "group", "delete", self.group, "--yes")

                if version == "1.2":  # one seal a platform: what is to come is approved while the group is open
                    coming = tpm.extended(bytes(20), hashlib.sha1(b"two").digest(), "sha1").hex()
                    self.update(2, coming)
                    self.assertTrue(self.show()["open"])
                    self.restart(b"two")
                    self.assertEqual(self.pcr4, coming)
                else:
                    self.host_is_updated(instance)
                self.group_of_today(instance, first)
                self.end()

    def host_is_updated(self, instance):
        """Closed, and nothing of it starts, while the store's own group serves on; an approval alone opens it."""
        self.restart(b"two")
        closed = self.show()
        self.assertFalse(closed["open"])
        self.assertIn(self.pcr4, closed["why_closed"])
        self.assertIn("closed", self.ctl("group", "list"))
        self.refused(harness.EX_TEMPFAIL, self.pcr4, "create", f"--group={self.group}")
        self.assertNotEqual(instance.launch().wait(), 0)
        self.ctl("create")
        forger, _ = self.key_pair("forger")
        self.refused(harness.EX_NOPERM, "signature", "group", "update", self.group, self.approve(9, self.pcr4, key=forger))
        self.assertFalse(self.show()["open"])
        self.update(2, self.pcr4)

    def update(self, sequence, value):
        """The platforms there are, from a file as `seal --json` prints it, and one more."""
        with open(self.path("old.json"), "w") as f:
            json.dump({"pcrs": self.show()["platforms"][0]["pcrs"]}, f)
        self.ctl("group", "update", self.group, self.approve(sequence, value, extra=[f"--platform={self.path('old.json')}"]))

    def group_of_today(self, instance, first):
        self.assertTrue(self.show()["open"])
        instance.start()
        with instance.client() as guest:
            self.assertEqual(guest.nv_read(0x01500002), b"for good")
        instance.process.terminate()
        self.refused(harness.EX_TEMPFAIL, "an old list", "group", "update", self.group, first)
        # Without the old platform, in the same epoch and in a new one.
        self.refused(harness.EX_USAGE, "epoch 2", "group", "update", self.group, self.approve(3, self.pcr4))
        self.ctl("group", "update", self.group, self.approve(4, self.pcr4, epoch=2))
        self.assertEqual(len(self.show()["platforms"]), 1)
        self.ctl("delete", instance.uuid, "--yes")
        self.ctl("group", "delete", self.group, "--yes")
        self.refused(harness.EX_NOINPUT, self.group, "group", "show", self.group)

    def deep_quote(self, guest, nonce):
        body = (struct.pack(">H", len(nonce)) + nonce + selection(tpm.TPM_ALG_SHA256, 0, 10) + selection(self.bank_id, 4)
                + struct.pack(">I", NEW_FORM))
        answer = guest.must("a deep quote", tpm.TPM_ST_NO_SESSIONS, DEEP_QUOTE, body)
        self.assertEqual(struct.unpack(">H", answer[:2])[0], len(answer) - 2)
        return answer[2:]

    def qualification(self, uuid, nonce, pcr10):
        """Again, from what quote/deep_quote.hpp says."""
        part = lambda b: struct.pack(">H", len(b)) + b
        spki = self.run_command("openssl", "pkey", "-pubin", "-in", self.path("ek.pem"), "-outform", "DER", "-out",
                                self.path("ek.der")) and open(self.path("ek.der"), "rb").read()
        pcr = lambda i, v: struct.pack(">HBB", tpm.TPM_ALG_SHA256, i, len(v)) + v
        said = (b"vtpmd quote 1" + bytes.fromhex(uuid.replace("-", "")) + bytes.fromhex(self.group.replace("-", ""))
                + part(hashlib.sha256(spki).digest()) + part(hashlib.sha256(pcr(0, bytes(32)) + pcr(10, pcr10)).digest())
                + part(nonce))
        return hashlib.new("sha256" if self.version == "2.0" else "sha1", said).digest()

    def check_hardware_part(self, uuid, nonce, pcr10):
        """By tools that know nothing of vtpmd."""
        prefix, expected = self.path("part"), self.qualification(uuid, nonce, pcr10)
        with open(prefix + ".qualification") as f:
            self.assertEqual(f.read().strip(), expected.hex())
        if self.version == "2.0":
            self.run_command("tpm2_checkquote", "-u", self.path("key.pem"), "-m", prefix + ".attested", "-s",
                             prefix + ".signature", "-q", expected.hex(), "-g", "sha256")
            got, _ = self.run_command("tpm2_checkquote", "-u", self.path("key.pem"), "-m", prefix + ".attested", "-s",
                                      prefix + ".signature", "-q", "00" * 32, "-g", "sha256", ok=False)
            self.assertNotEqual(got, 0)
            return
        self.run_command("openssl", "dgst", "-sha1", "-verify", self.path("key.pem"), "-signature", prefix + ".signature",
                         prefix + ".attested")
        composite = struct.pack(">H", 3) + b"\x10\0\0" + struct.pack(">I", 20) + bytes.fromhex(self.pcr4)
        with open(prefix + ".attested", "rb") as f:
            self.assertEqual(f.read(), b"\x01\x01\0\0QUOT" + hashlib.sha1(composite).digest() + expected)

    def test_a_deep_quote(self):
        """A guest's TPM 2.0 shows what it is; the verifier takes that, and refuses everything else by its name."""
        for version in ("2.0", "1.2"):
            with self.subTest(version=version):
                self.begin(version)
                self.create_group(self.approve(1, self.pcr4))
                with open(self.path("key.pem"), "w") as f:
                    f.write(self.show()["attestation_key"])
                uuid = json.loads(self.ctl("create", f"--group={self.group}", "--json"))["uuid"]
                instance = harness.Instance(self, self.manager, uuid=uuid, name=f"i{version}", tcp=True).start(create=True)
                nonce = os.urandom(24)
                with instance.client() as guest:
                    guest.pcr_extend(10, b"\x07" * 32)
                    pcr10 = guest.pcr_read(10)
                    quoted = self.deep_quote(guest, nonce)
                self.run_command("tpm2_createek", "-c", self.path("ek.ctx"), "-G", "rsa", "-u", self.path("ek.pem"), "-f", "pem",
                                 env={"TPM2TOOLS_TCTI": instance.tcti})
                self.check_quote(uuid, nonce, quoted, pcr10)
                self.operators_quote(uuid, pcr10)
                for name in glob.glob(self.path("part.*")):  # parts of one family do not go over the other's
                    os.unlink(name)

                # In the store's own group there is no key for it.
                other = harness.Instance(self, self.manager, name=f"o{version}")
                self.ctl("create", other.uuid)
                other.start(create=True)
                with other.client() as guest, self.assertRaises(tpm.TpmError) as refused:
                    self.deep_quote(guest, nonce)
                self.assertEqual(refused.exception.code, 0x120)  # TPM_RC_DISABLED
                self.refused(harness.EX_UNAVAILABLE, "group 0", "quote", other.uuid, "--nonce=00", f"--out={self.path('none')}")
                other.process.terminate()
                instance.process.terminate()
                self.refused(harness.EX_UNAVAILABLE, "does not run", "quote", uuid, "--nonce=00", f"--out={self.path('none')}")
                self.end()

    def owned_vtpm(self):
        """A TPM 1.2 in the group: its instance, a connection, its owner, and the endorsement key (ek.pem)."""
        uuid = json.loads(self.ctl("create", f"--group={self.group}", "--tpm-version=1.2", "--json"))["uuid"]
        instance = harness.Instance(self, self.manager, uuid=uuid, name="old", version="1.2").start(create=True)
        guest = instance.client()
        self.addCleanup(guest.close)
        owner = tpm.Owner12(guest)
        owner.take_by_openssl(self)
        return instance, guest, owner

    def written(self, name, content):
        with open(self.path(name), "wb") as f:
            f.write(content)
        return self.path(name)

    def check_raw_quote(self, external):
        """The hardware's signature over the structure that follows from what was asked and answered, by OpenSSL and by hand."""
        self.run_command("openssl", "dgst", "-sha1", "-verify", self.path("key.pem"), "-signature", self.path("part.signature"),
                         self.path("part.attested"))
        composite = hashlib.sha1(struct.pack(">H", 3) + b"\x10\0\0" + struct.pack(">I", 20) + bytes.fromhex(self.pcr4)).digest()
        with open(self.path("part.attested"), "rb") as f:
            self.assertEqual(f.read(), b"\x01\x01\0\0QUOT" + composite + external)

    def test_a_deep_quote_in_xens_form(self):
        """The owner of a TPM 1.2 asks as clients of Xen's vTPM do; the verifier takes that, and refuses everything else."""
        self.begin("1.2")
        self.key_pair("approver", ("RSA", "-pkeyopt", "rsa_keygen_bits:2048"))
        self.create_group(self.approve(1, self.pcr4))
        with open(self.path("key.pem"), "w") as f:
            f.write(self.show()["attestation_key"])
        instance, guest, owner = self.owned_vtpm()
        pcr10 = guest.extend12(10, b"\x07" * 20)
        nonce, uuid, sha1 = os.urandom(20), instance.uuid, lambda *parts: hashlib.sha1(b"".join(parts)).digest()
        host = struct.pack(">H", 3) + b"\x10\0\0"
        mine = struct.pack(">H", 3) + b"\0\x04\0"

        key_request = nonce + host
        key_answer = owner.run(PARENT_SIGN_EK, key_request)
        asked = nonce + mine + host + struct.pack(">I", UUID_AND_APPROVER)
        answer = owner.run(DEEP_QUOTE, asked)
        self.assertEqual(len(answer), 256 + 2 * 20 + 20)
        self.assertEqual(answer[256:276], sha1(bytes.fromhex(uuid.replace("-", ""))))
        self.assertEqual(answer[-20:].hex(), self.pcr4)

        good = {"file": self.written("answer", answer), "request": self.written("asked", asked), "key": self.path("key.pem"),
                "nonce": nonce.hex(), "uuid": uuid, "approver": self.path("approver.pub"), "pcr": f"sha1:10={pcr10.hex()}",
                "host-pcr": f"sha1:4={self.pcr4}"}

        def verify(*more, base=good, **changed):
            o = {**base, **{name.replace("_", "-"): value for name, value in changed.items()}}
            return ["verify-quote", o.pop("file"), *(f"--{n}={v}" for n, v in o.items()), *more]
        self.assertIn(f"vTPM {uuid} has these PCRs", self.ctl(*verify(f"--extract={self.path('part')}")))
        self.assertEqual(json.loads(self.ctl(*verify("--json")))["vtpm"], uuid)
        composite = sha1(mine, struct.pack(">I", 20), pcr10)
        self.check_raw_quote(sha1(struct.pack("<I", UUID_AND_APPROVER), sha1(bytes(4), b"DQUT", nonce, mine, b"\x01", composite),
                                  answer[256:296]))
        self.key_pair("stranger", ("RSA", "-pkeyopt", "rsa_keygen_bits:2048"))
        stranger, zero = self.path("stranger.pub"), "00" * 20
        for reason, changed in (("asked for with the nonce", {"nonce": os.urandom(20).hex()}),
                                ("of another vTPM", {"uuid": harness.new_uuid()}),
                                ("another approver", {"approver": stranger}),
                                ("the vTPM's PCRs are not what they have to be", {"pcr": f"sha1:10={zero}"}),
                                ("the hardware: PCR sha1:4 is", {"host_pcr": f"sha1:4={zero}"}),
                                ("not one of the trusted key", {"key": stranger}),
                                ("not one of the trusted key", {"file": self.written("damaged", bytes([answer[0] ^ 1]) + answer[1:])}),
                                ("not the one to this request", {"file": self.written("short", answer[:-1])})):
            self.refused(harness.EX_DATAERR, reason, *verify(**changed))
        for bad in ({"request": self.path("answer")}, {"locality": "5"}, {"pcr": f"sha1:11={zero}"}):
            self.ctl(*verify(**bad), status=harness.EX_USAGE)

        key = {"file": self.written("key-answer", key_answer), "request": self.written("key-asked", key_request),
               "key": self.path("key.pem"), "nonce": nonce.hex(), "ek": self.path("ek.pem")}
        self.assertIn("this endorsement key, new", self.ctl(*verify(f"--extract={self.path('part')}", base=key)))
        with open(self.path("ek.der"), "rb") as f:
            modulus = f.read()[9:-5]
        pubkey = tpm.Owner12.OAEP_KEY + struct.pack(">I", 256) + modulus
        self.check_raw_quote(sha1(bytes(4), sha1(pubkey, nonce)))
        self.refused(harness.EX_DATAERR, "another endorsement key", *verify(base=key, ek=stranger))
        self.refused(harness.EX_DATAERR, "asked for with the nonce", *verify(base=key, nonce=zero))

        # After a crash it is not a new one any more.
        guest.close()
        instance.process.kill()
        instance.start()
        with instance.client() as guest:
            owner = tpm.Owner12(guest)
            with self.assertRaises(tpm.TpmError) as refused:
                owner.run(PARENT_SIGN_EK, key_request)
            self.assertEqual(refused.exception.code, 8)  # TPM_DISABLED_CMD
            self.assertEqual(len(owner.run(DEEP_QUOTE, asked)), len(answer))
        instance.process.terminate()
        self.end()

    def operators_quote(self, uuid, pcr10):
        """Without the guest; also after the manager was started anew, to which the instance comes back by itself."""
        nonce, out = os.urandom(32).hex(), self.path("operators")
        ask = ["quote", uuid, f"--nonce={nonce}", "--pcrs=sha256:0,10", f"--host-pcrs={self.bank}:4", f"--out={out}"]
        check = ["verify-quote", out, f"--key={self.path('key.pem')}", f"--ek={self.path('ek.pem')}", f"--uuid={uuid}",
                 f"--group={self.group}", f"--pcr=sha256:10={pcr10.hex()}", f"--host-pcr={self.bank}:4={self.pcr4}"]
        self.assertIn("verify-quote", self.ctl(*ask))
        self.assertIn("verified", self.ctl(*check, f"--nonce={nonce}"))
        self.assertIn("for the nonce", self.ctl(*check, f"--nonce={os.urandom(32).hex()}", status=harness.EX_DATAERR))
        self.ctl("quote", uuid, "--nonce=00", f"--out={out}")
        for reason, bad in (("pcrs", "--pcrs=md5:0"), ("hardware", "--host-pcrs=none"), ("nonce", f"--nonce={'00' * 65}")):
            args = [a for a in ask if a.split("=")[0] != bad.split("=")[0]] + [bad]
            self.refused(harness.EX_USAGE, reason, *args)
        self.manager.process.terminate()
        self.manager.start()
        harness.wait_until(lambda: self.run_command(VTPMCTL, f"--socket={self.api}", *ask, ok=False)[0] == 0, "a quote")
        self.assertIn("verified", self.ctl(*check, f"--nonce={nonce}"))

    def check_quote(self, uuid, nonce, quoted, pcr10):
        with open(self.path("quote"), "wb") as f:
            f.write(quoted)
        with open(self.path("damaged"), "wb") as f:  # in the signature, which the hardware's one PCR follows
            at = len(quoted) - (1 + 4 + len(self.pcr4) // 2) - 8
            f.write(quoted[:at] + bytes([quoted[at] ^ 1]) + quoted[at + 1:])
        with open(self.path("short"), "wb") as f:
            f.write(quoted[:-1])
        self.key_pair("stranger")
        self.key_pair("stranger-ek", ("RSA", "-pkeyopt", "rsa_keygen_bits:2048"))
        good = {"file": "quote", "key": self.path("key.pem"), "ek": self.path("ek.pem"), "uuid": uuid, "nonce": nonce.hex(),
                "group": self.group, "pcr": f"sha256:10={pcr10.hex()}", "host-pcr": f"{self.bank}:4={self.pcr4}"}

        def verify(*more, **changed):
            o = {**good, **{name.replace("_", "-"): value for name, value in changed.items()}}
            return ["verify-quote", self.path(o.pop("file")), *(f"--{n}={v}" for n, v in o.items()), *more]
        said = json.loads(self.ctl(*verify("--json", f"--extract={self.path('part')}")))
        self.assertEqual((said["verified"], said["hardware"], said["vtpm"]), (True, self.version, uuid))
        self.assertEqual([p["value"] for p in said["host_pcrs"]], [self.pcr4])
        self.assertIn("verified", self.ctl(*verify()))
        self.check_hardware_part(uuid, nonce, pcr10)

        zero = "00" * 32
        for reason, changed in (("for the nonce", {"nonce": os.urandom(24).hex()}),
                                ("the vTPM: PCR sha256:10 is", {"pcr": f"sha256:10={zero}"}),
                                ("the vTPM: PCR sha256:11 was not quoted", {"pcr": f"sha256:11={zero}"}),
                                (f"PCR {self.bank}:4 is", {"host_pcr": f"{self.bank}:4={zero[:len(self.pcr4)]}"}),
                                ("another endorsement key", {"ek": self.path("stranger-ek.pub")}),
                                (f"of vTPM {uuid}, not of", {"uuid": harness.new_uuid()}),
                                (f"of group {self.group}, not of", {"group": harness.new_uuid()}),
                                ("not that of the trusted key", {"file": "damaged"}),
                                ("not that of the trusted key", {"key": self.path("stranger.pub")}),
                                ("malformed", {"file": "short"}),
                                ("it is no deep quote", {"file": "key.pem"})):
            self.refused(harness.EX_DATAERR, reason, *verify(**changed))
        for bad in ({"uuid": "x"}, {"nonce": "x"}, {"pcr": "x"}, {"pcr": "sha256:10=00"}):
            self.ctl(*verify(**bad), status=harness.EX_USAGE)
        self.ctl("verify-quote", self.path("quote"), status=harness.EX_USAGE)
        self.ctl(*verify(ek=self.path("nowhere")), status=harness.EX_NOINPUT)
        self.ctl(*verify(ek=self.path("quote")), status=harness.EX_DATAERR)


if __name__ == "__main__":
    harness.main()
