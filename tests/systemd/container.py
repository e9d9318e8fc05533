"""Hosts for the tests: Debian with its real systemd in a container (systemd-nspawn --boot), the built program installed in it.

The distribution is this machine's own, made once by debootstrap from where the machine gets its packages, and kept in
Meson's build folder (VTPMD_SYSTEMDLAB); so is the program of an earlier version, which is built from the history. A container
is an overlay over both, in the mount namespace of the test, and goes with it.

One at a time: systemd in a container takes the control group that it finds itself in (control_group.py).
"""
import contextlib
import fcntl
import os
import re
import shutil
import signal
import subprocess
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
TOP = os.path.dirname(os.path.dirname(HERE))
sys.path.append(os.path.join(TOP, "tests", "integration"))
import control_group  # noqa: E402
import harness  # noqa: E402
import tpm  # noqa: E402

CACHE = os.environ.get("VTPMD_SYSTEMDLAB", "/var/tmp/vtpmd-systemdlab")
PATIENCE = 3 * harness.PATIENCE
# What the first version put on hosts: upgrades begin there.
LANDED = "02a8a3c00408c10ca37864c86f4d3d51b507aa1c"


def run(*args, **kw):
    done = subprocess.run([str(a) for a in args], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **kw)
    text = done.stdout.decode(errors="replace")
    if done.returncode != 0:
        raise AssertionError(f"{' '.join(map(str, args))}: exit status {done.returncode}\n{text[-4000:]}")
    return text


