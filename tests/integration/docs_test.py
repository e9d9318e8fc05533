#!/usr/bin/python3
"""The operator's pages, tried: every block of docs/operator that is marked "sh run", line by line, on a host of its own.

The host is a mount namespace: /run, /var/lib and /media are empty, the hardware TPM is the embedded one, and systemctl is
a script that starts and stops the manager. On every page but getting-started.md a store is made and the manager runs before.

A comment "<!-- run" of lines is run as well: what happened to the host before.

    UUID             what the last `vtpmctl create` printed
    COMMAND &        in the background; it has to serve
    vtpmd --mode=manager ...   without & or --check: has to serve, and gets Ctrl-C
    COMMAND   # refused: "TEXT"     has to fail, and say so
"""
import os
import pathlib
import re
import signal

import harness

PAGES = pathlib.Path(__file__).resolve().parents[2] / "docs" / "operator"
READY = "Waiting for commands from vTPMs|VTPM attached to"
CONF = "tpm = embedded:/var/lib/vtpmd-tpm\nseal-pcrs = none\n"
SYSTEMCTL = """#!/bin/bash
set -eu
log=/run/vtpmd/manager.log
stop() {
  [ -e /run/vtpmd/manager.pid ] || return 0
  kill "$(cat /run/vtpmd/manager.pid)" 2>/dev/null || true
  while kill -0 "$(cat /run/vtpmd/manager.pid)" 2>/dev/null; do sleep 0.02; done
  rm /run/vtpmd/manager.pid
}
start() {
  : >$log
  setsid vtpmd --mode=manager </dev/null >$log 2>&1 &
  echo $! >/run/vtpmd/manager.pid
  until grep -q "Waiting for commands" $log; do kill -0 $! || { cat $log; exit 1; }; sleep 0.02; done
}
case $1 in start) start ;; stop) stop ;; restart) stop; start ;; *) exit 64 ;; esac
"""


def blocks(page):
    return re.findall(r"^(?:```sh|<!--) run\n(.*?)^(?:```|-->)", page.read_text(), re.M | re.S)


class Page(harness.Case):
    """One namespace for all pages; what one has made is gone before the next."""

    @classmethod
    def setUpClass(cls):
        harness.private_mounts()

    def setUp(self):
        super().setUp()
        bin_dir = self.path("bin")
        os.makedirs(bin_dir)
        for folder in ("/run", "/var/lib", "/media"):
            harness.mount("none", folder, "tmpfs", data="mode=755")
            self.addCleanup(harness.umount, folder)
        for folder in ("/run/vtpmd", "/var/lib/vtpmd", "/var/lib/vtpmd-tpm", "/media/usb"):
            os.makedirs(folder)
        self.script("systemctl", SYSTEMCTL)
        self.script("vtpmd", f"""#!/bin/bash
case " $* " in *--mode=manager*--tpm=*) config=/dev/null ;; *--mode=manager*) config={self.path('manager.conf')} ;; *) config=/dev/null ;; esac
exec {harness.VTPMD} "$@" --config=$config
""")
        os.symlink(os.environ["VTPMCTL"], self.path("bin", "vtpmctl"))
        with open(self.path("manager.conf"), "w", encoding="utf-8") as f:
            f.write(CONF)
        self.env = {"PATH": f"{bin_dir}:{os.environ['PATH']}"}
        self.uuid = None
        self.addCleanup(self.end_everything)

    def script(self, name, text):
        with open(self.path("bin", name), "w", encoding="utf-8") as f:
            f.write(text)
        os.chmod(self.path("bin", name), 0o755)

    def end_everything(self):
        """What the page's commands have left running in our namespace: all of it says where its program is."""
        for pid in filter(str.isdigit, os.listdir("/proc")):
            try:
                if os.readlink(f"/proc/{pid}/ns/mnt") == os.readlink("/proc/self/ns/mnt") and \
                        os.path.samefile(f"/proc/{pid}/exe", harness.VTPMD):
                    os.kill(int(pid), signal.SIGKILL)
            except OSError:
                pass  # it has ended meanwhile

    def serves_and_ends(self, line):
        process = self.spawn("manager", "bash", "-c", f"exec {line}", env=self.env)
        process.wait_log(READY)
        process.popen.send_signal(signal.SIGINT)
        self.assertEqual(process.wait(), 0, process.log())

    def step(self, line):
        command, _, remark = line.partition("  #")
        command = command.strip()
        if self.uuid:
            command = re.sub(r"\bUUID\b", self.uuid, command)
        refused = re.match(r' refused(?:: "(.*)")?', remark)
        if command.endswith("&"):
            self.spawn("background", "bash", "-c", f"exec {command.rstrip('& ')}", env=self.env).wait_log(READY)
        elif command.startswith("vtpmd --mode=manager") and "--check" not in command and not refused:
            self.serves_and_ends(command)
        else:
            status, said = self.run_command("bash", "-euc", command, ok=False, env=self.env)
            if refused:
                self.assertNotEqual(status, 0, f"{line}\n{said}")
                self.assertIn(refused[1] or "", said, line)
                return
            self.assertEqual(status, 0, f"{line}\n{said}")
            if command.startswith("vtpmctl create"):
                self.uuid = re.search(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", said)[0]

    def try_page(self, page):
        if page.name != "getting-started.md":
            self.serves_and_ends("vtpmd --mode=manager --create --recovery-file=/media/usb/vtpmd-recovery")
            self.run_command("systemctl", "start", env={"PATH": self.env["PATH"]})
        for block in blocks(page):
            for line in block.splitlines():
                if line.strip():
                    self.step(line)


def add_pages():
    """A test a page."""
    pages = [p for p in sorted(PAGES.glob("*.md")) if blocks(p)]
    assert len(pages) >= 8, f"pages with commands to try in {PAGES}"
    for page in pages:
        def test(self, page=page):
            self.try_page(page)
        setattr(Page, "test_" + page.stem.replace("-", "_"), test)


add_pages()

if __name__ == "__main__":
    harness.need_root()
    harness.main()
