#!/usr/bin/python3
"""tpm2-tools against a TPM 2.0 vTPM: what an owner does with a TPM, and all of it again after a restart."""
import os
import re

import harness


class Tpm2Tools(harness.Case):
    def tpm2(self, tool, *args, ok=True):
        """One tool, and away with the objects and sessions it leaves: a bare TPM has no resource manager."""
        env = {"TPM2TOOLS_TCTI": self.tcti}
        result = self.run_command(f"tpm2_{tool}", *args, ok=ok, env=env, cwd=self.dir)
        for what in ("--transient-object", "--loaded-session"):
            self.run_command("tpm2_flushcontext", what, env=env)
        return result

    def read(self, name):
        with open(self.path(name), "rb") as f:
            return f.read()

    def test_owner_story(self):
        manager = harness.Manager(self).start(create=True)
        instance = harness.Instance(self, manager, tcp=True).start(create=True)
        self.tcti = instance.tcti
        secret = os.urandom(32)
        with open(self.path("secret"), "wb") as f:
            f.write(secret)

        # A primary key, a child made and loaded, kept at a persistent handle.
        self.tpm2("createprimary", "-C", "o", "-g", "sha256", "-G", "ecc", "-c", "primary.ctx")
        self.tpm2("evictcontrol", "-C", "o", "-c", "primary.ctx", "0x81000001")
        self.tpm2("create", "-C", "0x81000001", "-G", "rsa2048", "-u", "key.pub", "-r", "key.priv")
        self.tpm2("load", "-C", "0x81000001", "-u", "key.pub", "-r", "key.priv", "-c", "key.ctx")
        self.tpm2("evictcontrol", "-C", "o", "-c", "key.ctx", "0x81000002")

        # A secret sealed to PCR 7 as it will be after one extend.
        self.tpm2("pcrextend", "7:sha256=" + "5a" * 32)
        self.tpm2("pcrread", "sha256:7", "-o", "pcr7")
        self.tpm2("createpolicy", "--policy-pcr", "-l", "sha256:7", "-f", "pcr7", "-L", "policy")
        self.tpm2("create", "-C", "0x81000001", "-L", "policy", "-i", "secret", "-u", "seal.pub", "-r", "seal.priv")

        # An attestation key and a quote that checks.
        self.tpm2("createek", "-c", "0x81010001", "-G", "ecc", "-u", "ek.pub")
        self.tpm2("createak", "-C", "0x81010001", "-c", "ak.ctx", "-G", "ecc", "-g", "sha256", "-s", "ecdsa", "-u", "ak.pem",
                  "-f", "pem", "-n", "ak.name")
        self.tpm2("load", "-C", "0x81000001", "-u", "seal.pub", "-r", "seal.priv", "-c", "seal.ctx")
        self.tpm2("evictcontrol", "-C", "o", "-c", "seal.ctx", "0x81000003")
        self.tpm2("evictcontrol", "-C", "o", "-c", "ak.ctx", "0x81010002")

        # NV: ordinary data, a counter, an area behind the PCR policy.
        self.tpm2("nvdefine", "0x1500001", "-C", "o", "-s", "32", "-a", "ownerread|ownerwrite|authread|authwrite")
        self.tpm2("nvwrite", "0x1500001", "-C", "o", "-i", "secret")
        self.tpm2("nvdefine", "0x1500002", "-C", "o", "-s", "8", "-a", "ownerread|ownerwrite|authread|authwrite|nt=counter")
        self.tpm2("nvincrement", "0x1500002", "-C", "o")
        self.tpm2("nvread", "0x1500002", "-C", "o", "-s", "8", "-o", "counter0")
        self.tpm2("changeauth", "-c", "endorsement", "first")

        self.everything_is_there(secret, steps=1)

        instance.process.terminate()
        manager.process.terminate()
        manager.start()
        instance.start()
        # The PCRs are those of a machine just switched on; measured again they release the secret again.
        _, values = self.tpm2("pcrread", "sha256:7")
        self.assertIn("0x" + "0" * 64, values)
        status, _ = self.tpm2("unseal", "-c", "0x81000003", "-p", "pcr:sha256:7", ok=False)
        self.assertNotEqual(status, 0, "unsealed with PCR 7 at its start value")
        self.tpm2("pcrextend", "7:sha256=" + "5a" * 32)
        self.everything_is_there(secret, steps=2)

    def banks(self):
        """The PCR banks that are active, each with all 24 PCRs."""
        _, told = self.tpm2("getcap", "pcrs")
        found = {name: pcrs.replace(",", " ").split() for name, pcrs in re.findall(r"- (\w+): \[([^]]*)\]", told)}
        self.assertTrue(all(pcrs in ([], [str(n) for n in range(24)]) for pcrs in found.values()), told)
        return {name for name, pcrs in found.items() if pcrs}

    def test_pcr_banks(self):
        """A new TPM has the banks that --pcr-banks names; what its guest makes of them later is the guest's."""
        manager = harness.Manager(self).start(create=True)
        for number, (option, expected) in enumerate(((None, {"sha256", "sha384"}), ("sha1,sha256,sha384", {"sha1", "sha256", "sha384"}),
                                                     ("sha1,sha256,sha384,sha512", {"sha1", "sha256", "sha384", "sha512"}),
                                                     ("sha512", {"sha512"}))):
            with self.subTest(option=option):
                options = [f"--pcr-banks={option}"] if option else []
                instance = harness.Instance(self, manager, name=f"i{number}", tcp=True, options=options).start(create=True)
                self.tcti = instance.tcti
                self.assertEqual(self.banks(), expected)
                bank = sorted(expected)[-1]
                self.tpm2("pcrextend", f"16:{bank}=" + "5a" * (int(bank[3:]) // 8 if bank != "sha1" else 20))
                instance.process.terminate()

        # TPM2_PCR_Allocate counts from the next power cycle on, and stays, whatever the option says then.
        instance = harness.Instance(self, manager, name="changed", tcp=True).start(create=True)
        self.tcti = instance.tcti
        self.tpm2("pcrallocate", "sha1:all+sha256:all+sha384:none+sha512:none")
        self.assertEqual(self.banks(), {"sha256", "sha384"})
        for options in ([], ["--pcr-banks=sha512"]):
            instance.process.terminate()
            instance.options = options
            instance.start()
            self.assertEqual(self.banks(), {"sha1", "sha256"})

    def test_pcr_banks_of_a_tpm12(self):
        """A TPM 1.2 refuses the option, also if only its image says what it is; a configuration file speaks of TPMs 2.0."""
        manager = harness.Manager(self).start(create=True)
        config = self.path("instance.conf")
        with open(config, "w") as f:
            f.write("pcr-banks = sha512\n")
        instance = harness.Instance(self, manager, name="old", version="1.2", options=[f"--config={config}"]).start(create=True)
        instance.process.terminate()
        instance.version = None
        instance.start()
        instance.process.terminate()
        instance.options = ["--pcr-banks=sha1"]
        self.assertEqual(instance.launch().wait(), harness.EX_USAGE)
        self.assertIn("is a TPM 1.2, which has the SHA-1 bank only", instance.process.log())
        instance = harness.Instance(self, manager, name="new", tcp=True, options=[f"--config={config}"]).start(create=True)
        self.tcti = instance.tcti
        self.assertEqual(self.banks(), {"sha512"})

    def everything_is_there(self, secret, steps):
        _, handles = self.tpm2("getcap", "handles-persistent")
        for handle in ("0x81000001", "0x81000002", "0x81000003", "0x81010001", "0x81010002"):
            self.assertIn(handle, handles)
        self.tpm2("unseal", "-c", "0x81000003", "-p", "pcr:sha256:7", "-o", f"unsealed{steps}")
        self.assertEqual(self.read(f"unsealed{steps}"), secret)
        self.tpm2("load", "-C", "0x81000001", "-u", "key.pub", "-r", "key.priv", "-c", f"again{steps}.ctx")

        with open(self.path("message"), "w") as f:
            f.write("to be signed")
        self.tpm2("sign", "-c", "0x81000002", "-g", "sha256", "-o", "signature", "message")
        self.tpm2("verifysignature", "-c", "0x81000002", "-g", "sha256", "-s", "signature", "-m", "message")

        self.tpm2("quote", "-c", "0x81010002", "-l", "sha256:0,7,16", "-q", "abcdef0123", "-m", "quote.msg", "-s", "quote.sig",
                  "-o", "quote.pcrs", "-g", "sha256")
        self.tpm2("checkquote", "-u", "ak.pem", "-m", "quote.msg", "-s", "quote.sig", "-f", "quote.pcrs", "-q", "abcdef0123", "-g",
                  "sha256")
        status, _ = self.tpm2("checkquote", "-u", "ak.pem", "-m", "quote.msg", "-s", "quote.sig", "-f", "quote.pcrs", "-q",
                              "abcdef0124", "-g", "sha256", ok=False)
        self.assertNotEqual(status, 0, "a quote over another nonce was accepted")

        self.tpm2("nvread", "0x1500001", "-C", "o", "-s", "32", "-o", f"nv{steps}")
        self.assertEqual(self.read(f"nv{steps}"), secret)
        self.tpm2("nvread", "0x1500002", "-C", "o", "-s", "8", "-o", f"counter{steps}a")
        first = int.from_bytes(self.read("counter0"), "big")
        self.assertEqual(int.from_bytes(self.read(f"counter{steps}a"), "big"), first + steps - 1)
        self.tpm2("nvincrement", "0x1500002", "-C", "o")
        self.tpm2("nvread", "0x1500002", "-C", "o", "-s", "8", "-o", f"counter{steps}b")
        self.assertEqual(int.from_bytes(self.read(f"counter{steps}b"), "big"), first + steps)

        # The authorisation that was set is asked for.
        status, _ = self.tpm2("changeauth", "-c", "endorsement", "other", ok=False)
        self.assertNotEqual(status, 0)
        self.tpm2("changeauth", "-c", "endorsement", "-p", "first", "first")


if __name__ == "__main__":
    harness.main()
