"""What the lab's machine is made of: Xen, kernels, tools and the built program, as files that QEMU boots.

Debian's packages are downloaded (apt-get download) and unpacked into a cache, nothing is installed. What they need of
shared libraries comes from this machine, as does the program under test. The cache lasts between runs; it lies where
VTPMD_XENLAB says (Meson's build folder), else in /var/tmp.
"""
import contextlib
import fcntl
import glob
import gzip
import hashlib
import lzma
import os
import re
import shutil
import stat
import struct
import subprocess
import zlib

HERE = os.path.dirname(os.path.abspath(__file__))
CACHE = os.environ.get("VTPMD_XENLAB", "/var/tmp/vtpmd-xenlab")
LAB_AGENT = os.environ.get("VTPMD_LAB_AGENT", "build/tests/xen/lab_agent")
TPM_FRONT = os.environ.get("VTPMD_TPM_FRONT", "build/tests/xen/tpm_front")
XEN_GUEST = os.path.join(HERE, "..", "..", "contrib", "xl", "vtpmd-xen-guest")
VTPM_PROXY = os.environ.get("VTPMD_VTPM_PROXY", "build/tools/vtpm-proxy/vtpm-proxy")

# Of the kernel's modules, with what they depend on: in every domain, in dom0 only.
MODULES = ("xen-privcmd", "xenfs", "xen-evtchn", "xen-gntdev", "xen-gntalloc", "xen-tpmfront", "tpm_vtpm_proxy", "tcp_diag")
DOM0_MODULES = ("virtio_pci", "virtio_blk", "crc32c_generic", "ext4")
# init loads these; the others wait for a test. xenfs without xen-privcmd before it does not work.
LOADED = ("xen-privcmd", "xenfs", "xen-evtchn", "xen-gntdev", "xen-gntalloc", "tcp_diag", *DOM0_MODULES)


def run(*args, **kw):
    done = subprocess.run(args, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **kw)
    if done.returncode != 0:
        raise AssertionError(f"{' '.join(args)}: exit status {done.returncode}\n{done.stdout.decode(errors='replace')[-2000:]}")
    return done.stdout.decode(errors="replace")


def write_whole(path, data):
    """A file that is there with all it should hold, or not at all."""
    with open(path + ".new", "wb") as f:
        f.write(data)
    os.rename(path + ".new", path)


