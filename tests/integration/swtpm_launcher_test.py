#!/usr/bin/python3
"""tools/vtpmd-swtpm in swtpm's place: what libvirt, swtpm_setup, Proxmox, Incus, EVE and cloud-hypervisor execute; every option
honoured or refused; a pid file that tells the truth; an identity that survives; the TPM that swtpm_setup is asked for."""
import grp
import json
import os
import pwd
import signal
import socket
import struct
import uuid

import harness
import tpm

harness.need_root()
TOOLS = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "tools")
LAUNCHER, SETUP = os.path.join(TOOLS, "vtpmd-swtpm"), os.path.join(TOOLS, "vtpmd-swtpm-setup")
NOBODY, NOGROUP = pwd.getpwnam("nobody").pw_uid, grp.getgrnam("nogroup").gr_gid
DATA, RSA_CERTIFICATE = 0x01500002, 0x01C00002
NEEDS_NO_INIT = ["--flags", "not-need-init,startup-clear"]


class Launcher(harness.Case):
    def setUp(self):
        super().setUp()
        self.manager = harness.Manager(self).start(create=True)
        self.env = {"VTPMD": harness.VTPMD, "VTPMD_MANAGER": f"unix:{self.manager.socket}"}
        self.folder = self.path("vm")
        os.mkdir(self.folder)
        self.control, self.pid_file = os.path.join(self.folder, "c.sock"), os.path.join(self.folder, "a.pid")

    def _clean(self):
        for root, _, files in os.walk(self.dir):  # daemons are nobody's children
            for name in files:
                if name.endswith(".pid"):
                    self.end(os.path.join(root, name))
        super()._clean()

    def end(self, pid_file):
        try:
            with open(pid_file) as f:
                pid = int(f.read())
            with open(f"/proc/{pid}/cmdline", "rb") as f:
                if self.dir.encode() in f.read():
                    os.kill(pid, signal.SIGKILL)
        except (OSError, ValueError):
            pass

    def launch(self, *args, ok=True, env=None, program=LAUNCHER, **kw):
        return self.run_command(program, *args, env={**self.env, **(env or {})}, ok=ok, patience=6 * harness.PATIENCE, **kw)

    def launch_daemon(self, *args, **kw):
        self.launch("socket", "--tpm2", "--daemon", "--pid", f"file={self.pid_file}", *args, **kw)
        return self.pid()

    def usual(self):
        return ["--tpmstate", f"dir={self.folder}", "--ctrl", f"type=unixio,path={self.control}"]

    def pid(self):
        with open(self.pid_file) as f:
            return int(f.read())

    def shut_down(self, address):
        with tpm.Control(harness.connect(address)) as c:
            c.must(c.SHUTDOWN)
            c.sock.settimeout(harness.PATIENCE)
            self.assertEqual(c.sock.recv(1), b"")
        harness.wait_until(lambda: not os.path.exists(self.pid_file), "the pid file is gone")

    def test_command_lines_from_the_wild(self):
        """Each as it was seen in the program that executes it. The TPM is there when the launcher returns; at the end it leaves
        no socket and no pid file."""
        with open(self.path("key.bin"), "wb") as f:
            f.write(os.urandom(32))
        with open(self.path("password"), "w") as f:
            f.write("pw")
        port = harness.free_ports(4)
        init = NEEDS_NO_INIT
        lines = {
            "libvirt": ["--ctrl", "type=unixio,path=@/c.sock,mode=0600", "--tpmstate", "dir=@,mode=0600", "--log", "file=@/log",
                        "--terminate", "--tpm2", "--pid", "file=@/a.pid", "--daemon"],
            "proxmox": ["--tpmstate", "backend-uri=file://@/state,mode=0600", "--ctrl", "type=unixio,path=@/c.sock,mode=0600",
                        "--pid", "file=@/a.pid", "--terminate", "--daemon", "--log", "file=@/log,level=1", "--tpm2"],
            "cloud-hypervisor": ["--tpmstate", "dir=@", "--ctrl", "type=unixio,path=@/c.sock", "--flags", "startup-clear", "--tpm2",
                                 "--daemon", "--pid", "file=@/a.pid"],
            "eve": ["--tpm2", "--tpmstate", "dir=@", "--key", f"file={self.path('key.bin')},format=binary,mode=aes-256-cbc,remove=true",
                    "--server", "type=unixio,path=@/srv.sock", "--ctrl", "type=unixio,path=@/c.sock", "--log", "file=@/log", "--pid",
                    "file=@/a.pid", "--daemon", *init],
            "tcp, no control": ["--tpm2", "--tpmstate", "dir=@", "--server", f"type=tcp,port={port}", "--daemon", "--pid", "file=@/a.pid",
                                *init],
            "tcp, control elsewhere": ["--tpm2", "--tpmstate", "dir=@", "--server", f"type=tcp,port={port}", "--ctrl",
                                       f"type=tcp,port={port + 2}", *init, "--daemon", "--pid", "file=@/a.pid"],
            "tcp, control on unix": ["--tpm2", "--tpmstate", "dir=@", "--server", f"type=tcp,port={port},bindaddr=::1", "--ctrl",
                                     "type=unixio,path=@/c.sock", *init, "--daemon", "--pid", "file=@/a.pid"],
            "password, abbreviated": ["--tpm2", "--tpmst", "dir=@", "--key", f"pwdfile={self.path('password')},mode=aes-256-cbc,kdf=pbkdf2",
                                      "--ctr", "type=unixio,path=@/c.sock", "--daem", "--pid=file=@/a.pid"],
            "1.2, short options": ["--tpmstate", "dir=@", "--ctrl", "type=unixio,path=@/c.sock", "-d", "-t", "--pid", "file=@/a.pid"],
        }
        for n, (name, words) in enumerate(lines.items()):
            with self.subTest(name=name):
                self.folder = self.path(f"vm{n}")
                os.mkdir(self.folder)
                self.pid_file, self.control = f"{self.folder}/a.pid", f"{self.folder}/c.sock"
                self.launch("socket", *(w.replace("@", self.folder) for w in words))
                self.assertTrue(os.path.exists(f"/proc/{self.pid()}"))
                text = " ".join(words)
                if "port" in text:
                    with tpm.Client(socket.create_connection(("::1" if "::1" in text else "127.0.0.1", port))) as guest:
                        guest.get_random()
                elif "srv.sock" in text:
                    with tpm.Client(harness.connect(f"{self.folder}/srv.sock")) as guest:
                        guest.get_random()
                control = self.control if "c.sock" in text else ("127.0.0.1", port + 2)
                if "--ctr" in text:
                    with tpm.Control(harness.connect(control)) as c:
                        self.assertTrue(c.must(c.GET_CAPABILITY, answer=4))
                    self.shut_down(control)
                else:
                    os.kill(self.pid(), signal.SIGTERM)
                    harness.wait_until(lambda: not os.path.exists(self.pid_file), "the pid file is gone")
                self.assertEqual([f for f in os.listdir(self.folder) if f.endswith((".sock", ".pid"))], [])
        self.assertFalse(os.path.exists(self.path("key.bin")), "remove=true")

    def test_incus_relative_path(self):
        self.launch("socket", "--tpm2", "--tpmstate", "dir=vm", "--ctrl", "type=unixio,path=vm/c.sock", "--daemon", "--pid",
                    "file=vm/a.pid", cwd=self.dir)
        self.shut_down(self.control)

    def test_questions(self):
        """What is asked before anything is started."""
        for words in (["socket", "--print-capabilities"], ["socket", "--tpm2", "--print-capabilities"]):
            said = json.loads(self.launch(*words)[1])
            self.assertEqual(said["type"], "swtpm")
            self.assertLessEqual({"tpm-1.2", "tpm-2.0", "nvram-backend-file"}, set(said["features"]))
        self.assertRegex(self.launch("--version")[1], r"^TPM emulator version \d+\.\d+")
        for words in (["--help"], ["socket", "--help"], ["socket", "-h"], ["chardev", "--help"]):
            self.assertIn("--tpmstate", self.launch(*words)[1])
        where = (["--tpmstate", f"dir={self.folder}"], ["--tpmstate", f"backend-uri=dir://{self.folder}"], [])

        def states():
            answers = [json.loads(self.launch("socket", "--tpm2", *w, "--print-states", env={"TPM_PATH": self.folder})[1]) for w in where]
            self.assertEqual(answers[1:], answers[:-1])
            return [state["name"] for state in answers[0]["states"]]
        self.assertEqual(states(), [])
        self.launch_daemon(*self.usual())
        self.assertEqual(states(), ["permall"])
        self.shut_down(self.control)
        self.assertEqual(json.loads(self.launch("--print-capabilities", program=SETUP)[1])["type"], "swtpm_setup")
        self.assertIn("--tpm-state", self.launch("--help", program=SETUP)[1])

    def test_what_cannot_be_done_is_refused(self):
        """With a word of why, and nothing is made."""
        usual = self.usual()
        for words, told in (
                (["cuse"], "socket or chardev"), (["chardev", "--tpm2", "--tpmstate", f"dir={self.folder}"], "--vtpm-proxy"),
                (["socket"], "--tpmstate"), (["socket", "--tpmstate", "dir=/nonexistent"], "/nonexistent"),
                (["socket", "--tpmstate", "backend-uri=https://x"], "dir://DIR or file://FILE"),
                (["socket", *usual, "--nonsense"], "nonsense"), (["socket", *usual, "stray"], "stray"),
                (["socket", *usual, "--profile", "name=default-v1"], "profile"),
                (["socket", *usual, "--flags", "disable-auto-shutdown"], "disable-auto-shutdown"),
                (["socket", *usual, "--locality", "reject-locality-4"], "reject-locality-4"),
                (["socket", *usual, "--migration-key", "file=/dev/null"], "--migration-key"),
                (["socket", *usual, "--migration", "incoming"], "--incoming"),
                (["socket", *usual, "--log", "prefix=x"], "prefix"), (["socket", *usual, "--seccomp", "action=later"], "action=later"),
                (["socket", *usual, "--runas", "no-such-user"], "no such user"), (["socket", *usual, "--pid", "name=x"], "--pid name"),
                (["socket", *usual, "--key", "file=/nonexistent"], "/nonexistent"),
                (["socket", *usual, "--tpmstate", "dir=/tmp"], "given twice"), (["socket", *usual, "--t"], "unique"),
                (["socket", "--tpmstate", f"dir={self.folder},unknown=1"], "unknown"),
                (["socket", "--tpmstate", f"dir={self.folder},mode=rw"], "octal"),
                (["socket", "--tpmstate", f"dir={self.folder}"], "--ctrl"),
                (["socket", *usual[:2], "--ctrl", f"type=unixio,path={self.control},uid=no-such-user"], "no such user"),
                (["socket", *usual[:2], "--ctrl", f"type=unixio,path={self.control},terminate"], "terminate"),
                (["socket", *usual[:2], "--ctrl", "type=unixio"], "path=PATH"), (["socket", *usual[:2], "--ctrl", "path=x"], "type="),
                (["socket", *usual[:2], "--ctrl", "type=tcp,port=9999,mode=0600"], "not with type=tcp"),
                (["socket", *usual[:2], "--ctrl", "type=tcp,port=0"], "from 1"),
                (["socket", *usual[:2], "--server", "type=tcp,port=9999,bindaddr=0.0.0.0"], "127.0.0.1"),
                (["socket", *usual[:2], "--server", "type=tcp,port=9999,ifname=lo"], "ifname"),
                (["socket", *usual[:2], "--ctrl", "type=unixio,clientfd=77"], "clientfd=77")):
            with self.subTest(words=words[1:]):
                status, text = self.launch(*words, ok=False)
                self.assertEqual(status, 1, text)
                self.assertIn(told, text)
                self.assertNotIn("Traceback", text)
                self.assertEqual(os.listdir(self.folder), [])
        open(f"{self.folder}/tpm2-00.permall", "w").close()
        status, text = self.launch("socket", "--tpm2", *usual, ok=False)
        self.assertEqual(status, 1, text)
        self.assertIn("swtpm-state import", text)
        self.assertEqual(os.listdir(self.folder), ["tpm2-00.permall"], "no socket stays behind, and no identity")

    def test_rights(self):
        """mode=, uid= and gid= of the sockets, mode= of the state, --runas: as swtpm gives them."""
        os.chmod(self.manager.socket, 0o666)  # who may ask the manager is another matter, below
        os.chown(self.folder, NOBODY, NOGROUP)
        server = f"{self.folder}/srv.sock"
        pid = self.launch_daemon("--tpmstate", f"dir={self.folder},mode=0640", "--ctrl",
                                 f"type=unixio,path={self.control},mode=0666,uid={NOBODY},gid=nogroup", "--server",
                                 f"type=unixio,path={server},mode=0660,gid=daemon", *NEEDS_NO_INIT)
        rights = {name: (f"{os.stat(path).st_mode & 0o777:o}", os.stat(path).st_uid, os.stat(path).st_gid)
                  for name, path in (("control", self.control), ("server", server), ("state", f"{self.folder}/vtpmd.img"))}
        self.assertEqual(rights, {"control": ("666", NOBODY, NOGROUP), "server": ("660", 0, grp.getgrnam("daemon").gr_gid),
                                  "state": ("640", 0, 0)})
        self.assertEqual(os.stat(f"/proc/{pid}").st_uid, 0)
        self.shut_down(self.control)

    def test_runas(self):
        """The instance has that user's rights from the beginning; the manager must know the user, or the launcher says so."""
        os.chown(self.folder, NOBODY, NOGROUP)
        os.chmod(self.dir, 0o755)
        program = self.path("vtpmd")
        with open(harness.VTPMD, "rb") as source, open(program, "wb") as target:
            target.write(source.read())
        os.chmod(program, 0o755)
        self.env["VTPMD"] = program
        words = ["socket", "--tpm2", "--daemon", "--pid", f"file={self.pid_file}", "--runas", "nobody", *self.usual()]
        status, text = self.launch(*words, ok=False)
        self.assertEqual(status, 1)
        self.assertIn("ermission denied", text)
        self.assertFalse(os.path.exists(self.control) or os.path.exists(self.pid_file))

    def test_pid_file(self):
        """It is there once the TPM is, in the foreground too, and goes with it. One that a killed instance left is replaced."""
        for kill in (True, False):
            process = self.spawn("foreground", LAUNCHER, "socket", "--tpm2", *self.usual(), *NEEDS_NO_INIT, "--pid",
                                 f"file={self.pid_file}", env=self.env)
            harness.wait_until(lambda: os.path.exists(self.pid_file) and str(process.pid) == open(self.pid_file).read().strip(), "the pid file")
            with socket.socket(socket.AF_UNIX) as s:
                s.connect(self.control)  # at once: no second try
                with tpm.Control(s) as c:
                    c.must(c.GET_CAPABILITY, answer=4)
            self.assertEqual(os.stat(self.pid_file).st_mode & 0o777, 0o644)
            if kill:
                process.kill()
                self.assertTrue(os.path.exists(self.pid_file))
            else:
                process.terminate()
                self.assertFalse(os.path.exists(self.pid_file))
        read, write = os.pipe()
        self.launch("socket", "--tpm2", "--daemon", *self.usual(), "--pid", f"fd={write}", pass_fds=[write])
        os.close(write)
        pid = int(os.read(read, 32))
        os.close(read)
        self.assertTrue(os.path.exists(f"/proc/{pid}"))
        self.shut_down(self.control)

    def test_a_daemon_that_cannot_start(self):
        """The launcher says why, and leaves nothing."""
        self.manager.process.terminate()
        os.unlink(self.manager.store)
        self.manager.start(create=True)
        self.env["VTPMD_MANAGER"] = "unix:relative"
        status, text = self.launch("socket", "--tpm2", "--daemon", "--pid", f"file={self.pid_file}", *self.usual(), ok=False)
        self.assertEqual(status, 1, text)
        self.assertIn("--manager=unix:relative", text)
        self.assertFalse(os.path.exists(self.control) or os.path.exists(self.pid_file))
        self.env["VTPMD"] = "/nonexistent/vtpmd"
        status, text = self.launch("socket", "--tpm2", *self.usual(), ok=False)
        self.assertEqual(status, 1, text)
        self.assertIn("is vtpmd installed?", text)

    def use(self, work):
        """Starts it, does something with the guest's TPM, ends it."""
        server = f"{self.folder}/srv.sock"
        self.launch_daemon(*self.usual(), "--server", f"type=unixio,path={server}", *NEEDS_NO_INIT)
        with tpm.Client(harness.connect(server)) as guest:
            work(guest)
        self.shut_down(self.control)

    def test_identity(self):
        """The UUID that stands in the image counts: what the note beside it says, and whether it is there, changes nothing. A TPM
        that was made is never made again."""
        note = f"{self.folder}/vtpmd.uuid"

        def make(guest):
            guest.nv_define(DATA, 8)
            guest.nv_write(DATA, b"kept....")
        self.use(make)
        with open(note) as f:
            name = f.read()

        def look(guest):
            self.assertEqual(guest.nv_read(DATA), b"kept....")
        for what, content in (("empty", ""), ("another", f"{uuid.uuid4()}\n"), ("half", name[:17]), ("missing", None)):
            with self.subTest(note=what):
                os.unlink(note)
                if content is not None:
                    with open(note, "w") as f:
                        f.write(content)
                self.use(look)
                with open(note) as f:
                    self.assertEqual(f.read(), name)
        for content in (None, b"", bytes(65536)):
            with self.subTest(image=content and len(content)):
                image = f"{self.folder}/vtpmd.img"
                os.rename(image, self.path("kept"))
                if content is not None:
                    with open(image, "wb") as f:
                        f.write(content)
                status, text = self.launch("socket", "--tpm2", *self.usual(), "--daemon", ok=False)
                self.assertEqual(status, 1, text)
                self.assertIn(name.strip(), text)
                os.rename(self.path("kept"), image)
        self.use(look)

    def test_disconnect(self):
        """A client that reads until the connection ends: with ,disconnect it does after each answer, otherwise it stays."""
        for option, ends in ((",disconnect", True), ("", False)):
            port = harness.free_ports(1)
            pid = self.launch_daemon("--tpmstate", f"dir={self.folder}", "--server", f"type=tcp,port={port}{option}", *NEEDS_NO_INIT)
            for _ in range(2):
                with harness.connect(("127.0.0.1", port)) as s:
                    s.sendall(struct.pack(">HIIH", 0x8001, 12, 0x17B, 8))
                    self.assertEqual(len(s.recv(100)), 20)
                    s.settimeout(harness.PATIENCE if ends else 0.3)
                    if ends:
                        self.assertEqual(s.recv(100), b"")
                    else:
                        self.assertRaises(TimeoutError, s.recv, 100)
            os.kill(pid, signal.SIGTERM)
            harness.wait_until(lambda: not os.path.exists(self.pid_file), "the end")

    def test_descriptors(self):
        """As swtpm_setup starts it: a connection for commands and one for control; it ends with them. And a control socket that
        whoever starts it listens on."""
        ours, theirs = socket.socketpair()
        control, their_control = socket.socketpair()
        process = self.spawn("setup", LAUNCHER, "socket", "--tpm2", "--tpmstate", f"backend-uri=dir://{self.folder}", *NEEDS_NO_INIT,
                             "--server", f"type=tcp,fd={theirs.fileno()}", "--ctrl", f"type=unixio,clientfd={their_control.fileno()}",
                             "--pid", f"file={self.pid_file}", env=self.env, pass_fds=[theirs.fileno(), their_control.fileno()])
        theirs.close()
        their_control.close()
        with tpm.Client(ours) as guest, tpm.Control(control) as c:
            guest.get_random()
            c.must(c.GET_CAPABILITY, answer=4)
        self.assertEqual(process.wait(), 0, process.log())
        self.assertFalse(os.path.exists(self.pid_file))
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(self.control)
            listener.listen()
            self.launch_daemon("--tpmstate", f"dir={self.folder}", "--ctrl", f"type=unixio,fd={listener.fileno()}", pass_fds=[listener.fileno()])
        self.shut_down(self.control)
        self.assertTrue(os.path.exists(self.control), "it is whose it was before")

    def test_state_stays_off_tcp(self):
        """Nobody is authenticated on TCP: the TPM's secrets are not given out there, whatever the commands come on."""
        port = harness.free_ports(1)
        self.launch_daemon("--tpmstate", f"dir={self.folder}", "--server", f"type=unixio,path={self.folder}/srv.sock", "--ctrl",
                           f"type=tcp,port={port}", *NEEDS_NO_INIT)
        with tpm.Control(harness.connect(("127.0.0.1", port))) as c:
            self.assertNotEqual(c.call(c.GET_STATEBLOB, struct.pack(">III", 1, 1, 0), answer=12)[0], 0)
        self.shut_down(("127.0.0.1", port))

    def test_setup(self):
        """What libvirt executes before a guest's first start; with certificates if they are asked for, and once."""
        libvirts = ["--tpm2", "--tpm-state", self.folder, "--vmid", f"vm:{uuid.uuid4()}", "--logfile", f"{self.folder}/log", "--createek",
                    "--create-ek-cert", "--create-platform-cert", "--lock-nvram", "--not-overwrite"]
        for certificates in (True, False):
            self.folder = self.path(f"setup{certificates}")
            os.mkdir(self.folder)
            libvirts[2] = self.folder
            self.control, self.pid_file = os.path.join(self.folder, "c.sock"), os.path.join(self.folder, "a.pid")
            self.launch(*(w for w in libvirts if certificates or not w.endswith("-cert")), program=SETUP)
            before = open(f"{self.folder}/vtpmd.img", "rb").read()
            self.launch(*libvirts, program=SETUP)
            self.assertEqual(open(f"{self.folder}/vtpmd.img", "rb").read(), before)
            for words, told in ((libvirts[:-1], "--not-overwrite"), ([*libvirts[:-1], "--overwrite"], "vtpmctl reset")):
                status, text = self.launch(*words, program=SETUP, ok=False)
                self.assertEqual(status, 1)
                self.assertIn(told, text)

            def look(guest, there=certificates):
                code = guest.command(0x8001, 0x169, struct.pack(">I", RSA_CERTIFICATE))[0]  # TPM2_NV_ReadPublic
                self.assertEqual(code == 0, there)
                banks = guest.command(0x8001, 0x17A, struct.pack(">III", 5, 0, 8))[1]  # TPM_CAP_PCRS
                self.assertEqual(banks.count(b"\x03\xff\xff\xff"), 1, "sha256 alone, as swtpm_setup makes it")
            self.use(look)
        libvirts[2] = self.path("vm")
        for words, told in ((["--tpm2"], "--tpm-state DIR"), ([*libvirts, "--take-ownership"], "take-ownership"),
                            ([*libvirts, "--rsa-keysize", "3072"], "2048"), ([*libvirts, "--reconfigure"], "reconfigure")):
            status, text = self.launch(*words, program=SETUP, ok=False)
            self.assertEqual(status, 1)
            self.assertIn(told, text)
        self.assertLessEqual(set(os.listdir(self.path("vm"))), {"log"})

    def test_swtpm_setup_itself(self):
        """The real swtpm_setup with this launcher in swtpm's place: endorsement keys, and two PCR banks."""
        self.run_command("swtpm_setup", "--tpm", f"{LAUNCHER} socket", "--tpm2", "--tpm-state", self.folder, "--createek", "--pcr-banks",
                         "sha256,sha384", env={**self.env, "XDG_CONFIG_HOME": self.dir}, patience=6 * harness.PATIENCE)
        self.use(lambda guest: guest.get_random())


if __name__ == "__main__":
    harness.main()
