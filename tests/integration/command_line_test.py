#!/usr/bin/python3
"""The command line: every mistake gets one clear line that says what to do, and an exit code of sysexits(3)."""
import ctypes
import os
import re
import struct
import subprocess

import harness

harness.need_root()
harness.private_mounts()
SOURCE = os.path.abspath(os.path.join(os.path.dirname(__file__), "..", ".."))


def forbid_io_uring():
    """A seccomp filter for this process and its children: io_uring_setup fails with EPERM, as on hardened hosts."""
    libc = ctypes.CDLL(None, use_errno=True)
    BPF_LD_W_ABS, BPF_JEQ, BPF_RET = 0x20, 0x15, 0x06
    ALLOW, ERRNO_EPERM, IO_URING_SETUP = 0x7FFF0000, 0x00050001, 425
    program = b"".join(struct.pack("<HBBI", *i) for i in (
        (BPF_LD_W_ABS, 0, 0, 0),  # seccomp_data.nr
        (BPF_JEQ, 0, 1, IO_URING_SETUP), (BPF_RET, 0, 0, ERRNO_EPERM), (BPF_RET, 0, 0, ALLOW)))
    buffer = ctypes.create_string_buffer(program, len(program))
    fprog = ctypes.create_string_buffer(struct.pack("<HxxxxxxQ", 4, ctypes.addressof(buffer)))
    PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 38, 22, 2
    if libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) or libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, fprog, 0, 0):
        os._exit(99)


