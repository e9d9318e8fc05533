#!/usr/bin/python3
"""As a service manager starts it: sockets passed in, readiness told, defaults and /etc/vtpmd for everything else."""
import json
import errno
import os
import re
import socket
import subprocess

import harness
import tpm

harness.need_root()
harness.private_mounts()
DATA = 0x01500002


class Activation(harness.Case):
    def setUp(self):
        super().setUp()
        for directory in ("/etc/vtpmd", "/var/lib/vtpmd", "/run/vtpmd"):
            made = not os.path.isdir(directory)
            os.makedirs(directory, exist_ok=True)
            harness.mount("tmpfs", directory, "tmpfs", 0, "mode=0755")
            self.addCleanup(self.unmount, directory, made)
        os.mkdir("/var/lib/vtpmd/tpm")
        self.configure(create=True)
        with open("/etc/vtpmd/instance.conf", "w") as f:
            f.write("create = true\n")
        self.notify_path = self.path("notify")
        self.notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.notify.bind(self.notify_path)
        self.notify.settimeout(harness.PATIENCE)
        self.addCleanup(self.notify.close)
        self.env = {"NOTIFY_SOCKET": self.notify_path}

    def configure(self, create):
        with open("/etc/vtpmd/manager.conf", "w") as f:
            f.write("# an installed host, but for the TPM\ntpm = embedded:/var/lib/vtpmd/tpm\nseal-pcrs = none\n"
                    f"create = {'yes' if create else 'no'}\nauto-create = true\n")

    def unmount(self, directory, made):
        harness.umount(directory)
        if made:
            try:
                os.rmdir(directory)
            except OSError as e:  # a test beside this one has put something there meanwhile
                if e.errno != errno.ENOTEMPTY:
                    raise

    def ready(self, wanted="READY=1"):
        while True:
            text = self.notify.recv(4096).decode()
            if wanted in text.split("\n"):
                return text

    def test_defaults_alone(self):
        """vtpmd --mode=manager and vtpmd --mode=instance --uuid=U, as they stand."""
        uuid = harness.new_uuid()
        manager = self.spawn("manager", harness.VTPMD, "--mode=manager", env=self.env)
        self.ready()
        manager.wait_log("Waiting for commands from vTPMs")
        instance = self.spawn("instance", harness.VTPMD, "--mode=instance", f"--uuid={uuid}", env=self.env)
        self.ready()
        instance.wait_log("VTPM attached to Frontend")
        self.assertEqual(sorted(os.listdir("/var/lib/vtpmd")), sorted(["tpm", "manager.img", f"{uuid}.img"]))
        with tpm.Client(harness.connect(f"/run/vtpmd/{uuid}.sock")) as guest:
            guest.nv_define(DATA, 8)
            guest.nv_write(DATA, b"as it is")
        for p in (instance, manager):
            p.terminate()
            self.ready("STOPPING=1")
        for path in ("/run/vtpmd/manager.sock", f"/run/vtpmd/{uuid}.sock"):
            self.assertFalse(os.path.exists(path), f"{path} left behind")

    def activate(self, address, *args, env=None):
        """systemd-socket-activate: listens, and starts the program at the first connection."""
        passed = [a for k in self.env for a in ("-E", k)]
        return self.spawn("activated", "systemd-socket-activate", *passed, "-l", address, *args, env=self.env)

    def test_sockets_passed_in(self):
        uuid = harness.new_uuid()
        manager = self.activate("/run/vtpmd/manager.sock", harness.VTPMD, "--mode=manager")
        harness.wait_until(lambda: os.path.exists("/run/vtpmd/manager.sock"), "the socket")
        self.assertFalse(os.path.exists("/var/lib/vtpmd/manager.img"), "started before anybody asked")
        instance = self.spawn("instance", harness.VTPMD, "--mode=instance", f"--uuid={uuid}", env=self.env)
        self.ready()
        manager.wait_log("Waiting for commands from vTPMs")
        instance.wait_log("VTPM attached to Frontend")
        with tpm.Client(harness.connect(f"/run/vtpmd/{uuid}.sock")) as guest:
            guest.nv_define(DATA, 8)
            guest.nv_write(DATA, b"as it is")
        # Restarted by the service manager.
        manager.popen.terminate()
        self.assertEqual(manager.wait(), 0)
        if os.path.exists("/run/vtpmd/manager.sock"):
            os.unlink("/run/vtpmd/manager.sock")
        manager = self.activate("/run/vtpmd/manager.sock", harness.VTPMD, "--mode=manager")
        with tpm.Client(harness.connect(f"/run/vtpmd/{uuid}.sock")) as guest:
            guest.nv_write(DATA, b"once mor")
            self.assertEqual(guest.nv_read(DATA), b"once mor")
        instance.terminate()

    def test_both_sockets_by_their_names(self):
        """contrib/systemd's two sockets, which belong to one service: whoever comes first starts it."""
        sockets = {"listen": "/run/vtpmd/manager.sock", "api": "/run/vtpmd/api.sock"}
        units = os.path.join(os.path.dirname(os.path.abspath(__file__)), "../../contrib/systemd")
        for unit, name in (("vtpmd-manager.socket", "listen"), ("vtpmd-api.socket", "api")):
            with open(os.path.join(units, unit)) as f:
                text = f.read()
            self.assertIn(f"\nListenStream={sockets[name]}\n", text)
            self.assertIn(f"\nFileDescriptorName={name}\n", text)
        for order in (["listen", "api"], ["api", "listen"]):
            manager = self.activate(sockets[order[0]], "-l", sockets[order[1]], f"--fdname={':'.join(order)}",
                                    harness.VTPMD, "--mode=manager")
            harness.wait_until(lambda: all(os.path.exists(p) for p in sockets.values()), "the sockets")
            told = self.run_command(os.environ["VTPMCTL"], "status", "--json")[1]
            self.ready()
            self.assertEqual(json.loads(told)["store"], "/var/lib/vtpmd/manager.img")
            uuid = harness.new_uuid()
            instance = self.spawn("instance", harness.VTPMD, "--mode=instance", f"--uuid={uuid}", env=self.env)
            self.ready()
            instance.wait_log("VTPM attached to Frontend")
            self.assertRegex(self.run_command(os.environ["VTPMCTL"], "list")[1], f"{uuid} +2.0 +open")
            instance.terminate()
            self.ready("STOPPING=1")
            manager.popen.terminate()
            self.ready("STOPPING=1")
            self.assertEqual(manager.wait(), 0)
            for path in sockets.values():
                if os.path.exists(path):
                    os.unlink(path)
            self.configure(create=False)

    def test_instance_socket_passed_in(self):
        uuid = harness.new_uuid()
        manager = self.spawn("manager", harness.VTPMD, "--mode=manager", env=self.env)
        self.ready()
        instance = self.activate(f"/run/vtpmd/{uuid}.sock", harness.VTPMD, "--mode=instance", f"--uuid={uuid}")
        with tpm.Client(harness.connect(f"/run/vtpmd/{uuid}.sock")) as guest:
            self.assertEqual(len(guest.get_random(16)), 16)
        self.assertTrue(instance.running() and manager.running())

    def test_units_are_well_formed(self):
        units = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "contrib", "systemd")
        names = sorted(n for n in os.listdir(units) if n.endswith((".service", ".socket")))
        self.assertGreaterEqual(len(names), 3)
        harness.mount("tmpfs", "/run/systemd", "tmpfs") if os.path.isdir("/run/systemd") else None
        # The program as installed: verify looks for it.
        target = self.path("sbin")
        os.mkdir(target)
        copies = []
        for name in names:
            with open(os.path.join(units, name)) as f:
                text = re.sub(r"/usr/(sbin|libexec/vtpmd)/vtpm[\w-]*", harness.VTPMD, f.read())
            copies.append(self.path(name.replace("@", "@x") if name.endswith("@.service") else name))
            with open(copies[-1], "w") as f:
                f.write(text)
        done = subprocess.run(["systemd-analyze", "verify", "--man=no", *copies], capture_output=True, text=True,
                              stdin=subprocess.DEVNULL, timeout=60)
        self.assertEqual((done.returncode, done.stderr.strip()), (0, ""), done.stderr)


if __name__ == "__main__":
    harness.main()
