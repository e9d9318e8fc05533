#!/usr/bin/python3
"""Both images on block devices (loop devices here), where there is no file system to help."""
import os
import random
import subprocess
import threading
import time

import harness
import tpm
from store_case import Stored

harness.need_root()
VTPMCTL = os.environ["VTPMCTL"]
COUNTER, DATA = 0x01500001, 0x01500002


class OnDevices(harness.Case):
    def device(self, name, size):
        backing = self.path(name)
        with open(backing, "wb") as f:
            f.truncate(size)
        _, text = self.run_command("losetup", "--find", "--show", backing)
        node = text.strip()
        self.addCleanup(self.run_command, "losetup", "--detach", node, ok=False)
        return node, backing


class BlockDevice(OnDevices):
    def test_both_images(self):
        manager = harness.Manager(self)
        manager.store, backing = self.device("manager.disk", 16 << 20)
        manager.start(create=True)
        instance = harness.Instance(self, manager)
        instance.image, _ = self.device("instance.disk", 4 << 20)
        instance.start(create=True)
        with instance.client() as guest:
            guest.nv_define(DATA, 8)
            guest.nv_write(DATA, b"on disk.")
        instance.process.kill()
        manager.process.kill()
        manager.start()
        instance.start()
        with instance.client() as guest:
            self.assertEqual(guest.nv_read(DATA), b"on disk.")
            guest.nv_write(DATA, b"on disk2")
        # A device in use is nobody else's.
        second = harness.Instance(self, manager)
        second.image = instance.image
        self.assertEqual(second.launch(create=True).wait(), harness.EX_TEMPFAIL, second.process.log())
        instance.process.terminate()
        manager.process.terminate()
        # Somebody's disk is not formatted.
        with open(backing, "rb") as f:
            before = f.read()
        manager.tpm = f"embedded:{self.path('other.tpm')}"
        os.mkdir(self.path("other.tpm"))
        self.assertNotEqual(manager.launch(create=True).wait(), 0)
        with open(backing, "rb") as f:
            self.assertEqual(f.read(), before)

    def test_too_small(self):
        manager = harness.Manager(self)
        manager.store, _ = self.device("manager.disk", 64 << 10)
        process = manager.launch(create=True)
        self.assertEqual(process.wait(), harness.EX_USAGE, process.log())
        self.assertIn(manager.store, process.log())

    def test_an_instance_fills_its_device(self):
        """A state that has outgrown its device: the guest gets an error, what it had stays."""
        manager = harness.Manager(self).start(create=True)
        instance = harness.Instance(self, manager)
        instance.image, _ = self.device("instance.disk", 4 << 20)
        instance.start(create=True)
        with instance.client() as guest:
            guest.nv_define(DATA, 8)
            guest.nv_write(DATA, b"on disk.")
        instance.process.terminate()
        tiny = harness.Instance(self, manager)
        tiny.image, _ = self.device("tiny.disk", 4 << 10)
        process = tiny.launch(create=True)
        self.assertEqual(process.wait(), harness.EX_CANTCREAT, process.log())
        self.assertIn(tiny.image, process.log())
        # The room is found again, and so is the vTPM's name: nothing of it was kept.
        tiny.image, _ = self.device("larger.disk", 4 << 20)
        tiny.start(create=True)


class Grows(Stored, OnDevices):
    """The store's device gets larger (a volume that is extended), and the store with it, in use."""

    def work(self, told, stop):
        """Increments until `stop`; what was acknowledged, and what was asked for at most, is in `told`."""
        guest = None
        while not stop.is_set():
            try:
                guest = guest or self.instance.client()
                told[1] += 1
                guest.nv_increment(COUNTER)
                told[0] += 1
            except tpm.TpmError:
                told[1] -= 1  # it never happens
        guest.close()

    def lengthen(self, size):
        with open(self.backing, "r+b") as f:
            f.truncate(size)
        self.run_command("losetup", "--set-capacity", self.manager.store)

    def grow(self, *size):
        return [VTPMCTL, f"--socket={self.api}", "store", "grow", *size]

    def test_killed_in_the_middle(self):
        self.manager.store, self.backing = self.device("manager.disk", 1 << 20)
        self.manager.start(create=True)
        self.instance = harness.Instance(self, self.manager).start(create=True)
        with self.instance.client() as guest:
            guest.nv_define_counter(COUNTER)
            guest.nv_increment(COUNTER)
            told = [guest.nv_count(COUNTER)] * 2
        self.assertEqual(self.run_command(*self.grow(), ok=False)[0], harness.EX_USAGE)  # it is all used
        uuids, size, killed, grown_before_the_kill = [], 1 << 20, 0, []
        while killed < 6:
            size += 1 << 20
            self.lengthen(size)
            before = self.must("GET", "/v1/host")["store_bytes"]
            stop = threading.Event()
            worker = threading.Thread(target=self.work, args=(told, stop))
            worker.start()
            growing = subprocess.Popen(self.grow(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            if killed % 2:
                uuids.append(self.must("POST", "/v1/vtpms", {})["uuid"])  # in the old room or the new
            time.sleep(random.uniform(0, 0.03))
            self.manager.process.kill()
            killed += 1
            growing.wait(harness.PATIENCE)
            self.manager.start()
            stop.set()
            worker.join(harness.PATIENCE)
            self.assertFalse(worker.is_alive(), "a guest's command hangs")
            self.assertLessEqual(set(uuids), {v["uuid"] for v in self.must("GET", "/v1/vtpms")["vtpms"]})
            with self.instance.client() as guest:
                count = guest.nv_count(COUNTER)
            self.assertGreaterEqual(count, told[0], f"kill {killed}: an acknowledged increment is missing")
            self.assertLessEqual(count, told[1], f"kill {killed}: it counts what nobody asked for")
            told = [count, count]
            # Wholly grown or not at all, and in that case it grows now.
            grown = self.must("GET", "/v1/host")["store_bytes"] > before
            grown_before_the_kill.append(grown)
            self.assertEqual(self.run_command(*self.grow(), ok=False)[0], harness.EX_USAGE if grown else 0)
            self.assertGreater(self.must("GET", "/v1/host")["store_bytes"], before)
        print(f"# grown before the kill: {grown_before_the_kill}")
        self.instance.process.kill()
        self.restart()
        self.instance.start()
        with self.instance.client() as guest:
            self.assertEqual(guest.nv_count(COUNTER), told[0])


if __name__ == "__main__":
    harness.main()
