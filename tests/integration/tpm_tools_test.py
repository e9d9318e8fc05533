#!/usr/bin/python3
"""tpm-tools through trousers' tcsd against a TPM 1.2 vTPM: ownership, NV and sealed data, and all of it after a restart."""
import os
import pwd

import harness

harness.need_root()  # tcsd's configuration must be root's and group tss's


class TpmTools(harness.Case):
    def start_tcsd(self, instance):
        tss = pwd.getpwnam("tss")
        port = harness.free_ports(1)
        conf = self.path("tcsd.conf")
        with open(conf, "w") as f:
            f.write(f"port = {port}\nsystem_ps_file = {self.path('system.data')}\n")
        # Configuration and port of a daemon of our own, away from the machine's.
        os.chown(conf, 0, tss.pw_gid)
        os.chmod(conf, 0o640)
        os.chown(self.dir, tss.pw_uid, tss.pw_gid)
        self.env = {"TSS_TCSD_HOSTNAME": "127.0.0.1", "TSS_TCSD_PORT": str(port), "TSS_USER_PS_FILE": self.path("user.data")}
        tcsd = self.spawn("tcsd", "tcsd", "-f", "-e", "-c", conf, env={
            "TCSD_USE_TCP_DEVICE": "1", "TCSD_TCP_DEVICE_HOSTNAME": "127.0.0.1", "TCSD_TCP_DEVICE_PORT": str(instance.port)})
        harness.wait_until(lambda: not tcsd.running() or self.answers(), "tcsd answers")
        self.assertTrue(tcsd.running(), tcsd.log())
        return tcsd

    def answers(self):
        return self.run_command("tpm_version", ok=False, env=self.env)[0] == 0

    def tool(self, *args, ok=True):
        """An owner and SRK password of 20 zero bytes, so that no tool asks for one."""
        return self.run_command(*args, ok=ok, env=self.env, cwd=self.dir)

    def test_owner_story(self):
        manager = harness.Manager(self).start(create=True)
        instance = harness.Instance(self, manager, version="1.2", tcp=True, options=["--tcp-user=tss"]).start(create=True)
        tcsd = self.start_tcsd(instance)
        _, text = self.tool("tpm_version")
        self.assertIn("TPM 1.2 Version Info", text)

        self.tool("tpm_takeownership", "-y", "-z")
        data = os.urandom(32).hex()
        self.tool("tpm_nvdefine", "-i", "0x1001", "-s", "64", "-p", "OWNERWRITE|OWNERREAD", "-y")
        self.tool("tpm_nvwrite", "-i", "0x1001", "-s", "64", "-z", "-d", data)
        with open(self.path("plain"), "w") as f:
            f.write(f"sealed {data}\n")
        self.tool("tpm_sealdata", "-z", "-p", "5", "-i", "plain", "-o", "sealed")
        with instance.client() as guest:
            _, before = self.tool("tpm_getpubek", "-z")
            pcr5 = guest.pcr_read12(5)
        self.everything_is_there(data, before)

        tcsd.kill()
        instance.process.terminate()
        manager.process.terminate()
        manager.start()
        instance.start()
        tcsd = self.start_tcsd(instance)
        with instance.client() as guest:
            self.assertEqual(guest.pcr_read12(5), pcr5)
        self.everything_is_there(data, before)

        # A secret bound to a PCR stays shut once the PCR has moved on, and a second owner is refused.
        with instance.client() as guest:
            guest.extend12(5, b"\x5a" * 20)
        status, _ = self.tool("tpm_unsealdata", "-z", "-i", "sealed", "-o", "not-there", ok=False)
        self.assertNotEqual(status, 0, "unsealed although PCR 5 differs")
        status, _ = self.tool("tpm_takeownership", "-y", "-z", ok=False)
        self.assertNotEqual(status, 0, "ownership taken twice")

    def everything_is_there(self, data, pubek):
        _, text = self.tool("tpm_nvread", "-i", "0x1001", "-s", "64", "-z")
        shown = bytes(int(b, 16) for line in text.splitlines() if line[:8].strip() and line[8:9] == " "
                      for b in line[9:].split("  ")[0].split() if len(b) == 2)
        self.assertIn(data.encode(), shown, text)
        self.tool("tpm_unsealdata", "-z", "-i", "sealed", "-o", "unsealed")
        with open(self.path("unsealed")) as f:
            self.assertEqual(f.read(), f"sealed {data}\n")
        os.unlink(self.path("unsealed"))
        self.assertEqual(self.tool("tpm_getpubek", "-z")[1], pubek)


if __name__ == "__main__":
    harness.main()
