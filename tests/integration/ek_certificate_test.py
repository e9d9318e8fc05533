#!/usr/bin/python3
"""Endorsement key certificates, as a guest's tools find them and as OpenSSL judges them, with and without a CA of the operator's."""
import json
import os
import re
import struct

import harness

harness.need_root()
VTPMCTL = os.environ["VTPMCTL"]
NV_EKCERT_12 = 0x1000F000


class EkCertificates(harness.Case):
    def setUp(self):
        super().setUp()
        self.api = self.path("api.sock")
        self.manager = harness.Manager(self, options=["--auto-create", f"--api=unix:{self.api}"]).start(create=True)
        groups = json.loads(self.ctl("group", "list", "--json"))["groups"]
        self.group = next(g["uuid"] for g in groups if g["number"] == 0)

    def ctl(self, *args, status=0):
        got, text = self.run_command(VTPMCTL, f"--socket={self.api}", *args, ok=False)
        self.assertEqual(got, status, text)
        return text

    def save(self, name, content):
        with open(self.path(name), "wb") as f:
            f.write(content if isinstance(content, bytes) else content.encode())
        return self.path(name)

    def read(self, name):
        with open(self.path(name), "rb") as f:
            return f.read()

    def openssl(self, *args, ok=True):
        return self.run_command("openssl", *args, ok=ok, cwd=self.dir)[1]

    def instance(self, **kw):
        kw = {"options": ["--ek-certificates=yes"], "tcp": True, **kw}
        return harness.Instance(self, self.manager, **kw).start(create=True)

    def get_certificates(self, instance, name):
        """By tpm2-tools, from NV: PEM files for RSA and ECC."""
        self.run_command("tpm2_getekcertificate", "-o", f"{name}rsa.der", "-o", f"{name}ecc.der",
                         env={"TPM2TOOLS_TCTI": instance.tcti}, cwd=self.dir)
        for kind in ("rsa", "ecc"):
            self.openssl("x509", "-inform", "der", "-in", f"{name}{kind}.der", "-out", f"{name}{kind}.pem")

    def verify(self, certificate, *chain, ok=True):
        got, text = self.run_command("openssl", "verify", *chain, certificate, ok=False, cwd=self.dir)
        self.assertEqual(got == 0, ok, text)

    def own_ca(self, name="root"):
        self.openssl("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", f"{name}.key",
                     "-out", f"{name}.pem", "-subj", f"/CN=operator {name}", "-addext", "basicConstraints=critical,CA:TRUE",
                     "-addext", "keyUsage=critical,keyCertSign", "-days", "30")

    def sign_request(self, out, ca="root", *extra):
        self.openssl("x509", "-req", "-in", "group.csr", "-CA", f"{ca}.pem", "-CAkey", f"{ca}.key", "-days", "20", "-out", out,
                     *(extra or ("-copy_extensions", "copyall")))
        return self.path(out)

    def check_text(self, certificate, uuid, usage, family, numbers):
        """The names and extensions of the TCG's profiles."""
        text = self.openssl("x509", "-in", certificate, "-noout", "-text")
        self.assertRegex(text, r"Not After : Dec 31 23:59:59 9999 GMT")
        self.assertRegex(text, rf"Subject: serialNumber = {uuid}\n")
        self.assertRegex(text, r"Subject Alternative Name: critical\s+DirName:/?2\.23\.133\.2\.1 ?= ?id:49424D00[/ ,+]+"
                               r"2\.23\.133\.2\.2 ?= ?vtpmd[/ ,+]+2\.23\.133\.2\.3 ?= ?id:[0-9A-F]{8}\s")
        self.assertRegex(text, r"Basic Constraints: critical\s+CA:FALSE")
        self.assertRegex(text, rf"Key Usage: critical\s+{usage}\n")
        self.assertRegex(text, r"Extended Key Usage:\s+2\.23\.133\.8\.1\n")
        self.assertIn("Authority Key Identifier", text)
        dump = self.openssl("asn1parse", "-in", certificate)
        attributes = bytes.fromhex(re.search(r"Subject Directory Attributes\n.*HEX DUMP\]:([0-9A-F]+)", dump).group(1))
        self.assertIn(bytes.fromhex("0605678105" "0210"), attributes)  # 2.23.133.2.16
        self.assertIn(b"\x0c\x03" + family.encode() + numbers, attributes)

    def test_tpm20(self):
        """tpm2-tools find both; they are over the keys that tpm2_createek makes; OpenSSL takes them; they stay until a reset."""
        self.save("ca.pem", self.ctl("group", "ca", self.group))
        instance = self.instance()
        env = {"TPM2TOOLS_TCTI": instance.tcti}
        self.get_certificates(instance, "")
        for kind, usage in (("rsa", "Key Encipherment"), ("ecc", "Key Agreement")):
            self.verify(f"{kind}.pem", "-CAfile", "ca.pem")
            self.check_text(f"{kind}.pem", instance.uuid, usage, "2.0", bytes.fromhex("020100" "020200a4"))
            self.run_command("tpm2_createek", "-c", f"{kind}.ctx", "-G", kind, "-u", f"{kind}.key", "-f", "pem", env=env, cwd=self.dir)
            self.run_command("tpm2_flushcontext", "-t", env=env)
            self.assertEqual(self.openssl("x509", "-in", f"{kind}.pem", "-noout", "-pubkey"), self.read(f"{kind}.key").decode())
        self.verify("rsa.pem", "-CAfile", "ecc.pem", ok=False)
        _, public = self.run_command("tpm2_nvreadpublic", env=env)
        for index in ("0x1c00002", "0x1c0000a"):
            entry = public[public.index(index):]
            self.assertIn("ppwrite|writedefine|ppread|ownerread|authread|no_da|written|platformcreate", entry.split("size")[0])

        instance.process.terminate()
        self.manager.process.terminate()
        self.manager.start()
        instance.start()
        self.assertEqual(self.ctl("group", "ca", self.group).encode(), self.read("ca.pem"))
        self.get_certificates(instance, "again")
        self.assertEqual(self.read("againrsa.der") + self.read("againecc.der"), self.read("rsa.der") + self.read("ecc.der"))
        instance.process.terminate()

        self.ctl("reset", instance.uuid, "--yes")
        instance.start()
        self.get_certificates(instance, "reset")
        for kind in ("rsa", "ecc"):
            self.verify(f"reset{kind}.pem", "-CAfile", "ca.pem")
            keys = [self.openssl("x509", "-in", f"{name}{kind}.pem", "-noout", "-pubkey") for name in ("", "reset")]
            self.assertNotEqual(*keys, "a fresh TPM has keys of its own")
        instance.process.terminate()

    def test_tpm12(self):
        self.save("ca.pem", self.ctl("group", "ca", self.group))
        instance = self.instance(version="1.2")
        with instance.client() as guest:
            tag, kind, size, full = struct.unpack(">HBHH", guest.nv_read12(NV_EKCERT_12, 7))
            self.assertEqual((tag, kind, full), (0x1001, 0, 0x1002))
            der = b"".join(guest.nv_read12(NV_EKCERT_12, min(256, size - 2 - at), 7 + at) for at in range(0, size - 2, 256))
            public = guest.must("TPM_ReadPubek", 0xC1, 0x7C, bytes(20))
        self.save("ek.der", der)
        self.openssl("x509", "-inform", "der", "-in", "ek.der", "-out", "ek.pem")
        self.verify("ek.pem", "-CAfile", "ca.pem")
        self.check_text("ek.pem", instance.uuid, "Key Encipherment", "1.2", bytes.fromhex("020102" "020174"))
        modulus = self.openssl("x509", "-in", "ek.pem", "-noout", "-modulus").strip().removeprefix("Modulus=")
        self.assertIn(bytes.fromhex(modulus), public)
        instance.process.terminate()

    def test_a_ca_above(self):
        """An operator's root signs the group's request; vTPMs from before and after are under it, also after a restart."""
        before = self.instance(name="before")
        self.get_certificates(before, "before")
        own = self.save("own.pem", self.ctl("group", "ca", self.group))
        self.save("group.csr", self.ctl("group", "ca", self.group, "--csr"))
        self.assertIn("verify OK", self.openssl("req", "-in", "group.csr", "-noout", "-verify"))
        self.own_ca()
        self.refuse_bad_chains(own)
        self.sign_request("group.pem")
        chain = self.save("chain.pem", self.read("group.pem") + self.read("root.pem"))
        self.assertEqual(self.ctl("group", "ca", self.group, f"--set={chain}").encode(), self.read("chain.pem"))
        self.manager.process.terminate()
        self.manager.start()
        self.assertEqual(self.ctl("group", "ca", self.group).encode(), self.read("chain.pem"))
        after = self.instance(name="after")
        self.get_certificates(after, "after")
        for name in ("before", "after"):
            self.verify(f"{name}rsa.pem", "-CAfile", "root.pem", "-untrusted", "group.pem")
            self.verify(f"{name}ecc.pem", "-CAfile", "chain.pem")
            self.verify(f"{name}ecc.pem", "-CAfile", "root.pem", ok=False)
        for instance in (before, after):
            instance.process.terminate()

    def refuse_bad_chains(self, own):
        """Each by what is wrong with it; nothing has changed afterwards."""
        def refused(reason, *parts):
            chain = self.save("bad.pem", b"".join(self.read(p) for p in parts))
            text = self.ctl("group", "ca", self.group, f"--set={chain}", status=harness.EX_USAGE)
            self.assertIn(reason, text)
            self.assertIn("what to do", text)
        self.save("garbage", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
        refused("no certificate", "garbage")
        refused("no certificate", "group.csr")
        refused("another key", "root.pem")
        self.save("leaf.ext", "basicConstraints=CA:FALSE\nsubjectKeyIdentifier=hash\n")
        self.sign_request("leaf.pem", "root", "-extfile", "leaf.ext")
        refused("not the certificate of a CA", "leaf.pem")
        self.sign_request("group.pem")
        self.own_ca("other")
        refused("was not signed by", "group.pem", "other.pem")
        refused("damaged", "group.pem", "garbage")
        self.assertEqual(self.ctl("group", "ca", self.group).encode(), self.read(own))
        self.ctl("group", "ca", harness.new_uuid(), status=harness.EX_NOINPUT)
        self.ctl("group", "ca", self.group, "--csr", f"--set={own}", status=harness.EX_USAGE)

    def test_without(self):
        """--ek-certificates=no: none, and the group's CA is not even made."""
        instance = self.instance(options=["--ek-certificates=no"])
        _, handles = self.run_command("tpm2_getcap", "handles-nv-index", env={"TPM2TOOLS_TCTI": instance.tcti})
        self.assertNotIn("0x1C0", handles)
        self.assertNotIn("a CA for endorsement keys", self.manager.process.log())
        instance.process.terminate()


if __name__ == "__main__":
    harness.main()
