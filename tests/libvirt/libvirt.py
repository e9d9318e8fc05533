"""Debian's libvirt for the tests, without systemd: its own configuration and folders over the host's, in the mount namespace
of the test; a domain that is SeaBIOS and a TPM, and says what SeaBIOS did."""
import os
import re
import shutil
import subprocess
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.append(os.path.join(HERE, "..", "integration"))
import control_group  # noqa: E402
import harness  # noqa: E402

PATIENCE = 3 * harness.PATIENCE
CONF = """user = "root"
group = "root"
swtpm_user = "root"
swtpm_group = "root"
security_driver = "none"
cgroup_controllers = []
namespaces = []
stdio_handler = "file"
remember_owner = 0
"""
CACHE = "/var/cache/libvirt"
OTHER = "/usr/bin/qemu-system-i386"
FOLDERS = ("/var/lib/libvirt", "/run/libvirt", "/var/log/libvirt", "/var/log/swtpm", "/etc/libvirt", CACHE)
# SeaBIOS's last words where there is nothing to boot: what it does to a TPM is done.
DONE = "No bootable device."


class Libvirt:
    """libvirtd, and virsh to talk to it. `env` goes to what libvirtd starts, too."""

    def __init__(self, case, env=None):
        self.case, self.env = case, env
        for folder in FOLDERS:
            if folder == CACHE and os.path.ismount(folder):
                continue  # what QEMU told libvirtd, which takes seconds, stays for the next test
            made = [folder]  # what is not there is made, and goes again
            while not os.path.isdir(os.path.dirname(made[-1])):
                made.append(os.path.dirname(made[-1]))
            made = [] if os.path.isdir(folder) else made
            os.makedirs(folder, exist_ok=True)
            harness.mount("tmpfs", folder, "tmpfs", 0, "mode=0755")
            if folder != CACHE:
                case.addCleanup(self.unmount, folder, made)
        if os.path.isfile(OTHER) and not os.path.islink(OTHER):  # one emulator less to be asked what it can do
            harness.mount("/dev/null", OTHER, None, harness.MS_BIND)
            case.addCleanup(harness.umount, OTHER)
        for part in ("qemu/autostart", "qemu/networks"):
            os.makedirs(f"/etc/libvirt/{part}")
        for name, text in (("qemu.conf", CONF), ("libvirtd.conf", 'auth_unix_rw = "none"\n'), ("virtlogd.conf", ""),
                           ("libvirt.conf", "")):
            with open(f"/etc/libvirt/{name}", "w") as f:
                f.write(text)
        self.log = case.spawn("virtlogd", "virtlogd")
        self.daemon = None
        self.start()

    @staticmethod
    def unmount(folder, made):
        harness.umount(folder)
        for each in made:
            os.rmdir(each)

    def start(self):
        self.daemon = self.case.spawn("libvirtd", "libvirtd", "--timeout", "0", env=self.env)
        harness.wait_until(lambda: self.virsh("version", ok=False)[0] == 0, "libvirtd", PATIENCE)

    def restart(self):
        self.daemon.popen.terminate()
        self.daemon.wait(PATIENCE)
        self.start()

    def virsh(self, *words, ok=True):
        return self.case.run_command("virsh", "--quiet", "--connect", "qemu:///system", *words, ok=ok, patience=PATIENCE)


class Domain:
    """A machine of SeaBIOS alone, which starts its TPM as firmware does, and measures."""

    def __init__(self, libvirt, name, tpm, model="tpm-crb"):
        self.libvirt, self.case, self.name = libvirt, libvirt.case, name
        self.uuid = harness.new_uuid()
        self.xml = self.case.path(name + ".xml")
        self.firmware = self.case.path(name + ".seabios")
        with open(self.xml, "w") as f:
            f.write(f"""<domain type='qemu'>
  <name>{name}</name><uuid>{self.uuid}</uuid>
  <memory unit='MiB'>32</memory><vcpu>1</vcpu>
  <os><type arch='x86_64' machine='q35'>hvm</type></os>
  <features><acpi/></features>
  <devices>
    <emulator>{shutil.which("qemu-system-x86_64")}</emulator>
    <controller type='usb' model='none'/>
    <memballoon model='none'/>
    <serial type='file'>
      <source path='{self.firmware}' append='on'/>
      <target type='isa-debug' port='0'><model name='isa-debugcon'/></target>
      <address type='isa' iobase='0x402'/>
    </serial>
    <tpm model='{model}'>{tpm}</tpm>
  </devices>
</domain>
""")

    def virsh(self, command, *words, ok=True):
        return self.libvirt.virsh(command, self.name, *words, ok=ok)

    def define(self):
        self.libvirt.virsh("define", self.xml)
        return self

    def state(self):
        return self.virsh("domstate")[1].strip()

    def pid(self):
        """Of its QEMU."""
        with open(f"/run/libvirt/qemu/{self.name}.pid") as f:
            return int(re.sub(r"\s", "", f.read()))

    def kill(self):
        """QEMU is gone, and libvirt knows."""
        subprocess.run(["kill", "-KILL", str(self.pid())], check=True)
        harness.wait_until(lambda: self.state() == "shut off", "libvirt to notice that QEMU has gone", PATIENCE)

    def gone(self):
        self.virsh("destroy", ok=False)

    # --- the firmware

    def boots(self):
        """How often the firmware has done all that it does."""
        try:
            with open(self.firmware, errors="replace") as f:
                return f.read().count(DONE)
        except FileNotFoundError:
            return 0

    def boot(self, command, *words):
        """A command of virsh that the firmware starts after, once more."""
        before = self.boots()
        self.virsh(command, *words)
        self.await_boot(before)

    def await_boot(self, before):
        harness.wait_until(lambda: self.boots() > before, "SeaBIOS", PATIENCE)


def external(path):
    return f"<backend type='external'><source type='unix' mode='connect' path='{path}'/></backend>"


def emulator(version):
    return f"<backend type='emulator' version='{version}'/>"


def main():
    """As harness.main(). QEMU is no child of the test: it ends with the test's control group."""
    control_group.run_in_own(harness.main)
