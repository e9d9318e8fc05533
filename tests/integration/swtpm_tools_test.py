#!/usr/bin/python3
"""For swtpm's users: tools/vtpmd-swtpm with the command lines of QEMU's and libvirt's documentation, and tools/swtpm-state, which
moves a TPM from swtpm to vtpmd and back."""
import os
import socket
import struct

import harness
import tpm

TOOLS = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "tools")
DATA, DATA12 = 0x01500002, 0x00011001


class Swtpm(harness.Case):
    def setUp(self):
        super().setUp()
        self.manager = harness.Manager(self).start(create=True)
        self.env = {"VTPMD": harness.VTPMD, "VTPMD_MANAGER": f"unix:{self.manager.socket}"}

    def launch(self, *args, ok=True):
        status, text = self.run_command(os.path.join(TOOLS, "vtpmd-swtpm"), *args, env=self.env, ok=ok, patience=6 * harness.PATIENCE)
        return status, text

    def stop(self, control):
        with tpm.Control(harness.connect(control)) as c:
            c.must(c.SHUTDOWN)
            self.assertEqual(c.sock.recv(1), b"")

    def test_launcher_as_qemu_and_libvirt_start_it(self):
        for n, args in enumerate((
                lambda d, c: ["--tpmstate", f"dir={d}", "--ctrl", f"type=unixio,path={c}", "--tpm2", "--log", "level=20", "-d",
                              "--pid", f"file={d}/pid"],
                lambda d, c: ["--daemon", "--ctrl", f"type=unixio,path={c},mode=0600", "--tpmstate", f"dir={d},mode=0600", "--log",
                              f"file={d}/log", "--terminate", "--tpm2", "--pid", f"file={d}/pid"])):
            folder, control = self.path(f"vm{n}"), self.path(f"vm{n}.sock")
            os.mkdir(folder)
            for _ in range(2):  # the second time with the state of the first
                self.launch("socket", *args(folder, control))
                with open(f"{folder}/pid") as f:
                    self.assertTrue(os.path.exists(f"/proc/{int(f.read())}"))
                _, text = self.run_command("swtpm_ioctl", "--unix", control, "-i")
                self.run_command("swtpm_ioctl", "--unix", control, "--info", "1")
                self.stop(control)

    def test_terminate(self):
        """--terminate: killed QEMU takes the instance along; without it, and as long as nobody sent a command, it stays."""
        def qemus(control):
            """QEMU's part: a control connection that hands over the socket for commands. The two ends that are ours."""
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
            channel = harness.connect(control)
            socket.send_fds(channel, [struct.pack(">I", 0x10)], [theirs.fileno()])
            theirs.close()
            self.assertEqual(channel.recv(4), bytes(4))
            return channel, ours

        for option in ([], ["--terminate"]):
            folder, control = self.path("vm" + "".join(option)), self.path("c" + "".join(option))
            os.mkdir(folder)
            self.launch("socket", "--tpm2", "--tpmstate", f"dir={folder}", "--ctrl", f"type=unixio,path={control}", "--daemon", "--pid",
                        f"file={folder}/pid", "--log", f"file={folder}/log", *option)
            with open(f"{folder}/pid") as f:
                pid = int(f.read())
            self.run_command("swtpm_ioctl", "--unix", control, "-c")  # a control connection that comes and goes
            for end in qemus(control):
                end.close()
            with open(f"{folder}/log") as f:
                harness.wait_until(lambda: "the device model is gone" in (self.told(f)), "it notices")
            if not option:
                for end in qemus(control):  # and serves the next one
                    end.close()
                self.stop(control)
            harness.wait_until(lambda: not os.path.exists(f"/proc/{pid}") or self.dead(pid), "it ends")
            with open(f"{folder}/log") as f:
                text = f.read()
            self.assertIn("ended in good order", text)
            self.assertEqual("as --terminate says" in text, bool(option))

    def told(self, file):
        file.seek(0)
        return file.read()

    def dead(self, pid):
        """A child of nobody's in a container without an init that reaps stays as a zombie."""
        with open(f"/proc/{pid}/stat") as f:
            return f.read().rpartition(")")[2].split()[0] == "Z"

    def test_launcher_for_tools(self):
        folder, port = self.path("vm"), harness.free_ports(2)
        os.mkdir(folder)
        args = ["socket", "--tpm2", "--tpmstate", f"dir={folder}", "--server", f"type=tcp,port={port}", "--ctrl",
                f"type=tcp,port={port + 1}", "--flags", "not-need-init,startup-clear", "--daemon"]
        self.launch(*args)
        self.run_command("tpm2_getrandom", "8", env={"TPM2TOOLS_TCTI": f"swtpm:host=127.0.0.1,port={port}"})
        self.run_command("swtpm_ioctl", "--tcp", f"127.0.0.1:{port + 1}", "-s")

    def there_and_back(self, version, key):
        """swtpm_setup makes it, swtpm keeps something in it, vtpmd has that, and swtpm again."""
        new = ["--tpm2"] if version == "2.0" else []
        folder, back = self.path("state"), self.path("back")
        os.mkdir(folder)
        os.mkdir(back)
        key_option = []
        if key:
            with open(self.path("key"), "w") as f:
                f.write("00112233445566778899aabbccddeeff" * 2)
            key_option = [f"--key=file={self.path('key')},mode=aes-256-cbc,format=hex"]
        self.run_command("swtpm_setup", *new, "--tpm-state", folder, *(["--keyfile", self.path("key"), "--cipher", "aes-256-cbc"] if key else []),
                         env={"XDG_CONFIG_HOME": self.dir}, patience=6 * harness.PATIENCE)
        self.with_swtpm(version, folder, key_option, self.write)
        uuid = harness.new_uuid()
        vtpm = harness.Instance(self, self.manager, version=version, uuid=uuid, name="vtpm")
        tool = [os.path.join(TOOLS, "swtpm-state"), "--uuid", uuid, "--state", vtpm.image, "--manager", f"unix:{self.manager.socket}",
                "--vtpmd", harness.VTPMD, *new, *key_option]
        self.refused_imports(tool, vtpm, folder, key)
        self.run_command(*tool, "import", "--dir", folder, patience=6 * harness.PATIENCE)
        self.assertNotEqual(self.run_command(*tool, "import", "--dir", folder, ok=False)[0], 0)  # not over what is there
        vtpm.start()
        with vtpm.client() as guest:
            self.read(version, guest)
        vtpm.process.terminate()
        self.run_command(*tool, "export", "--dir", back, patience=6 * harness.PATIENCE)
        self.with_swtpm(version, back, key_option, self.read)
        self.assertNotEqual(self.run_command(*tool, "export", "--dir", back, ok=False)[0], 0)

    def refused_imports(self, tool, vtpm, folder, key):
        """No registration is left, and no image."""
        plain = [word for word in tool if not word.startswith("--key")]
        wrong = [[*plain, "import", "--dir", self.path("nowhere")]]
        wrong.append([w for w in tool if w != "--tpm2"] + ["import", "--dir", folder] if "--tpm2" in tool else
                     [*tool, "--tpm2", "import", "--dir", folder])
        if key:
            with open(self.path("wrong"), "w") as f:
                f.write("ff" * 32)
            wrong += [[*plain, f"--key=file={self.path('wrong')},mode=aes-256-cbc,format=hex", "import", "--dir", folder],
                      [*plain, "import", "--dir", folder]]
        for command in wrong:
            status, told = self.run_command(*command, ok=False)
            self.assertNotEqual(status, 0)
            self.assertFalse(os.path.exists(vtpm.image), told)
        self.assertEqual("--key" in told, key, told)  # what to do
        self.assertNotIn(vtpm.uuid, self.manager.process.log())

    def with_swtpm(self, version, folder, key_option, use):
        data = self.path("swtpm.sock")
        process = self.spawn("swtpm", "swtpm", "socket", *(["--tpm2"] if version == "2.0" else []), "--tpmstate", f"dir={folder}",
                             "--server", f"type=unixio,path={data}", "--ctrl", f"type=unixio,path={data}.ctrl", *key_option,
                             "--flags", "not-need-init,startup-clear", "--seccomp", "action=none")
        with tpm.Client(harness.connect(data)) as guest:
            use(version, guest)
        with tpm.Control(harness.connect(data + ".ctrl")) as control:
            control.must(control.SHUTDOWN)
        process.wait()

    def write(self, version, guest):
        if version == "2.0":
            guest.nv_define(DATA, 8)
            guest.nv_write(DATA, b"kept....")
        else:
            guest.nv_define12(DATA12, 8)
            guest.nv_write12(DATA12, b"kept....")

    def read(self, version, guest):
        self.assertEqual(guest.nv_read(DATA) if version == "2.0" else guest.nv_read12(DATA12, 8), b"kept....")

    def test_state_of_a_tpm20(self):
        self.there_and_back("2.0", key=False)

    def test_state_of_a_tpm20_encrypted(self):
        self.there_and_back("2.0", key=True)

    def test_state_of_a_tpm12(self):
        self.there_and_back("1.2", key=False)

    def test_state_of_a_tpm12_encrypted(self):
        self.there_and_back("1.2", key=True)


if __name__ == "__main__":
    harness.main()