@contextlib.contextmanager
def locked(name):
    os.makedirs(CACHE, exist_ok=True)
    with open(os.path.join(CACHE, name + ".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def made_once(name, make):
    """A folder of the cache, made whole by make(folder) or not at all."""
    done = os.path.join(CACHE, name)
    with locked(name):
        if not os.path.isdir(done):
            new = done + ".new"
            shutil.rmtree(new, ignore_errors=True)
            os.makedirs(new)
            make(new)
            os.rename(new, done)
    return done


# ---------------------------------------------------------------------------------------------- the distribution

def os_release():
    with open("/etc/os-release") as f:
        return {k: v.strip('"') for k, v in re.findall(r"^(\w+)=(.*)$", f.read(), re.M)}


def mirror():
    """Where this machine gets its own packages (as in tools/lib/common.sh)."""
    release = os_release()
    origin = {"debian": "Debian", "ubuntu": "Ubuntu"}[release["ID"]]
    said = run("apt-get", "indextargets", "--format", "$(ORIGIN) $(CODENAME) $(COMPONENT) $(REPO_URI)", "Created-By: Packages")
    found = re.search(rf"^{origin} {release['VERSION_CODENAME']} main (\S+)$", said, re.M)
    if not found:
        raise AssertionError(f"apt knows no package source of {origin} {release['VERSION_CODENAME']}: are its lists there?")
    return found[1]


def distribution():
    suite = os_release()["VERSION_CODENAME"]

    def make(folder):
        run("debootstrap", "--variant=minbase", "--include=systemd,systemd-sysv,dbus", suite, folder, mirror())
        shutil.rmtree(os.path.join(folder, "var/cache/apt"), ignore_errors=True)
        # Nobody logs in, nothing is fetched in the background.
        for unit in ("console-getty.service", "apt-daily.timer", "apt-daily-upgrade.timer", "dpkg-db-backup.timer",
                     "e2scrub_all.timer", "systemd-logind.service", "sys-fs-fuse-connections.mount", "dev-hugepages.mount"):
            os.symlink("/dev/null", os.path.join(folder, "etc/systemd/system", unit))
    return made_once("root-" + suite, make)


# ---------------------------------------------------------------------------------------------- the program

def libraries(program, root):
    """The shared libraries of `program` that a distribution under `root` lacks."""
    for line in run("ldd", program).splitlines():
        if "not found" in line:
            raise AssertionError(f"{program}: {line.strip()}")
        found = re.match(r"\s*(\S+) => (/\S+) \(0x", line)
        if found and not any(os.path.exists(os.path.join(root, d, found[1])) for d in
                             ("lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu", "lib64", "lib/aarch64-linux-gnu")):
            yield found[2]


def install_tree(build, into):
    """`meson install` of a build directory whose prefix is /usr."""
    run("meson", "install", "-C", build, "--no-rebuild", "--quiet", "--destdir", into)
    if not os.path.exists(os.path.join(into, "usr/sbin/vtpmd")):
        raise AssertionError(f"{build} is not made for /usr: meson setup --reconfigure {build} --prefix=/usr --sysconfdir=/etc")


def built_tree(case):
    """What is built now, installed."""
    tree = os.path.join(CACHE, "tree.now")
    shutil.rmtree(tree, ignore_errors=True)
    install_tree(os.environ["VTPMD_BUILD"], tree)
    return tree


def landed_tree():
    """The first version, built from the history of this repository, as it is."""
    def make(folder):
        source, build = os.path.join(folder, "source"), os.path.join(folder, "build")
        os.makedirs(source)
        git = ["git", "-c", f"safe.directory={TOP}", "-C", TOP]
        with subprocess.Popen([*git, "archive", LANDED], stdout=subprocess.PIPE) as archive:
            run_in = subprocess.run(["tar", "-x", "-C", source], stdin=archive.stdout, check=False)
        if run_in.returncode or archive.returncode:
            raise AssertionError(f"the history here has no {LANDED[:12]}; a shallow clone lacks it: git fetch --unshallow")
        env = dict(os.environ, CCACHE_SLOPPINESS="pch_defines,time_macros", CCACHE_NOHASHDIR="1")
        run("meson", "setup", build, source, "--prefix=/usr", "--sysconfdir=/etc", "-Dtests=false", "-Doptimization=0",
            "-Ddebug=false", "-Dunity=on", "-Dunity_size=48", "-Dwerror=false", env=env)
        run("nice", "-n", "5", "ninja", "-C", build, env=env)
        install_tree(build, os.path.join(folder, "tree"))
        shutil.rmtree(build)
        shutil.rmtree(source)
    return os.path.join(made_once("landed-" + LANDED[:12], make), "tree")


# ---------------------------------------------------------------------------------------------- a host

class Started(harness.Process):
    """What runs in a host: nsenter waits for it, and does not pass signals on."""

    def send(self, number):
        with open(f"/proc/{self.pid}/task/{self.pid}/children") as f:
            os.kill(int(f.read()), number)

    def end(self, number=signal.SIGTERM):
        """It must end well."""
        self.send(number)
        if status := self.wait(PATIENCE):
            raise AssertionError(f"{self.name}: exit status {status}:\n{self.log()[-3000:]}")


class Host:
    """A container with `tree` installed. It is booted by boot(), and again by reboot_under()."""

    def __init__(self, case, trees, name="host"):
        self.case, self.name = case, name
        self.place = case.path(name)
        for part in ("upper", "work", "root"):
            os.makedirs(os.path.join(self.place, part))
        self.root = os.path.join(self.place, "root")
        harness.mount("overlay", self.root, "overlay", 0, f"lowerdir={distribution()},upperdir={self.place}/upper,"
                                                          f"workdir={self.place}/work")
        case.addCleanup(harness.umount, self.root)
        self.nspawn = None
        self.pid = None  # of systemd in it
        self.install(trees)
        self.write("/etc/hostname", name + "\n")

    def write(self, path, text, mode=0o644):
        whole = self.path(path)
        os.makedirs(os.path.dirname(whole), exist_ok=True)
        with open(whole, "w") as f:
            f.write(text)
        os.chmod(whole, mode)

    def path(self, path):
        """A path in the host, for us: while it runs, as it sees it (/run is its own)."""
        return (f"/proc/{self.pid}/root" if self.pid else self.root) + path

    def install(self, tree):
        """Puts an installed tree's files into place as a package manager does: a new file under its name, no file changed."""
        for folder, _, files in os.walk(tree):
            target = self.path(folder[len(tree):] or "/")
            os.makedirs(target, exist_ok=True)
            for name in files:
                shutil.copy2(os.path.join(folder, name), os.path.join(target, name + ".dpkg-new"))
                os.rename(os.path.join(target, name + ".dpkg-new"), os.path.join(target, name))
        for program in ("usr/sbin/vtpmd", "usr/bin/vtpmctl"):
            self.install_libraries(os.path.join(tree, program))

    def install_libraries(self, program):
        folder = self.path("/usr/lib/vtpmd-needs")
        os.makedirs(folder, exist_ok=True)
        for library in libraries(program, self.root):
            if not os.path.exists(os.path.join(folder, os.path.basename(library))):
                shutil.copy2(library, folder)
        self.write("/etc/ld.so.conf.d/vtpmd-needs.conf", "/usr/lib/vtpmd-needs\n")
        run("ldconfig", "-r", self.root)

    def install_tool(self, name):
        """A program of this machine."""
        source = os.path.realpath(shutil.which(name))
        shutil.copy2(source, self.path("/usr/bin/" + os.path.basename(source)))
        if os.path.basename(source) != name:
            os.symlink(os.path.basename(source), self.path("/usr/bin/" + name))
        self.install_libraries(source)

    def install_library(self, name):
        """One that is opened by name, and not at the end of what a program is linked with."""
        found = re.search(rf"^\s*{re.escape(name)} .* => (/\S+)$", run("ldconfig", "-p"), re.M)
        if not found:
            raise AssertionError(f"{name} is not installed")
        shutil.copy2(found[1], self.path("/usr/lib/vtpmd-needs"))
        self.install_libraries(found[1])

    # --- its life

    def boot(self):
        self.pid = None
        self.nspawn = self.case.spawn(
            self.name, "systemd-nspawn", "--quiet", "--directory", self.root, "--register=no", "--keep-unit", "--boot",
            "--console=pipe", "--kill-signal=SIGRTMIN+4", "--link-journal=no", "--private-network",
            "--capability=CAP_IPC_LOCK",
            "--system-call-filter=io_uring_setup io_uring_enter io_uring_register "
            "landlock_create_ruleset landlock_add_rule landlock_restrict_self", "systemd.log_target=journal")
        self.await_boot()
        return self

    def await_boot(self):
        """Its systemd has started everything. What has failed is the test's to find."""
        def find():
            if not self.nspawn.running():
                raise AssertionError(f"the container has ended:\n{self.nspawn.log()[-3000:]}")
            with open(f"/proc/{self.nspawn.pid}/task/{self.nspawn.pid}/children") as f:
                children = f.read().split()
            for child in children:
                with contextlib.suppress(OSError), open(f"/proc/{child}/comm") as f:
                    if f.read().strip() == "systemd":
                        return int(child)
            return None
        self.pid = None
        self.pid = harness.wait_until(find, "systemd in the container", PATIENCE)
        harness.wait_until(lambda: self.sh("systemctl is-system-running", ok=False)[1].strip() in ("running", "degraded"),
                           "the container's boot", PATIENCE)

    def _entered(self, script):
        return ("nsenter", "-t", self.pid, "-m", "-u", "-i", "-n", "-p", "-r", "--", "/usr/bin/env", "-i",
                "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "LC_ALL=C.UTF-8",
                "/bin/bash", "-c", "cd; " + script)

    def sh(self, script, ok=True, patience=PATIENCE):
        """(status, output) of a shell script in it, as root."""
        return self.case.run_command(*self._entered(script), ok=ok, patience=patience)

    def start(self, name, command):
        """A command in it, in the background."""
        return Started(self.case, name, self._entered("exec " + command))

    def reboot_under(self, guests):
        """As an operator reboots it: systemd stops everything, in order, whoever works."""
        self.sh("systemctl reboot", ok=False)
        for guest in guests:
            guest.join(PATIENCE)
            guest.client.close()
        if (status := self.nspawn.wait(PATIENCE)) != 133:  # systemd-nspawn(1): a reboot, where --keep-unit was given
            raise AssertionError(f"the container ended with {status} and not for a reboot:\n{self.nspawn.log()[-3000:]}")
        self.boot()

    def power_off(self):
        self.sh("systemctl poweroff", ok=False)
        self.pid = None
        status = self.nspawn.wait(PATIENCE)
        if status != 0:
            raise AssertionError(f"the container ended with {status}:\n{self.nspawn.log()[-3000:]}")

    def power_cut(self):
        """nspawn's end alone would leave the container running."""
        if self.pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
        self.nspawn.kill()
        self.pid = None

    def journal(self, unit="vtpmd-manager.service"):
        return self.sh(f"journalctl -o short-monotonic --no-hostname -u {unit} --no-pager -n 300", ok=False)[1]


class Case(harness.Case):
    """A test with a host. Its journal is shown if it fails."""

    def setUp(self):
        super().setUp()
        self.hosts = []
        self.addCleanup(self._end)

    def host(self, tree, name="host"):
        host = Host(self, tree, name)
        self.hosts.append(host)
        return host

    @contextlib.contextmanager
    def step(self, name):
        """Part of a story: it ends where a step has failed, and says which."""
        try:
            yield
        except Exception as e:
            raise AssertionError(f"{name}: {e}") from e

    def _callTestMethod(self, method):
        try:
            super()._callTestMethod(method)
        except BaseException:
            for host in self.hosts:
                if host.pid:
                    print(host.journal("'vtpmd*'")[-6000:], file=sys.stderr)
            raise

    def _end(self):
        for host in self.hosts:
            if host.nspawn:
                host.power_cut()


def main():
    """As harness.main(), with a control group that goes when the tests have ended."""
    with locked("one-at-a-time"):
        control_group.run_in_own(harness.main)
