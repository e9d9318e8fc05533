#!/usr/bin/python3
"""A host as its operator has it: installed as README says, its manager restarted, crashed and upgraded under guests that work,
rebooted. Everything by the real systemd (container.py)."""
import json
import os
import re
import signal
import struct
import threading
import time

import container
import attacker
import harness
import tpm

harness.need_root()
harness.private_mounts()
DATA = 0x01500002
CONF = "# no hardware TPM in a container\ntpm = embedded:/var/lib/vtpmd/tpm\nseal-pcrs = none\n"


class Guest(threading.Thread):
    """Writes one number after the other to its TPM, and looks whether the last one is there."""

    def __init__(self, host, uuid, known=0):
        super().__init__(daemon=True)
        self.client = tpm.Client(harness.connect(host.path(f"/run/vtpmd/{uuid}.sock"), container.PATIENCE))
        self.client.sock.settimeout(container.PATIENCE)
        self.uuid, self.number, self.slowest, self.error, self._enough = uuid, known, 0.0, None, threading.Event()
        if known == 0:
            self.client.nv_define(DATA, 8)
        else:
            self.check()
        self.start()

    def check(self):
        """What was acknowledged is there; one more may be, whose answer did not come."""
        found = struct.unpack(">Q", self.client.nv_read(DATA))[0]
        if found not in (self.number, self.number + 1):
            raise AssertionError(f"vTPM {self.uuid}: {found} was read, {self.number} was acknowledged last")

    def run(self):
        while not self._enough.is_set():
            begin = time.monotonic()
            try:
                self.client.nv_write(DATA, struct.pack(">Q", self.number + 1))
                self.number += 1
                self.check()
            except Exception as e:  # pylint: disable=broad-except
                self.error = e
                return
            self.slowest = max(self.slowest, time.monotonic() - begin)
            self._enough.wait(0.01)

    def goes_on(self, changes=3):
        """Some more changes are acknowledged from now on."""
        begin = self.number
        harness.wait_until(lambda: self.error or self.number >= begin + changes, f"changes of vTPM {self.uuid}", container.PATIENCE)
        if self.error:
            raise AssertionError(f"vTPM {self.uuid}, after {self.number} changes: {self.error!r}") from self.error

    def leave(self):
        self._enough.set()
        self.join(container.PATIENCE)
        self.client.close()
        if self.error:
            raise AssertionError(f"vTPM {self.uuid}, after {self.number} changes: {self.error!r}") from self.error
        return self.number