@contextlib.contextmanager
def locked():
    """The cache, for one test at a time."""
    os.makedirs(CACHE, exist_ok=True)
    with open(os.path.join(CACHE, "lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


# ---------------------------------------------------------------------------------------------- packages

def dependency(package, pattern):
    """The name of the package that a meta package stands for."""
    found = re.search(rf"^ *Depends: ({pattern})$", run("apt-cache", "depends", package), re.M)
    if not found:
        raise AssertionError(f"apt knows no {pattern} behind {package}: are its package lists there?")
    return found[1]


def package_names():
    hypervisor = dependency("xen-system-amd64", r"xen-hypervisor-[0-9.]+-amd64")
    version = hypervisor.split("-")[2]
    return [dependency("linux-image-amd64", r"linux-image-[0-9].*"), hypervisor, f"xen-utils-{version}", "xenstore-utils"]


def packages():
    """The folder with the unpacked packages in it, downloaded the first time."""
    done = os.path.join(CACHE, "packages")
    if not os.path.isdir(done):
        new = done + ".new"
        shutil.rmtree(new, ignore_errors=True)
        os.makedirs(new)
        try:
            names = package_names()
        except AssertionError:  # a machine whose lists were thrown away, as in container images
            run(*(() if os.geteuid() == 0 else ("sudo", "-n")), "apt-get", "-qq", "update")
            names = package_names()
        run("apt-get", "-qq", "-o", "APT::Sandbox::User=root", "download", *names, cwd=new)
        for deb in glob.glob(os.path.join(new, "*.deb")):
            run("dpkg", "-x", deb, os.path.join(new, "root"))
            os.unlink(deb)
        os.rename(new, done)
    return os.path.join(done, "root")


def one(pattern):
    found = glob.glob(os.path.join(packages(), pattern), recursive=True)
    if len(found) != 1:
        raise AssertionError(f"{pattern} in the packages: {len(found)} files, 1 expected")
    return found[0]


def kernel_payload(image):
    """The ELF file inside a bzImage (Linux's Documentation/arch/x86/boot.rst: setup_sects, payload_offset and _length):
    unpacking XZ costs seconds on an emulated processor."""
    with open(image, "rb") as f:
        data = f.read()
    if data[0x202:0x206] == b"\x7fELF" or data[0x1FE:0x200] != b"\x55\xaa":
        raise AssertionError(f"{image} is no bzImage")
    offset, length = struct.unpack_from("<II", data, 0x248)
    start = (data[0x1F1] + 1) * 512 + offset
    payload = data[start:start + length]
    if payload[:6] == b"\xfd7zXZ\0":
        elf = lzma.LZMADecompressor().decompress(payload)
    elif payload[:2] == b"\x1f\x8b":
        elf = zlib.decompressobj(31).decompress(payload)
    elif payload[:4] == b"\x28\xb5\x2f\xfd":
        elf = subprocess.run(["zstd", "-dc"], input=payload, stdout=subprocess.PIPE, check=False).stdout
    else:
        raise AssertionError(f"{image}: packed in a way that is not known here ({payload[:6].hex()})")
    if elf[:4] != b"\x7fELF":
        raise AssertionError(f"{image}: no ELF file in it")
    return elf


# ---------------------------------------------------------------------------------------------- file trees

class Tree:
    """Files of an initial RAM disk, by their path in it; written in the "newc" form
    (Linux's Documentation/driver-api/early-userspace/buffer-format.rst)."""

    def __init__(self):
        self.entries = {}  # path without a leading slash: (mode, bytes)

    def folder(self, path):
        while path and path not in self.entries:
            self.entries[path] = (stat.S_IFDIR | 0o755, b"")
            path = os.path.dirname(path)

    def file(self, path, data, mode=0o644):
        self.folder(os.path.dirname(path))
        self.entries[path] = (stat.S_IFREG | mode, data)

    def link(self, path, target):
        self.folder(os.path.dirname(path))
        self.entries[path] = (stat.S_IFLNK | 0o777, target.encode())

    def program(self, source, path=None):
        """A program or a library that is opened by name, with the libraries it is linked with."""
        with open(source, "rb") as f:
            data = f.read()
        if path is None:
            path = "bin/" + os.path.basename(source)
        self.file(path, data, 0o755)
        if data[:4] != b"\x7fELF":
            return
        listing = subprocess.run(["ldd", source], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False).stdout.decode()
        for line in listing.splitlines():
            if "not found" in line:
                raise AssertionError(f"{source}: {line.strip()}")
            if found := re.match(r"\s*(?:\S+ => )?(/\S+) \(0x", line):
                with open(found[1], "rb") as f:
                    self.file("lib64/" + os.path.basename(found[1]), f.read(), 0o755)

    def cpio(self):
        """The archive; a boot loader may append another, which adds to it."""
        out = bytearray()

        def entry(number, name, mode, data):
            fields = (number, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name) + 1, 0)
            out.extend(b"070701" + b"".join(b"%08X" % f for f in fields) + name.encode() + b"\0")
            out.extend(bytes(-len(out) % 4))
            out.extend(data)
            out.extend(bytes(-len(out) % 4))
        for number, path in enumerate(sorted(self.entries), 1):
            entry(number, path, *self.entries[path])
        entry(0, "TRAILER!!!", 0, b"")
        return bytes(out)


def add_modules(tree, names):
    """Modules in the order to load them, listed in lib/modules/order (those of LOADED, and what they need)."""
    folder = one("lib/modules/*") if os.path.isdir(os.path.join(packages(), "lib/modules")) else one("usr/lib/modules/*")
    files = {re.sub(r"\.ko(\.xz|\.zst|\.gz)?$", "", os.path.basename(f)).replace("-", "_"): f
             for f in glob.glob(os.path.join(folder, "kernel/**/*.ko*"), recursive=True)}
    order, loaded = [], []

    def add(name, load):
        name = name.replace("-", "_")
        if name not in files:
            raise AssertionError(f"the kernel has no module {name}")
        source = files[name]
        if source.endswith(".zst"):
            data = subprocess.run(["zstd", "-dc", source], stdout=subprocess.PIPE, check=True).stdout
        else:
            opener = {".xz": lzma.open, ".gz": gzip.open}.get(os.path.splitext(source)[1], open)
            with opener(source, "rb") as f:
                data = f.read()
        needs = re.search(rb"\0depends=([^\0]*)\0", data)
        for need in (needs[1].decode().split(",") if needs and needs[1] else ()):
            add(need, load)
        if name not in order:
            order.append(name)
            tree.file(f"lib/modules/{name}.ko", data)
        if load and name not in loaded:
            loaded.append(name)
    for name in names:
        add(name, name in LOADED)
    tree.file("lib/modules/order", "".join(f"{n}\n" for n in loaded).encode())


def add_scripts(tree):
    """init, what the tests run in the lab's domains, and the agent that runs it for them."""
    tree.program(LAB_AGENT, "bin/agent")
    for name in os.listdir(os.path.join(HERE, "image")):
        with open(os.path.join(HERE, "image", name), "rb") as f:
            tree.file("init" if name == "init" else "bin/" + name, f.read(), 0o755)


def add_vtpmd(tree, vtpmd):
    """The program under test, without the tables for debuggers, which are ten times its size."""
    stripped = os.path.join(CACHE, "vtpmd")
    run("strip", "-o", stripped, vtpmd)
    tree.program(stripped)


def base_tree(modules):
    tree = Tree()
    for folder in ("proc", "sys", "dev", "run", "tmp", "mnt", "etc/xen", "var/lib", "var/log"):
        tree.folder(folder)
    tree.program("/bin/busybox")
    tree.link("sbin", "bin")
    tree.link("usr", ".")
    tree.link("lib/x86_64-linux-gnu", "../lib64")
    tree.program(one("usr/bin/xenstore"))
    add_modules(tree, modules)
    add_scripts(tree)
    return tree


def add_tpm2_tools(tree):
    """tpm2-tools is one program of many names; its way to a device is a library opened by name."""
    tree.program(os.path.realpath(shutil.which("tpm2") or "/usr/bin/tpm2"), "bin/tpm2")
    for tool in ("tpm2_getrandom", "tpm2_getcap", "tpm2_pcrread", "tpm2_createprimary"):
        tree.link("bin/" + tool, "tpm2")
    tcti = sorted(glob.glob("/usr/lib/x86_64-linux-gnu/libtss2-tcti-device.so*"))
    if not tcti:
        raise AssertionError("libtss2-tcti-device is not installed")
    tree.program(tcti[0], "lib64/libtss2-tcti-device.so.0")


class Parts:
    """The files to boot: xen, kernel, initrd (dom0's). Made anew only where what they are made of has changed."""

    def __init__(self, vtpmd):
        with locked():
            self.xen, self.kernel = os.path.join(CACHE, "xen"), os.path.join(CACHE, "vmlinux")
            self.initrd = os.path.join(CACHE, "dom0.cpio")
            packages()
            if not os.path.exists(self.kernel):
                elf = kernel_payload(one("boot/vmlinuz-*"))
                write_whole(self.kernel, elf)
            if not os.path.exists(self.xen):
                with gzip.open(one("boot/xen-*.gz")) as f:
                    write_whole(self.xen, f.read())
            self._initrd(vtpmd)

    def _initrd(self, vtpmd):
        sources = [vtpmd, LAB_AGENT, TPM_FRONT, VTPM_PROXY, XEN_GUEST, *sorted(glob.glob(os.path.join(HERE, "image", "*"))),
                   os.path.abspath(__file__)]
        state = hashlib.sha256(repr([(s, os.stat(s).st_mtime_ns, os.stat(s).st_size) for s in sources]).encode()).hexdigest()
        stamp = os.path.join(CACHE, "initrd.made-of")
        with contextlib.suppress(FileNotFoundError):
            with open(stamp) as f:
                if f.read() == state and os.path.exists(self.initrd):
                    return
        guest = base_tree(MODULES)
        add_vtpmd(guest, vtpmd)  # for a driver domain, and for tests that play a front end
        add_tpm2_tools(guest)
        guest.program(TPM_FRONT)
        guest.program(VTPM_PROXY)
        guest.program(XEN_GUEST)
        tree = base_tree(MODULES + DOM0_MODULES)
        add_vtpmd(tree, vtpmd)
        for name in ("xl", "xenstored", "xenconsoled", "xen-init-dom0"):
            tree.program(one(f"usr/lib/xen-*/bin/{name}"))
        helper = one("usr/lib/xen-*/bin/libxl-save-helper")  # xl finds it by its path only
        tree.program(helper, "lib" + helper.split("/usr/lib")[-1])
        tree.program("/lib/x86_64-linux-gnu/libgcc_s.so.1", "lib64/libgcc_s.so.1")  # xl: pthread_cancel opens it by name
        tree.file("etc/xen/xl.conf", b'autoballoon="off"\n')
        # As they are: unpacking costs seconds a guest on an emulated processor.
        with open(self.kernel, "rb") as f:
            tree.file("boot/vmlinux", f.read())
        tree.file("boot/guest.cpio", guest.cpio())
        write_whole(self.initrd, tree.cpio())
        write_whole(stamp, state.encode())