class CommandLine(harness.Case):
    NOBODY = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--inh-caps=-all", "--bounding-set=-all"]

    def test_a_ring_that_the_kernels_driver_has(self):
        """Neither a manager nor an instance takes it: both would write the ring's state."""
        harness.mount("none", "/sys/bus", "tmpfs")
        self.addCleanup(harness.umount, "/sys/bus")
        os.makedirs("/sys/bus/xen/devices/vtpm-3/driver")
        instance = ("--mode=instance", f"--uuid={harness.new_uuid()}", f"--state={self.path('i.img')}", "--create",
                    f"--guest=socket:unix:{self.path('g.sock')}")
        manager = ("--mode=manager", f"--store={self.path('m.img')}", "--create", "--seal-pcrs=none")
        for args, link in ((instance, "--manager=xen:"), (manager, "--tpm=xen:")):
            self.refused([*args, link + "3"], harness.EX_NOPERM, link + "3", "the kernel's driver has this device", "echo vtpm-3 >")
            status, text = self.vtpmd(*args, link + "4")
            self.assertNotIn(status, (0, harness.EX_NOPERM), text)  # there is no Xen here

    def refused(self, args, status, *words, prefix=(), **kw):
        """Ends with that status and exactly one line, which has the words."""
        quiet = ["--log-level=error"] if any(a.startswith("--mode=") for a in args) and "log-level" not in str(args) else []
        got, text = self.run_command(*prefix, harness.VTPMD, *args, *quiet, ok=False, **kw)
        self.assertEqual(got, status, f"{args}: {text}")
        lines = text.splitlines()
        self.assertEqual(len(lines), 1, f"{args}: one line, please:\n{text}")
        for word in words:
            self.assertRegex(lines[0], word)

    def a_tpm(self):
        """The software TPM that self.manager() names, made by a manager whose store goes again."""
        manager = harness.Manager(self, name="maker", tpm=f"embedded:{self.path('tpm')}")
        os.makedirs(self.path("tpm"), exist_ok=True)
        manager.start(create=True).process.terminate()
        os.unlink(manager.store)

    def manager(self, **changes):
        options = {"store": self.path("m.img"), "tpm": f"embedded:{self.path('tpm')}", "seal-pcrs": "none",
                   "listen": f"unix:{self.path('m.sock')}"}
        options.update({k.replace("_", "-"): v for k, v in changes.items()})
        os.makedirs(self.path("tpm"), exist_ok=True)
        return ["--mode=manager"] + [f"--{k}={v}" if v is not True else f"--{k}" for k, v in options.items() if v is not None]

    def instance(self, **changes):
        options = {"uuid": harness.new_uuid(), "manager": f"unix:{self.path('m.sock')}", "state": self.path("i.img"),
                   "guest": f"socket:unix:{self.path('i.sock')}"}
        options.update({k.replace("_", "-"): v for k, v in changes.items()})
        return ["--mode=instance"] + [f"--{k}={v}" if v is not True else f"--{k}" for k, v in options.items() if v is not None]

    def test_help_and_version(self):
        for args in (["--help"], ["--mode=manager", "--help"], ["--mode=instance", "--help"]):
            status, text = self.vtpmd(*args)
            self.assertEqual(status, 0, text)
            self.assertIn("--mode", text)
            self.assertLess(max(map(len, text.splitlines())), 140)
        status, text = self.vtpmd("--version")
        self.assertEqual(status, 0)
        self.assertRegex(text, r"^vtpmd \d+\.\d+")

    def test_tis_refusals(self):
        """--tpm=tis where it cannot be: real opens and mappings, on a file in /dev/mem's place that has no TPM, or a CRB part.

        The kernel's driver bound, the fifth, is hardware_tpm_test's in the Xen lab, where the kernel refuses the mapping.
        """
        memory, base, interface_id, did_vid = self.path("mem"), 0xFED40000, 0x30, 0xF00
        with open(memory, "wb") as f:
            f.truncate(base + 0x5000)
        os.chmod(memory, 0o600)
        # A /dev of our own, in a mount namespace: what is there of the machine's, and "mem" if the file is there.
        script = ('mount -t tmpfs -o mode=755 none "$1" && for n in null zero random urandom; do touch "$1/$n" && '
                  'mount --bind "/dev/$n" "$1/$n"; done && if [ -e "$2" ]; then touch "$1/mem" && mount --bind "$2" "$1/mem"; fi && '
                  'mount --rbind "$1" /dev && shift 2 && exec "$@"')
        os.mkdir(self.path("dev"))
        os.chmod(self.dir, 0o755)

        def inside(memory):
            return ["unshare", "--mount", "--propagation=private", "sh", "-c", script, "sh", self.path("dev"), memory]

        args = self.manager(tpm="tis", create=True)
        self.refused(args, harness.EX_NOINPUT, "no /dev/mem", "--tpm=device:/dev/tpm0", prefix=inside("/nonexistent"))
        self.refused(args, harness.EX_NOINPUT, "tis:0xfed40000", "no TPM at this address", prefix=inside(memory))
        self.refused(args, harness.EX_NOPERM, "/dev/mem needs root and CAP_SYS_RAWIO", prefix=inside(memory) + self.NOBODY)
        with open(memory, "r+b") as f:
            f.seek(base + interface_id)
            f.write(struct.pack("<I", 0x1))
            f.seek(base + did_vid)
            f.write(struct.pack("<I", 0x00011AE0))
        self.refused(args, harness.EX_UNAVAILABLE, "CRB", "--tpm=device:/dev/tpm0", prefix=inside(memory))
        self.assertFalse(os.path.exists(self.path("m.img")), "nothing was made")

    def test_wrong_options(self):
        self.refused([], harness.EX_USAGE, "--mode")
        self.refused(["--mode=other"], harness.EX_USAGE, "other", "manager", "instance")
        for mode in ("manager", "instance"):
            self.refused([f"--mode={mode}", "--no-such-thing"], harness.EX_USAGE, "no-such-thing", "--help")
            self.refused([f"--mode={mode}", "--log-level=loud"], harness.EX_USAGE, "loud", "debug")
        self.refused(["--mode=instance"], harness.EX_USAGE, "--uuid")
        self.refused(self.instance(uuid="12345"), harness.EX_USAGE, "12345")
        self.refused(self.instance(tpm_version="3.0"), harness.EX_USAGE, "3.0", r"1\.2", r"2\.0")
        self.refused(self.instance(guest="socket:unix:"), harness.EX_USAGE, "guest")
        self.refused(self.instance(guest="socket:tcp:192.0.2.1:99"), harness.EX_USAGE, "192.0.2.1|loopback")
        self.refused(self.instance(guest="socket:tcp:70000"), harness.EX_USAGE, "70000")
        self.refused(self.instance(guest="carrier-pigeon"), harness.EX_USAGE, "carrier-pigeon", "socket:unix")
        self.refused(self.instance(hwinitpcrs="5,99"), harness.EX_USAGE, "99|23")
        self.refused(self.instance(pcr_banks="sha256,md5"), harness.EX_USAGE, "'md5'", "sha384")
        self.refused(self.instance(pcr_banks="sha1,sha1"), harness.EX_USAGE, "twice")
        self.refused(self.instance(tpm_version="1.2", pcr_banks="sha1"), harness.EX_USAGE, "is a TPM 1.2, which has the SHA-1 bank only")
        with open(self.path("banks.conf"), "w") as f:  # speaks of TPMs 2.0; a wrong one is wrong all the same
            f.write("pcr-banks = sha256,md5\n")
        self.refused(self.instance(tpm_version="1.2", config=self.path("banks.conf")), harness.EX_USAGE, "'md5'")
        self.refused(self.instance(startup="warm"), harness.EX_USAGE, "warm", "clear")
        self.refused(self.instance(manager="tcp:1"), harness.EX_USAGE, "unix:")
        self.refused(self.manager(tpm="soft"), harness.EX_USAGE, "soft", "embedded")
        self.refused(self.manager(seal_pcrs="md5:1"), harness.EX_USAGE, "md5", "sha256")
        self.refused(self.manager(seal_pcrs="sha256:24"), harness.EX_USAGE, "24")
        self.refused(self.manager(freshness="rotten"), harness.EX_USAGE, "rotten", "strict")
        self.refused(self.manager(listen="tcp:9"), harness.EX_USAGE, "unix:")
        self.refused(self.manager(tpm_locality="7"), harness.EX_USAGE, "7")
        self.refused(self.manager(tpm="device:/dev/null", tpm_locality="2", create=True), harness.EX_USAGE, "locality 0 only", "--tpm=tis")

    def test_config_file(self):
        with open(self.path("bad.conf"), "w") as f:
            f.write("# a comment\nseal-pcrs = none\ncolour = blue\n")
        self.refused(["--mode=manager", f"--config={self.path('bad.conf')}"], harness.EX_USAGE, "bad.conf", "colour")
        self.refused(["--mode=manager", f"--config={self.path('none.conf')}"], harness.EX_NOINPUT, "none.conf")
        manager = harness.Manager(self)
        with open(self.path("good.conf"), "w") as f:
            f.write("".join(a[2:].replace("=", " = ", 1) + "\n" if "=" in a else a[2:] + " = true\n"
                            for a in manager.args(create=True)[2:]))
        process = self.spawn("configured", harness.VTPMD, "--mode=manager", f"--config={self.path('good.conf')}")
        process.wait_log("Waiting for commands from vTPMs")
        process.terminate()

    def test_missing_paths(self):
        self.refused(self.manager(), harness.EX_NOINPUT, "m.img", "--create")
        self.refused(self.manager(store=self.path("no", "such", "m.img"), create=True), harness.EX_NOINPUT, "no/such")
        self.refused(self.manager(tpm=f"swtpm:unix:{self.path('nobody.sock')}", create=True), harness.EX_UNAVAILABLE, "nobody.sock")
        self.refused(self.manager(tpm="device:/dev/no-such-tpm", create=True), harness.EX_NOINPUT, "/dev/no-such-tpm")
        self.refused(self.manager(tpm="embedded:/proc/no/such", create=True), harness.EX_NOINPUT, "/proc/no/such")
        harness.Manager(self, name="m", options=[]).start(create=True)
        self.refused(self.instance(), harness.EX_NOINPUT, "--create")

    def test_unwritable_paths(self):
        os.makedirs(self.path("tpm"))
        os.chown(self.path("tpm"), 65534, 65534)
        self.refused(self.manager(create=True), harness.EX_NOPERM, "m.img", prefix=self.NOBODY)
        os.mkdir(self.path("own"))
        os.chown(self.path("own"), 65534, 65534)
        self.refused(self.manager(store=self.path("own", "m.img"), create=True), harness.EX_NOPERM, "m.sock", prefix=self.NOBODY)

    def test_images_that_are_not_ours(self):
        self.a_tpm()
        for content in (b"\x7fELF" + os.urandom(8000), b"hello\n" * 2000, os.urandom(1 << 20)):
            with open(self.path("foreign"), "wb") as f:
                f.write(content)
            for create in (None, True):
                self.refused(self.manager(store=self.path("foreign"), create=create), harness.EX_DATAERR, "foreign")
            with open(self.path("foreign"), "rb") as f:
                self.assertEqual(f.read(), content, "somebody's file was written to")
        manager = harness.Manager(self, name="m").start(create=True)
        with open(self.path("foreign"), "wb") as f:
            f.write(b"hello\n" * 2000)
        for create in (None, True):
            status, text = self.vtpmd(*self.instance(state=self.path("foreign"), create=create))
            self.assertIn(status, (harness.EX_DATAERR, harness.EX_CANTCREAT), text)
            self.assertIn("foreign", text)
        with open(self.path("foreign"), "rb") as f:
            self.assertEqual(f.read(), b"hello\n" * 2000, "somebody's file was written to")
        # The manager's image given to an instance, and the other way round.
        manager.process.terminate()
        manager.start()
        status, text = self.vtpmd(*self.instance(state=manager.store))
        self.assertIn(status, (harness.EX_DATAERR, harness.EX_TEMPFAIL), text)
        instance = harness.Instance(self, manager).start(create=True)
        instance.process.terminate()
        self.refused(self.manager(store=instance.image), harness.EX_DATAERR, re.escape(instance.image))

    def test_port_and_socket_in_use(self):
        manager = harness.Manager(self, name="m").start(create=True)
        first = harness.Instance(self, manager, tcp=True).start(create=True)
        second = harness.Instance(self, manager)
        second.port = first.port
        process = second.launch(create=True)
        self.assertEqual(process.wait(), harness.EX_TEMPFAIL, process.log())
        self.assertIn(str(first.port), process.log())
        third = harness.Instance(self, manager)
        third.socket = first.socket
        process = third.launch(create=True)
        self.assertEqual(process.wait(), harness.EX_TEMPFAIL, process.log())
        self.assertIn(first.socket, process.log())
        with first.client() as guest:
            guest.get_random()
        # A socket that a killed process left behind is in nobody's way.
        first.process.kill()
        first.start()

    def test_manager_not_there(self):
        self.refused(self.instance(create=True), harness.EX_UNAVAILABLE, "m.sock", patience=90 * harness.SLOW)

    def test_a_vtpm_the_manager_does_not_know(self):
        manager = harness.Manager(self, name="m", options=[]).start(create=True)
        status, text = self.vtpmd(*self.instance())
        self.assertEqual(status, harness.EX_NOINPUT, text)
        self.assertIn("--create", text)
        instance = harness.Instance(self, manager).start(create=True)
        self.assertTrue(instance.process.running())

    def test_no_io_uring(self):
        manager = harness.Manager(self, name="m")
        process = manager.launch(create=True, preexec=forbid_io_uring)
        harness.wait_until(lambda: not process.running() or "Waiting for commands" in process.log(), "an outcome")
        if process.running():
            return  # the epoll build works without
        self.assertIn(process.wait(), (harness.EX_UNAVAILABLE, harness.EX_OSERR, harness.EX_NOPERM), process.log())
        self.assertIn("io_uring", process.log())
        self.assertFalse(os.path.exists(manager.store) and os.path.getsize(manager.store), "half-made")

    def test_old_spellings(self):
        """Key=value words as on the stub domains' command lines."""
        manager = harness.Manager(self, name="m")
        manager.options += ["loglevel=debug", "tpmlocality=0", "owner_auth=well-known", "srk_auth=well-known"]
        manager.start(create=True)
        instance = harness.Instance(self, manager, options=["loglevel=info", "hwinitpcrs=none", "maintcmds=0"])
        instance.start(create=True)

    def test_manual_page_agrees_with_help(self):
        with open(os.path.join(SOURCE, "contrib", "man", "vtpmd.8")) as f:
            page = f.read().replace("\\-", "-")
        documented = set(re.findall(r"^\.BR? --([a-z0-9-]+)", page, re.M)) | set(re.findall(r"^\.BI? --([a-z0-9-]+)", page, re.M))
        offered = set()
        for mode in ("manager", "instance"):
            _, text = self.vtpmd(f"--mode={mode}", "--help")
            offered |= set(re.findall(r"^\s+--([a-z0-9-]+)", text, re.M))
        offered |= set(re.findall(r"vtpmd --([a-z]+)", self.vtpmd("--help")[1]))
        self.assertGreater(len(offered), 15)
        self.assertEqual(offered - documented, set(), "options the manual page does not have")
        self.assertEqual(documented - offered, set(), "options that only the manual page has")
        done = subprocess.run(["man", "--warnings", "-l", os.path.join(SOURCE, "contrib", "man", "vtpmd.8")],
                              stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, timeout=60,
                              env=dict(os.environ, LC_ALL="C.UTF-8"))
        self.assertEqual((done.returncode, done.stderr), (0, b""))


if __name__ == "__main__":
    harness.main()
