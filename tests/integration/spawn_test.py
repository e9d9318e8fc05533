#!/usr/bin/python3
"""--spawn: the manager starts the instances it knows, starts one again that died, and with --stop-instances takes them along when it
stops."""
import os
import signal
import socket
from unittest import mock

import harness
import tpm
from store_case import Stored

VTPMCTL = os.environ["VTPMCTL"]
DATA = 0x01500002


class Spawn(harness.Case):
    def children_of(self, process):
        """{uuid: pid} of the instances that run."""
        with open(f"/proc/{process.pid}/task/{process.pid}/children") as f:
            pids = f.read().split()
        found = {}
        for pid in pids:
            try:
                with open(f"/proc/{pid}/cmdline", "rb") as f:
                    words = f.read().decode().split("\0")
            except OSError:
                continue
            for word in words:
                if word.startswith("--uuid="):
                    found[word[7:]] = int(pid)
        return found

    def test_an_instance_does_not_speak_to_the_managers_service_manager(self):
        manager = harness.Manager(self).start(create=True)
        uuid = harness.new_uuid()
        harness.Instance(self, manager, uuid=uuid, name=uuid).start(create=True).process.terminate()
        manager.process.terminate()
        heard = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.addCleanup(heard.close)
        heard.bind(self.path("notify"))
        heard.settimeout(harness.PATIENCE)
        os.mkdir(self.path("run"))
        manager.options += ["--spawn", "--stop-instances", f"--run-dir={self.path('run')}"]
        with mock.patch.dict(os.environ, {"NOTIFY_SOCKET": self.path("notify")}):
            manager.start()
        self.assertIn(b"READY=1", heard.recv(4096))
        pid = harness.wait_until(lambda: self.children_of(manager.process).get(uuid), "the instance")
        with open(f"/proc/{pid}/environ", "rb") as f:
            self.assertNotIn(b"NOTIFY_SOCKET", f.read())
        manager.process.terminate()  # and its instance with it

    def test_the_state_directory_is_made_or_the_start_refused(self):
        """Not noticed months later, when the first instance is to be started."""
        images = self.path("images")
        os.mkdir(self.path("run"))
        manager = harness.Manager(self, options=["--auto-create", "--spawn", f"--run-dir={self.path('run')}"])
        manager.state_dir = images
        manager.start(create=True)
        self.assertEqual(os.stat(images).st_mode & 0o7776, 0o700)  # instances of users of their own may pass through it
        self.assertIn(f"{images}: made", manager.process.log())
        manager.process.terminate()
        os.rmdir(images)
        with open(images, "w"):
            pass
        process = manager.launch()
        self.assertEqual(process.wait(), harness.EX_USAGE, process.log())
        self.assertIn("it is no directory", process.log())
        manager.state_dir = self.path("volume", "images")  # of a volume that is not mounted
        process = manager.launch()
        self.assertNotEqual(process.wait(), 0)
        self.assertIn(f"neither it nor {self.path('volume')} is there", process.log())
        self.assertFalse(os.path.exists(self.path("volume")))

    def test_spawned_instances(self):
        manager = harness.Manager(self).start(create=True)
        uuids = [harness.new_uuid() for _ in range(3)]
        for uuid in uuids:
            instance = harness.Instance(self, manager, uuid=uuid, name=uuid).start(create=True)
            with instance.client() as guest:
                guest.nv_define(DATA, 16)
                guest.nv_write(DATA, uuid[:16].encode())
            instance.process.terminate()
        manager.process.terminate()

        manager.options += ["--spawn", "--stop-instances", f"--run-dir={self.path('run')}"]
        os.mkdir(self.path("run"))
        manager.start()
        harness.wait_until(lambda: set(self.children_of(manager.process)) == set(uuids), "three instances")
        for uuid in uuids:
            with tpm.Client(harness.connect(self.path("run", uuid + ".sock"))) as guest:
                self.assertEqual(guest.nv_read(DATA, 16), uuid[:16].encode())

        # One dies and is there again, with its state and nobody else's; the others do not notice.
        before = self.children_of(manager.process)
        os.kill(before[uuids[0]], signal.SIGKILL)
        again = harness.wait_until(lambda: (c := self.children_of(manager.process)) and c.get(uuids[0], before[uuids[0]])
                                   != before[uuids[0]] and c, "it is started again")
        self.assertEqual({u: again[u] for u in uuids[1:]}, {u: before[u] for u in uuids[1:]})

        def answers():
            try:
                with tpm.Client(harness.connect(self.path("run", uuids[0] + ".sock"))) as guest:
                    return guest.nv_read(DATA, 16)
            except (ConnectionError, tpm.TpmError):
                return None
        self.assertEqual(harness.wait_until(answers, "it answers"), uuids[0][:16].encode())

        # SIGTERM ends all of them in good order.
        pids = list(self.children_of(manager.process).values())
        manager.process.terminate()
        harness.wait_until(lambda: not any(os.path.exists(f"/proc/{p}") for p in pids), "the instances end too")
        manager.start()
        harness.wait_until(lambda: set(self.children_of(manager.process)) == set(uuids), "three instances")

    def test_only_the_one_named(self):
        manager = harness.Manager(self).start(create=True)
        uuids = [harness.new_uuid() for _ in range(2)]
        for uuid in uuids:
            harness.Instance(self, manager, uuid=uuid, name=uuid).start(create=True).process.terminate()
        manager.process.terminate()
        manager.options += [f"--spawn={uuids[1]}", "--stop-instances", f"--run-dir={self.path('run')}"]
        os.mkdir(self.path("run"))
        manager.start()
        with tpm.Client(harness.connect(self.path("run", uuids[1] + ".sock"))) as guest:
            self.assertEqual(len(guest.get_random()), 8)
        self.assertEqual(set(self.children_of(manager.process)), {uuids[1]})


class Deleted(Stored):
    def test_the_image_of_a_deleted_vtpm_stays_and_is_named(self):
        self.manager.start(create=True)
        uuid = harness.new_uuid()
        instance = harness.Instance(self, self.manager, uuid=uuid, name=uuid).start(create=True)
        instance.process.terminate()
        without = self.must("POST", "/v1/vtpms", {})["uuid"]
        delete = [VTPMCTL, f"--socket={self.api}", "delete", "--yes"]
        self.assertIn(f"nothing opens it any more: {instance.image} can be removed", self.run_command(*delete, uuid)[1])
        self.assertTrue(os.path.exists(instance.image))
        self.assertNotIn("removed", self.run_command(*delete, without)[1])


if __name__ == "__main__":
    harness.main()
