#!/usr/bin/python3
"""What a guest sees while nothing can be made durable: an error means that it has not happened and never will, reads are served
at once, stops are quick; and two instances of one vTPM never save over each other."""
import errno
import os
import random
import shutil
import signal
import struct
import threading
import time

import faultfs
import harness
import tpm

harness.need_root()
harness.private_mounts()
COUNTER, DATA, GUESSED = 0x01500001, 0x01500002, 0x01500003
NV_UNAVAILABLE, RETRY_12, FAILURE = 0x923, 0x800, 0x101
HIERARCHY_CHANGE_AUTH = 0x129
CLOCK_SET, OBJECT_AND_NV = 0x128, tpm.NV_ORDINARY & ~tpm.TPMA_NV_NO_DA
# An answer takes 1.5 s at most while the manager or the disk is at it, while there is no manager 12 s if the guest's driver waits,
# else 0.5 s; those that are given at once are far from all of them. A test machine is slower than a clock.
AT_ONCE, PATIENT = 0.4 * harness.SLOW, 4.0 * harness.SLOW
AWAY = 12 + 3 * PATIENT
STOP = 8.0 * harness.SLOW


class Durability(harness.Case):
    def begin(self, manager_dir=None, instance_dir=None, version="2.0"):
        self.manager = harness.Manager(self, dir=manager_dir).start(create=True)
        self.instance = harness.Instance(self, self.manager, dir=instance_dir, version=version).start(create=True)
        self.guest = self.connect()
        if version == "2.0":
            self.guest.nv_define_counter(COUNTER)
            self.guest.nv_define(DATA, 8)
            self.guest.nv_increment(COUNTER)
            self.guest.nv_write(DATA, b"before..")
            self.count = self.guest.nv_count(COUNTER)

    def connect(self):
        guest = self.instance.client()
        self.addCleanup(guest.close)
        return guest

    def refused(self, what, *args, code=NV_UNAVAILABLE, within=AT_ONCE):
        begun = time.monotonic()
        with self.assertRaises(tpm.TpmError) as refusal:
            what(*args)
        self.assertEqual(refusal.exception.code, code)
        self.assertLess(time.monotonic() - begun, within)

    def served(self, what, *args):
        begun = time.monotonic()
        answer = what(*args)
        self.assertLess(time.monotonic() - begun, AT_ONCE)
        return answer

    def reads_are_served(self):
        self.assertEqual(self.served(self.guest.nv_count, COUNTER), self.count)
        self.assertEqual(self.served(self.guest.nv_read, DATA), b"before..")
        self.served(self.guest.get_random)
        self.served(self.guest.pcr_read, 16)
        self.served(self.guest.pcr_extend, 16, b"x" * 32)

    def accepted(self, what, *args):
        def attempt():
            try:
                what(*args)
                return True
            except tpm.TpmError as e:
                self.assertEqual(e.code, NV_UNAVAILABLE)
                return False
        harness.wait_until(attempt, "changes are accepted again")

    def goes_on(self):
        """Nothing of what was refused has happened; the next change is the next."""
        self.accepted(self.guest.nv_increment, COUNTER)
        self.assertEqual(self.guest.nv_count(COUNTER), self.count + 1)
        self.assertEqual(self.guest.nv_read(DATA), b"before..")
        self.guest.close()
        self.instance.process.terminate()
        self.instance.start()
        self.guest = self.connect()
        self.assertEqual(self.guest.nv_count(COUNTER), self.count + 1)
        self.assertEqual(self.guest.nv_read(DATA), b"before..")


