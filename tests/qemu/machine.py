"""Virtual machines of QEMU (TCG, no KVM needed) whose TPM is a vtpmd instance, with SeaBIOS, Debian's kernel and a small
initial RAM disk. What they are made of, and the way to run commands in them, is the Xen lab's (tests/xen)."""
import base64
import glob
import hashlib
import json
import os
import struct
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.append(os.path.join(HERE, "..", "xen"))
import lab  # noqa: E402
import harness  # noqa: E402
import parts  # noqa: E402

# Debian's kernel has tpm_tis and tpm_crb built in.
TOOLS = ("tpm2_getrandom", "tpm2_getcap", "tpm2_pcrread", "tpm2_pcrextend", "tpm2_createprimary", "tpm2_quote")


def boot_files():
    """(kernel, initrd), made once."""
    image = os.path.join(parts.HERE, "image")
    sources = [*sorted(glob.glob(os.path.join(image, "*"))), *sorted(glob.glob(os.path.join(HERE, "image", "*"))),
               parts.LAB_AGENT, parts.__file__, __file__]
    state = hashlib.sha256(b"".join(open(s, "rb").read() for s in sources)).hexdigest()[:16]
    with parts.locked():
        kernel, initrd = parts.one("boot/vmlinuz-*"), os.path.join(parts.CACHE, f"qemu.{state}.cpio")
        if not os.path.exists(initrd):
            tree = parts.Tree()
            for folder in ("proc", "sys", "dev", "run", "tmp"):
                tree.folder(folder)
            tree.program("/bin/busybox")
            tree.link("sbin", "bin")
            tree.link("lib/x86_64-linux-gnu", "../lib64")
            tree.link("usr", ".")
            parts.add_tpm2_tools(tree)
            for tool in TOOLS:
                tree.link("bin/" + tool, "tpm2")
            tree.program(parts.LAB_AGENT, "bin/agent")
            for source in (os.path.join(image, "await"), os.path.join(HERE, "image", "init")):
                with open(source, "rb") as f:
                    name = os.path.basename(source)
                    tree.file("init" if name == "init" else "bin/" + name, f.read(), 0o755)
            parts.write_whole(initrd, tree.cpio())
    return kernel, initrd


def make_qcow2(path):
    """An empty disk of 1 MiB that can hold snapshots (QEMU's docs/interop/qcow2): header, refcount table, its block, L1 table."""
    cluster = 1 << 16
    header = struct.pack(">4sIQIIQIIQQIIQ", b"QFI\xfb", 2, 0, 0, 16, 1 << 20, 0, 1, 3 * cluster, cluster, 1, 0, 0)
    with open(path, "wb") as f:
        for data in (header, struct.pack(">Q", 2 * cluster), struct.pack(">HHHH", 1, 1, 1, 1), b""):
            f.write(data.ljust(cluster, b"\0"))


class GuestShell(lab.Dom0):
    name = "guest"


class Vtpm(harness.Instance):
    """An instance whose guest is a device model."""

    def __init__(self, case, manager, **kw):
        super().__init__(case, manager, **kw)
        self.control_path = case.path(f"{self.name}.qemu")

    def args(self, create):
        own = f"--guest=socket:unix:{self.socket}"
        return [f"--guest=qemu:{self.control_path}" if a == own else a for a in super().args(create)]

    def control(self):
        import tpm
        return tpm.Control(harness.connect(self.control_path))


class Machine:
    """One QEMU. `options` go to its command line."""

    def __init__(self, case, vtpm, front="crb", name="qemu", options=(), memory=256):
        self.case, self.vtpm, self.front, self.name, self.options, self.memory = case, vtpm, front, name, options, memory
        self.qemu = self.guest = None

    def launch(self):
        case, number = self.case, len(self.case.children)
        # no_timer_check: on a busy machine the emulated timer can be late, and the kernel panics ("IO-APIC + timer does not work").
        kernel, initrd = boot_files()
        self.serial, self.console = case.path(f"com2.{number}"), case.path(f"console.{number}.log")
        self.monitor = case.path(f"qmp.{number}")
        self.qemu = case.spawn(
            self.name, "qemu-system-x86_64", "-M", "q35", "-accel", "tcg", "-cpu", "qemu64,+rdrand", "-smp", "1",
            "-m", str(self.memory), "-nodefaults", "-no-user-config", "-display", "none",
            "-qmp", f"unix:{self.monitor},server=on,wait=off",
            "-chardev", f"file,id=com1,path={self.console}", "-serial", "chardev:com1",
            "-chardev", f"socket,id=com2,path={self.serial},server=on,wait=off", "-serial", "chardev:com2",
            "-kernel", kernel, "-initrd", initrd,
            "-append", "console=ttyS0 quiet panic=-1 no_timer_check mitigations=off cryptomgr.notests apparmor=0 audit=0 random.trust_cpu=on",
            "-chardev", f"socket,id=tpm,path={self.vtpm.control_path}", "-tpmdev", "emulator,id=tpm0,chardev=tpm",
            "-device", f"tpm-{self.front},tpmdev=tpm0", *self.options)
        case.machines.append(self)
        return self

    def power_on(self):
        self.launch()
        self.attach()
        self.guest.wait_ready()
        return self

    def attach(self):
        self.guest = GuestShell(harness.connect(self.serial))

    def qmp(self, command, **arguments):
        """One command of QEMU's machine protocol, on a connection of its own."""
        with harness.connect(self.monitor) as sock, sock.makefile("rw") as stream:
            for number, (name, args) in enumerate([("qmp_capabilities", {}), (command, arguments)]):
                stream.write(json.dumps({"execute": name, "arguments": args, "id": number}) + "\n")
                stream.flush()
                while (answer := json.loads(stream.readline())).get("id") != number:
                    pass
                if "error" in answer:
                    raise AssertionError(f"{self.name}: {name}: {answer['error']}")
            return answer["return"]

    def reboot(self):
        """The guest's own, through the firmware again."""
        self.guest._sock.sendall(b"1 5 script " + base64.b64encode(b"reboot -f") + b"\n")
        self.guest.wait_ready()

    def power_off(self):
        """The guest's own; QEMU ends, and says SHUTDOWN to the vTPM before."""
        self.guest.end()
        if status := self.qemu.wait(lab.PATIENCE):
            raise AssertionError(f"QEMU: exit status {status}")

    def log(self):
        try:
            with open(self.console, errors="replace") as f:
                return f.read()
        except FileNotFoundError:
            return ""


class Case(harness.Case):
    def setUp(self):
        super().setUp()
        self.machines = []

    def _callTestMethod(self, method):
        try:
            super()._callTestMethod(method)
        except BaseException:
            for number, machine in enumerate(self.machines, 1):
                print(f"--- console of machine {number}\n{machine.log()[-3000:]}", file=sys.stderr)
            raise