class InstalledHost(container.Case):
    def set_up(self, tree):
        """A host whose store is made and whose manager runs."""
        host = self.host(tree)
        host.write("/etc/vtpmd/manager.conf", CONF)
        host.boot()
        self.make_store(host)
        host.sh("systemctl enable --now vtpmd-manager.service")
        return host

    def make_store(self, host):
        host.sh("systemd-sysusers && systemd-tmpfiles --create && mkdir -p /var/lib/vtpmd/tpm")
        first = host.start("create", "vtpmd --mode=manager --create")
        first.wait_log("Waiting for commands from vTPMs")
        first.end()

    def ctl(self, host, *words):
        return host.sh("vtpmctl " + " ".join(words))[1]

    def new_vtpm(self, host, *options):
        uuid = json.loads(self.ctl(host, "create", "--json", *options))["uuid"]
        self.ctl(host, "start", uuid)
        return uuid

    def state(self, host, uuid):
        return json.loads(self.ctl(host, "show", uuid, "--json"))["state"]

    def await_state(self, host, uuid, wanted):
        harness.wait_until(lambda: self.state(host, uuid) == wanted, f"vTPM {uuid} to be {wanted}", container.PATIENCE)

    def manager_pid(self, host):
        return int(host.sh("systemctl show -P MainPID vtpmd-manager.service")[1])

    def await_manager(self, host, old=None):
        """It is active, another process than `old`, and answers."""
        def ready():
            return host.sh("systemctl is-active --quiet vtpmd-manager.service && vtpmctl status >/dev/null", ok=False)[0] == 0 \
                and self.manager_pid(host) not in (0, old)
        harness.wait_until(ready, "the manager", container.PATIENCE)

    def all_is_active(self, host):
        units = "vtpmd-manager.service vtpmd-manager.socket vtpmd-api.socket"
        self.assertEqual(host.sh(f"systemctl is-active {units}", ok=False)[1].split(), ["active"] * 3, host.journal())
        self.assertEqual(host.sh("systemctl list-units --failed --no-legend --plain 'vtpm*'")[1].strip(), "")

    def test_readme_line_by_line(self):
        """README's "Use it", as it stands there; what `meson install` made is there already."""
        with open(os.path.join(container.TOP, "README.md"), encoding="utf-8") as f:
            section = re.search(r"^## Use it\n(.*?)^## ", f.read(), re.M | re.S)[1]
        lines = [line.split("  #")[0].rstrip() for block in re.findall(r"^```sh\n(.*?)^```", section, re.M | re.S)
                 for line in block.splitlines()]
        host = self.host(container.built_tree(self))
        host.write("/etc/vtpmd/manager.conf", CONF)
        os.makedirs(host.path("/media/usb"))
        for tool in ("tpm2_pcrread", "curl"):
            host.install_tool(tool)
        host.install_library("libtss2-tcti-swtpm.so.0")
        host.boot()
        host.sh("mkdir -p /var/lib/vtpmd/tpm")
        done, uuid, background = [], None, []
        for line in lines:
            with self.step(line):
                if line.startswith(("meson", "ninja")):  # Host.install()
                    continue
                if uuid:
                    line = re.sub(r"\bUUID\b", uuid, line)
                if line.startswith("vtpmd --mode=manager"):
                    first = host.start("first", line)
                    first.wait_log("Waiting for commands from vTPMs")
                    first.end(signal.SIGINT)  # Ctrl-C
                elif line.endswith("&"):
                    background.append(host.start("background", line.rstrip("& ")))
                    background[-1].wait_log("VTPM attached to Frontend")
                else:
                    status, said = host.sh(line, ok=False)
                    self.assertEqual(status, 0, said)
                    if not line.startswith("curl"):  # whose figures have such names
                        self.assertNotRegex(said, "(?i)failed|: refus|error:")
                    if line.startswith("vtpmctl create"):
                        uuid = re.search(r"[0-9a-f]{8}-[0-9a-f-]{27}", said)[0]
                    if "tpm2_pcrread" in line:
                        self.assertRegex(said, r"23\s*: 0x0{64}")
                done.append(line)
        self.assertGreaterEqual(len(done), 9)
        self.all_is_active(host)
        for process in background:
            process.end()

    def test_units_are_well_formed(self):
        host = self.host(container.built_tree(self)).boot()
        status, said = host.sh("cd /usr/lib/systemd/system && systemd-analyze verify --man=no $(ls vtpm*.service vtpm*.socket | "
                               "sed 's/@\\./@x./')", ok=False)
        self.assertEqual((status, said.strip()), (0, ""))
        # systemd's own measure, from 0 to 10: 1.5 for what holds a guest's TPM, and none "UNSAFE" (9) or near it.
        units = host.sh("cd /usr/lib/systemd/system && ls vtpm*.service")[1].split()
        self.assertEqual(len(units), 5, units)
        for unit in units:
            with self.step(unit):
                said = host.sh(f"systemd-analyze security --offline=true --json=off --no-pager /usr/lib/systemd/system/{unit}")[1]
                exposure = float(re.search(r"Overall exposure level for \S+: ([0-9.]+)", said)[1])
                self.assertLessEqual(exposure, 1.5 if "@" in unit else 4, said)

    def test_code_inside_an_instance(self):
        """It has the rights that the manager's unit leaves to an instance."""
        host = self.set_up(container.built_tree(self))
        mine, other = self.new_vtpm(host), self.new_vtpm(host)
        pids = {"manager": self.manager_pid(host)}
        for name, uuid in (("me", mine), ("peer", other)):
            self.await_state(host, uuid, "running")
            pids[name] = json.loads(self.ctl(host, "show", uuid, "--json"))["pid"]
        status, peers = (attacker.status_of(pids[name], host.path("/proc")) for name in ("me", "peer"))
        self.assertGreaterEqual(int(status["Uid"][0]), 1880000000)
        self.assertNotEqual(status["Uid"], peers["Uid"])
        self.assertEqual([int(status[name][0], 16) for name in ("CapPrm", "CapEff", "CapBnd", "CapAmb")], [0] * 4)
        self.assertEqual((status["NoNewPrivs"], status["Seccomp"]), (["1"], ["2"]))
        self.assertIn("seccomp", json.loads(self.ctl(host, "show", mine, "--json"))["sandbox"])
        places = attacker.Places(state="/var/lib/vtpmd", run="/run/vtpmd", store="/var/lib/vtpmd/manager.img", tpm="/var/lib/vtpmd/tpm",
                                 manager="/run/vtpmd/manager.sock", api="/run/vtpmd/api.sock")
        attacker.refuses_everything(self, int(status["Uid"][0]), places, mine, other, pids, inside=host.pid)
        guest = Guest(host, other)  # nobody has noticed
        guest.goes_on()
        guest.leave()

    def test_the_manager_comes_and_goes(self):
        """Restarted five times in a minute, killed, stopped and started; then the host is rebooted."""
        host = self.set_up(container.built_tree(self))
        self.all_is_active(host)
        wanted = self.new_vtpm(host)
        with self.step("sandbox"):
            def shown():
                return json.loads(self.ctl(host, "show", wanted, "--json"))
            rights = r"^user 188\d{7}, no capabilities, no new privileges, seccomp$"
            harness.wait_until(lambda: re.search(rights, shown()["sandbox"]), "the sandbox", container.PATIENCE)
            self.assertNotIn("not to be had here", host.journal())
            self.assertEqual(host.sh(f"readlink /proc/{shown()['pid']}/root")[1].strip(), "/run/vtpmd/instances")
        by_unit = json.loads(self.ctl(host, "create", "--json"))["uuid"]
        host.sh(f"mkdir -p /etc/vtpmd && echo 'create = true' >/etc/vtpmd/instance.conf && systemctl enable --now vtpmd-instance@{by_unit}")
        guests = [Guest(host, wanted), Guest(host, by_unit)]
        for i in range(5):
            with self.step(f"restart {i}"):
                host.sh("systemctl restart vtpmd-manager.service")
                for guest in guests:
                    guest.goes_on()
        self.all_is_active(host)
        self.await_state(host, wanted, "running")
        with self.step("crash"):
            old = self.manager_pid(host)
            host.sh("systemctl kill --kill-whom=main -s KILL vtpmd-manager.service")
            self.await_manager(host, old)
            for guest in guests:
                guest.goes_on()
            self.all_is_active(host)
            self.await_state(host, wanted, "running")
        with self.step("stopped and started"):
            host.sh("systemctl stop vtpmd-manager.service", ok=False)
            self.assertEqual(host.sh("systemctl is-active vtpmd-manager.service", ok=False)[1].strip(), "inactive")
            host.sh("systemctl start vtpmd-manager.service")
            for guest in guests:
                guest.goes_on()
            self.all_is_active(host)
        with self.step("stopped is stopped"):
            # Supervised again: it can be stopped, and started.
            self.await_state(host, wanted, "running")
            known = guests[0].leave()
            self.ctl(host, "stop", wanted)
            self.await_state(host, wanted, "stopped")
            self.ctl(host, "start", wanted)
            guests[0] = Guest(host, wanted, known)
        unwanted = self.new_vtpm(host)
        Guest(host, unwanted).leave()
        self.ctl(host, "stop", unwanted)
        with self.step("reboot"):
            for guest in guests:
                guest.goes_on()
            host.reboot_under(guests)
            self.await_manager(host)
            self.all_is_active(host)
            for guest in guests:
                again = Guest(host, guest.uuid, guest.number)
                again.goes_on()
                again.leave()
            self.await_state(host, wanted, "running")
            self.assertEqual(self.state(host, unwanted), "stopped")
        host.power_off()

    def test_upgrade_from_the_first_version(self):
        """Old program, manager and instances; the new one is installed, the manager restarted, guests go on; then the instances
        one by one."""
        host = self.set_up(container.landed_tree())
        host.sh("systemctl enable vtpmd-api.socket")
        host.sh("echo 'create = true' >/etc/vtpmd/instance.conf")
        uuids = [json.loads(self.ctl(host, "create", "--json"))["uuid"] for _ in range(2)]
        for uuid in uuids:
            host.sh(f"systemctl enable --now vtpmd-instance@{uuid}")
        kept = self.new_vtpm(host)
        guests = [Guest(host, uuid) for uuid in uuids]
        other = Guest(host, kept)
        for guest in (*guests, other):
            guest.goes_on()
        known = other.leave()  # the first version's manager ends its instances with itself
        host.install(container.built_tree(self))
        host.sh("systemctl daemon-reload && systemctl enable vtpmd-manager.service && systemctl restart vtpmd-manager.service")
        self.await_manager(host)
        for guest in guests:
            guest.goes_on()
        for guest in guests:
            number = guest.leave()
            host.sh(f"systemctl restart vtpmd-instance@{guest.uuid}")
            again = Guest(host, guest.uuid, number)
            again.goes_on()
            again.leave()
        self.ctl(host, "start", kept)
        other = Guest(host, kept, known)
        other.goes_on()
        other.leave()
        exe = host.sh("for p in /proc/[0-9]*; do readlink $p/exe; done | grep vtpmd")[1].splitlines()
        self.assertEqual(set(exe), {"/usr/sbin/vtpmd"}, "an old program runs on")
        self.assertEqual(len(exe), 4)


if __name__ == "__main__":
    container.main()