class ManagerAway(Durability):
    def test_reads_at_once_changes_refused_and_never_take_effect(self):
        self.begin()
        before = self.guest.pcr_read(16)
        self.manager.process.kill()
        self.refused(self.guest.nv_increment, COUNTER, within=AWAY)
        self.assertEqual(self.guest.pcr_read(16), before, "registers are not as before the command")
        for _ in range(3):
            self.reads_are_served()
            self.refused(self.guest.nv_increment, COUNTER)
            self.refused(self.guest.nv_write, DATA, b"during..")
            self.refused(self.guest.nv_undefine, DATA)
        self.manager.start()
        self.goes_on()

    def test_back_within_ten_seconds_nothing_is_refused(self):
        """Also not what comes after a command that could not wait: its driver gives it 2 s."""
        self.begin()
        self.manager.process.kill()
        impatient = struct.pack(">II", tpm.TPM_RH_OWNER, 9) + struct.pack(">IHBH", tpm.TPM_RS_PW, 0, 0, 0)
        code, _ = self.guest.command(tpm.TPM_ST_SESSIONS, HIERARCHY_CHANGE_AUTH, impatient + struct.pack(">H2s", 2, b"pw"))
        self.assertEqual(code, NV_UNAVAILABLE)
        self.served(self.guest.pcr_read, 16)
        errors = []

        def change():
            try:
                self.guest.nv_increment(COUNTER)
                self.guest.nv_write(DATA, b"in time.")
            except tpm.TpmError as e:
                errors.append(str(e))
        changing = threading.Thread(target=change)
        changing.start()
        time.sleep(8)
        self.manager.start()
        changing.join(harness.PATIENCE)
        self.assertEqual(errors, [])
        self.assertEqual(self.guest.nv_read(DATA), b"in time.")
        self.assertEqual(self.guest.nv_count(COUNTER), self.count + 1)

    def test_an_end_does_not_wait_for_the_manager(self):
        """A change is at it: it is taken back, and the instance ends."""
        self.begin()
        self.manager.process.kill()
        answers = []

        def ask():
            try:
                self.guest.nv_increment(COUNTER)
                answers.append("acknowledged")
            except (tpm.TpmError, OSError) as e:
                answers.append(getattr(e, "code", NV_UNAVAILABLE))
        asked = threading.Thread(target=ask)
        asked.start()
        time.sleep(0.2)
        begun = time.monotonic()
        self.instance.process.terminate()
        self.assertLess(time.monotonic() - begun, STOP)
        asked.join(harness.PATIENCE)
        self.assertEqual(answers, [NV_UNAVAILABLE])
        self.manager.start()
        self.instance.start()
        self.guest.close()
        self.guest = self.connect()
        self.assertEqual(self.guest.nv_count(COUNTER), self.count)

    def test_a_start_waits_for_a_manager_that_goes_as_for_one_that_is_not_there(self):
        """The manager stands still when the TPM's state is loaded, or when it is to be saved; another one is there after a while."""
        self.begin()
        self.instance.process.terminate()
        self.manager.process.popen.send_signal(signal.SIGSTOP)
        process = self.instance.launch()
        harness.wait_until(lambda: os.path.exists(self.instance.socket), "its guest's socket is there")
        time.sleep(2)  # longer than a second, which was all
        self.assertTrue(process.running(), process.log())
        self.manager.process.kill()
        time.sleep(1)
        self.manager.start()
        process.wait_log("VTPM attached to Frontend")
        self.guest.close()
        self.guest = self.connect()
        self.assertEqual(self.guest.nv_count(COUNTER), self.count)

    def test_asked_to_end_while_it_starts(self):
        """No manager, or one that does not answer: one status and one text, whenever that is."""
        self.begin()
        self.instance.process.terminate()
        for away in (lambda: self.manager.process.popen.send_signal(signal.SIGSTOP), self.manager.process.kill):
            away()
            for fresh in (True, False):
                for wait in (0.05, 0.4, 1.1):
                    vtpm = harness.Instance(self, self.manager) if fresh else self.instance
                    process = vtpm.launch(create=fresh)
                    harness.wait_until(lambda: os.path.exists(vtpm.socket), "its guest's socket is there")
                    time.sleep(wait)
                    process.terminate()
                    lines = process.log().splitlines()
                    self.assertIn(f"vTPM {vtpm.uuid}: stopped before it was ready", lines[-2], process.log())
                    self.assertIn("ended in good order", lines[-1])
                    self.assertNotIn("no answer", process.log())
                    self.assertEqual(os.path.exists(vtpm.image), not fresh)
        self.manager.start()
        self.instance.start()
        self.guest.close()
        self.guest = self.connect()
        self.assertEqual(self.guest.nv_count(COUNTER), self.count)

    def test_restarted_at_once_nothing_is_refused(self):
        """As a service manager does."""
        self.begin()
        for _ in range(5):
            self.manager.process.kill()
            self.manager.launch()
            self.accepted(self.guest.nv_increment, COUNTER)
            self.count += 1
            self.manager.process.wait_log("Waiting for commands from vTPMs")
        self.assertEqual(self.guest.nv_count(COUNTER), self.count)

    def test_killed_around_the_record(self):
        """Whether the record was durable or not: an error means that it never happened, also if the instance dies before it can
        tell the manager."""
        self.begin()
        vtpms = [harness.Instance(self, self.manager).start(create=True) for _ in range(6)]
        acknowledged, told = {}, {}
        for vtpm in vtpms:
            with vtpm.client() as guest:
                guest.nv_define_counter(COUNTER)
                guest.nv_increment(COUNTER)
                acknowledged[vtpm] = guest.nv_count(COUNTER)

        def work(vtpm):
            try:
                with vtpm.client() as guest:
                    while True:
                        guest.nv_increment(COUNTER)
                        acknowledged[vtpm] += 1
            except tpm.TpmError as e:
                told[vtpm] = e.code
        for number in range(2):
            told.clear()
            workers = [threading.Thread(target=work, args=(vtpm,)) for vtpm in vtpms]
            for worker in workers:
                worker.start()
            time.sleep(random.uniform(0, 0.05))
            self.manager.process.kill()
            for worker in workers:
                worker.join(harness.PATIENCE)
            self.assertEqual(told, dict.fromkeys(vtpms, NV_UNAVAILABLE), "not acknowledged, and never to be")
            for vtpm in vtpms[number::2]:
                vtpm.process.kill()
            self.manager.start()
            for vtpm in vtpms[number::2]:
                vtpm.start()
            for vtpm in vtpms:
                with vtpm.client() as guest:
                    self.assertEqual(guest.nv_count(COUNTER), acknowledged[vtpm], f"round {number}: what was refused took effect")
                    self.accepted(guest.nv_increment, COUNTER)
                    acknowledged[vtpm] += 1
                    self.assertEqual(guest.nv_count(COUNTER), acknowledged[vtpm])

    def test_stands_still(self):
        """A manager that takes the request and never answers."""
        self.begin()
        self.manager.process.popen.send_signal(signal.SIGSTOP)
        self.refused(self.guest.nv_increment, COUNTER, within=PATIENT)
        self.reads_are_served()
        self.refused(self.guest.nv_increment, COUNTER)
        self.manager.process.popen.send_signal(signal.SIGCONT)
        self.goes_on()

    def test_wrong_guesses_that_cannot_be_counted_end(self):
        self.begin()
        self.guest.nv_define(GUESSED, 8, OBJECT_AND_NV)
        tpm.again(self.guest.nv_write, GUESSED, b"guessed.")
        self.manager.process.kill()
        self.refused(self.guest.nv_increment, COUNTER, within=AWAY)
        wrong = struct.pack(">IHBH", tpm.TPM_RS_PW, 0, 0, 2) + b"no"
        body = struct.pack(">III", GUESSED, GUESSED, len(wrong)) + wrong + struct.pack(">HH", 8, 0)
        codes = [self.guest.command(tpm.TPM_ST_SESSIONS, 0x14E, body)[0] for _ in range(5)]
        self.assertEqual(codes, [NV_UNAVAILABLE] * 5)
        self.refused(self.guest.nv_read, GUESSED)  # the right one does not tell either
        self.served(self.guest.get_random)
        self.manager.start()
        self.accepted(self.guest.nv_increment, COUNTER)
        self.assertEqual(self.guest.nv_read(GUESSED), b"guessed.")

    def test_tpm12(self):
        self.begin(version="1.2")
        self.guest.nv_define12(0x1001, 8)
        self.guest.nv_write12(0x1001, b"before..")
        self.manager.process.kill()
        self.refused(self.guest.nv_write12, 0x1001, b"during..", code=RETRY_12, within=AWAY)
        self.refused(self.guest.nv_write12, 0x1001, b"during..", code=RETRY_12)
        self.assertEqual(self.served(self.guest.nv_read12, 0x1001, 8), b"before..")
        self.served(self.guest.get_random12)
        self.served(self.guest.extend12, 10, b"x" * 20)
        self.manager.start()

        def attempt():
            try:
                self.guest.nv_write12(0x1001, b"after...")
                return True
            except tpm.TpmError as e:
                self.assertEqual(e.code, RETRY_12)
                return False
        harness.wait_until(attempt, "changes are accepted again")
        self.assertEqual(self.guest.nv_read12(0x1001, 8), b"after...")


