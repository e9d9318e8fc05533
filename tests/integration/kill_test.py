#!/usr/bin/python3
"""Kill -9 at random moments: no acknowledged change is missing, no TPM is ever fresh, every restart succeeds by itself."""
import os
import random
import struct
import threading
import time

import harness
import tpm

COUNTER, DATA = 0x01500001, 0x01500002
ROUNDS = int(os.environ.get("VTPMD_KILL_ROUNDS", "200"))


class Guest:
    """Works on one vTPM for as long as it answers, and knows what the vTPM must still know afterwards."""

    def __init__(self, instance):
        self.instance = instance
        with instance.client() as client:
            client.nv_define_counter(COUNTER)
            client.nv_define(DATA, 16)
            client.nv_increment(COUNTER)
            self.count = client.nv_count(COUNTER)
            self.serial = 0
            client.nv_write(DATA, self.value(0))
        self.acknowledged = self.broken_off = 0
        # What was asked for and not acknowledged may be there or not.
        self.count_most, self.data_may_be = self.count, {self.value(0)}

    def value(self, serial):
        return struct.pack(">QQ", serial, ~serial & 0xFFFFFFFFFFFFFFFF)

    def work(self, stop):
        """Increments and writes until `stop` is set or the vTPM is gone."""
        client = None
        try:
            while not stop.is_set():
                if client is None:
                    client = tpm.Client(harness.connect(self.instance.socket))
                try:
                    self.step(client)
                except tpm.TpmError:
                    self.broken_off += 1  # refused: not acknowledged, and the vTPM serves on
        except (ConnectionError, AssertionError, TimeoutError):
            self.broken_off += 1
        finally:
            if client:
                client.close()

    def step(self, client):
        if random.random() < 0.5:
            self.count_most += 1
            client.nv_increment(COUNTER)
            self.count = min(self.count + 1, self.count_most)
        else:
            self.serial += 1
            self.data_may_be.add(self.value(self.serial))
            client.nv_write(DATA, self.value(self.serial))
            self.data_may_be = {self.value(self.serial)}
        self.acknowledged += 1

    def check(self, case):
        with self.instance.client() as client:
            count, data = client.nv_count(COUNTER), client.nv_read(DATA, 16)
        case.assertGreaterEqual(count, self.count, "an acknowledged increment is missing")
        case.assertLessEqual(count, self.count_most, "the counter counts what nobody asked for")
        case.assertIn(data, self.data_may_be, "an acknowledged write is missing")
        self.count = self.count_most = count
        self.data_may_be = {data}


class Guest12(Guest):
    """The same for a TPM 1.2. Without an owner it takes 64 NV writes in all, so most of its work is reading."""
    INDEX, BUDGET = 0x1001, 60

    def __init__(self, instance):
        self.instance, self.serial = instance, 0
        self.acknowledged = self.broken_off = self.written = 0
        self.data_may_be = {self.value(0)}
        with instance.client() as client:
            client.nv_define12(self.INDEX, 16)
            client.nv_write12(self.INDEX, self.value(0))

    def step(self, client):
        if self.serial < self.BUDGET and random.random() < 0.05:
            self.serial += 1
            self.data_may_be.add(self.value(self.serial))
            client.nv_write12(self.INDEX, self.value(self.serial))
            self.data_may_be = {self.value(self.serial)}
            self.written += 1
        else:
            client.get_random12()
        self.acknowledged += 1

    def check(self, case):
        with self.instance.client() as client:
            data = client.nv_read12(self.INDEX, 16)
        case.assertIn(data, self.data_may_be, "an acknowledged write is missing")
        self.data_may_be = {data}


class Kill(harness.Case):
    def test_random_moments(self):
        options = ["--auto-create", "--freshness=window:1"]
        manager = harness.Manager(self, options=options).start(create=True)
        instances = [harness.Instance(self, manager).start(create=True) for _ in range(2)]
        guests = [Guest(i) for i in instances]
        instances.append(harness.Instance(self, manager, version="1.2").start(create=True))
        guests.append(Guest12(instances[-1]))
        killed = {"manager": 0, "instance": 0, "both": 0}
        for number in range(ROUNDS):
            stop = threading.Event()
            threads = [threading.Thread(target=g.work, args=(stop,)) for g in guests]
            for t in threads:
                t.start()
            time.sleep(random.uniform(0, 0.06))
            victim = random.choice(list(killed))
            killed[victim] += 1
            down = []
            if victim != "instance":
                down.append(manager)
            if victim != "manager":
                down.append(random.choice(instances))
            random.shuffle(down)
            for d in down:
                d.process.kill()
                # A process that is started again is at times killed again before it is ready.
                if random.random() < 0.15:
                    d.launch()
                    time.sleep(random.uniform(0, 0.05))
                    d.process.kill()
            random.shuffle(down)
            for d in down:
                d.launch()
            for d in down:
                d.process.wait_log("Waiting for commands from vTPMs" if d is manager else "VTPM attached to Frontend")
            stop.set()
            for t in threads:
                t.join(harness.PATIENCE)
                self.assertFalse(t.is_alive(), "a guest's command hangs")
            for g in guests:
                g.check(self)
            for child in self.children:  # logs of rounds gone by
                if not child.running() and os.path.exists(child.log_path) and number % 20 == 19:
                    open(child.log_path, "w").close()
        for g in guests:
            self.assertGreater(g.acknowledged, ROUNDS, "hardly anything was acknowledged: the test shows nothing")
        self.assertGreater(guests[-1].written, 0)
        self.assertGreater(min(killed.values()), ROUNDS // 6)
        print(f"# {ROUNDS} rounds, killed {killed}, acknowledged {sum(g.acknowledged for g in guests)}, "
              f"broken off {sum(g.broken_off for g in guests)}")
        for p in (*instances, manager):
            p.process.terminate()
        manager.start()
        for i, g in zip(instances, guests):
            i.start()
            g.check(self)


if __name__ == "__main__":
    harness.main()