class DiskFails(Durability):
    def fails(self, where, operation, error):
        fs = faultfs.FaultFs(self)
        self.begin(**{f"{where}_dir": fs.dir})
        fs.fail(operation, "manager.img" if where == "manager" else "*", error)
        self.refused(self.guest.nv_increment, COUNTER, within=PATIENT)
        self.assertGreater(fs.hits, 0)
        self.reads_are_served()
        self.refused(self.guest.nv_increment, COUNTER)
        self.refused(self.guest.nv_write, DATA, b"during..")
        fs.heal()
        self.goes_on()

    def test_instance_eio(self):
        self.fails("instance", "write", errno.EIO)

    def test_instance_full(self):
        self.fails("instance", "write", errno.ENOSPC)

    def test_manager_eio(self):
        self.fails("manager", "fsync", errno.EIO)

    def test_manager_full(self):
        self.fails("manager", "write", errno.ENOSPC)


class OneInOnePlace(Durability):
    def other(self):
        """Another instance of the same vTPM, on a copy of its image."""
        other = harness.Instance(self, self.manager, uuid=self.instance.uuid, name="other")
        shutil.copy(self.instance.image, other.image)
        return other

    def test_a_lost_link_and_another_that_saved_meanwhile(self):
        self.begin()
        other = self.other()
        self.instance.process.popen.send_signal(signal.SIGSTOP)
        self.manager.process.kill()
        self.manager.start()
        other.start()
        with other.client() as guest:
            guest.nv_increment(COUNTER)
            guest.nv_write(DATA, b"by other")
        other.process.terminate()
        self.instance.process.popen.send_signal(signal.SIGCONT)
        with self.assertRaises((tpm.TpmError, ConnectionError)):
            self.guest.nv_increment(COUNTER)
        self.assertEqual(self.instance.process.wait(), harness.EX_DATAERR)
        self.assertIn("another instance has saved since", self.instance.process.log())
        other.start()
        with other.client() as guest:
            self.assertEqual(guest.nv_count(COUNTER), self.count + 1)
            self.assertEqual(guest.nv_read(DATA), b"by other")
        other.process.terminate()
        self.assertEqual(self.instance.launch().wait(), harness.EX_DATAERR)  # an old copy

    def test_nobody_saved_meanwhile(self):
        self.begin()
        self.instance.process.popen.send_signal(signal.SIGSTOP)
        self.manager.process.kill()
        self.manager.start()
        self.instance.process.popen.send_signal(signal.SIGCONT)
        self.accepted(self.guest.nv_increment, COUNTER)
        self.assertEqual(self.guest.nv_count(COUNTER), self.count + 1)


class QuickStops(Durability):
    def test_in_any_order_with_a_commit_in_flight(self):
        self.begin()
        self.guest.close()
        for number, what in enumerate(["i", "m", "im", "mi"] * 4):
            told = [self.count, self.count]  # acknowledged, asked for

            def work():
                try:
                    with self.instance.client() as guest:
                        while True:
                            told[1] += 1
                            try:
                                guest.nv_increment(COUNTER)
                                told[0] += 1
                            except tpm.TpmError as e:
                                self.assertEqual(e.code, NV_UNAVAILABLE)
                                told[1] -= 1  # it never happens
                except (ConnectionError, OSError):
                    pass
            worker = threading.Thread(target=work)
            worker.start()
            time.sleep(random.uniform(0, 0.05))
            processes = {"i": self.instance.process, "m": self.manager.process}
            begun = time.monotonic()
            for one in what:
                processes[one].popen.send_signal(signal.SIGTERM)
                time.sleep(random.choice([0, 0, 0.01]))
            for one in what:
                self.assertEqual(processes[one].wait(), 0, processes[one].log())
            self.assertLess(time.monotonic() - begun, STOP, f"round {number}: {what}")
            if what == "m":
                begun = time.monotonic()
                self.instance.process.terminate()
                self.assertLess(time.monotonic() - begun, STOP, f"round {number}: the instance alone")
            worker.join(harness.PATIENCE)
            if "m" in what:
                self.manager.start()
            self.instance.start()
            with self.instance.client() as guest:
                count = guest.nv_count(COUNTER)
            self.assertGreaterEqual(count, told[0], f"round {number}: {what}: an acknowledged increment is missing")
            self.assertLessEqual(count, told[1], f"round {number}: {what}: what was refused took effect")
            self.count = count


if __name__ == "__main__":
    harness.main()
