#!/usr/bin/python3
"""A vTPM moves between two hosts (two managers with different TPMs), driven as a device model drives it, and broken at every
step: exactly one side runs it, and nothing that was acknowledged is lost."""
import os
import struct

import harness
import tpm

DATA, DATA12 = 0x01500002, 0x00011001


class Host:
    def __init__(self, case, name):
        self.manager = harness.Manager(case, name=name).start(create=True)


class Hosts(harness.Case):
    """A vTPM that runs here, and what it takes to bring it there."""
    VERSION = "2.0"

    def setUp(self):
        super().setUp()
        self.here, self.there = Host(self, "here"), Host(self, "there")
        self.take = self.path("take")
        self.source = harness.Instance(self, self.here.manager, name="source", version=self.VERSION,
                                       options=["--startup=wait", f"--handover=unix:{self.take}"]).start(create=True)
        self.init(self.source)
        with self.source.client() as guest:
            self.startup(guest)
            guest.nv_define(DATA, 8) if self.VERSION == "2.0" else guest.nv_define12(DATA12, 8)
            self.write(guest, b"before..")
            guest.pcr_extend(12, b"\x07" * 32) if self.VERSION == "2.0" else guest.extend12(12, b"\x07" * 20)
            self.pcr = self.measured(guest)

    def target(self, incoming=None, create=True, **kw):
        self.dest = harness.Instance(self, self.there.manager, uuid=self.source.uuid, name="dest", version=self.VERSION,
                                     options=["--startup=wait", f"--incoming={incoming or 'unix:' + self.take}"])
        return self.dest.start(create=create, **kw)

    def startup(self, guest):
        if self.VERSION == "2.0":
            guest.must("TPM2_Startup", tpm.TPM_ST_NO_SESSIONS, 0x144, bytes(2))
        else:
            guest.must("TPM_Startup", tpm.TPM_TAG_RQU_COMMAND, 0x99, struct.pack(">H", 1))

    def write(self, guest, value):
        guest.nv_write(DATA, value) if self.VERSION == "2.0" else guest.nv_write12(DATA12, value)

    def read(self, guest):
        return guest.nv_read(DATA) if self.VERSION == "2.0" else guest.nv_read12(DATA12, 8)

    def measured(self, guest):
        return guest.pcr_read(12) if self.VERSION == "2.0" else guest.pcr_read12(12)

    def init(self, instance, flags=0):
        with instance.control() as control:
            return control.call(control.INIT, struct.pack(">I", flags))[0]

    def get_blobs(self, instance):
        blobs = []
        with instance.control() as control:
            for kind in (1, 2, 3):
                head = control.must(control.GET_STATEBLOB, struct.pack(">III", 1, kind, 0), 12)
                flags, total, size = struct.unpack(">III", head)
                self.assertEqual((flags, total), (0, size))
                blobs.append(control._client.read_exactly(size))
        return blobs

    def set_blobs(self, instance, blobs):
        """As QEMU does: those that are not empty. The first result that is not 0, or 0."""
        with instance.control() as control:
            control.must(control.STOP)
            for kind, blob in enumerate(blobs, 1):
                if blob and (result := control.call(control.SET_STATEBLOB, struct.pack(">III", 0, kind, len(blob)) + blob)[0]):
                    return result
        return 0

    def runs(self, instance):
        """Whether this instance's TPM does what a guest asks; with what it has to have, if it does."""
        with instance.client() as guest:
            random = (tpm.TPM_ST_NO_SESSIONS, 0x17B, struct.pack(">H", 8)) if self.VERSION == "2.0" else (
                tpm.TPM_TAG_RQU_COMMAND, 0x46, struct.pack(">I", 8))
            if guest.command(*random)[0]:
                return False
            self.assertEqual(self.read(guest), b"before..")
            self.assertEqual(self.measured(guest), self.pcr)
            return True

    def assert_moved(self):
        self.assertTrue(self.runs(self.dest))
        self.assertFalse(self.runs(self.source))
        self.assertNotEqual(self.init(self.source), 0)
        self.source.process.terminate()
        process = self.source.launch(create=True)
        self.assertEqual(process.wait(), harness.EX_DATAERR, process.log())  # the tombstone
        self.assertIn("migrated", process.log())
        # And it is this host's: sealed by its manager.
        with self.dest.client() as guest:
            self.write(guest, b"after...")
        self.dest.process.terminate()
        self.dest.options = ["--startup=wait"]
        self.dest.start()
        self.init(self.dest)
        with self.dest.client() as guest:
            self.startup(guest)
            self.assertEqual(self.read(guest), b"after...")

    def assert_stayed(self):
        self.assertTrue(self.runs(self.source))
        self.assertFalse(self.runs(self.dest))
        self.source.process.terminate()
        self.source.start()
        self.init(self.source)
        with self.source.client() as guest:
            self.startup(guest)
            self.assertEqual(self.read(guest), b"before..")


class Handover(Hosts):
    def test_moves(self):
        self.target()
        blobs = self.get_blobs(self.source)
        self.assertTrue(self.source.process.running())  # not asked for anything: that would take back what it gave out
        self.assertEqual(self.set_blobs(self.dest, blobs), 0)
        self.assertFalse(self.runs(self.dest))
        self.assertEqual(self.init(self.dest, 1), 0)
        with self.source.control() as control:
            self.assertEqual(control.call(control.LOCK_STORAGE, struct.pack(">I", 3))[0], 0x1F)  # no falling back
        self.assert_moved()

    def test_and_back(self):
        """A -> B -> A: the tombstone gives way to the vTPM's own return, and to nothing else."""
        back = self.path("back")
        self.dest = harness.Instance(self, self.there.manager, uuid=self.source.uuid, name="dest", options=[
            "--startup=wait", f"--incoming=unix:{self.take}", f"--handover=unix:{back}"]).start(create=True)
        self.assertNotEqual(self.init(self.dest), 0)  # no state has come, and none is made
        self.dest.process.kill()
        self.dest.start(create=True)  # tried again
        self.assertEqual(self.set_blobs(self.dest, self.get_blobs(self.source)), 0)
        self.assertEqual(self.init(self.dest, 1), 0)
        self.source.process.terminate()
        self.source.process.wait()
        coming = ["--startup=wait", f"--incoming=unix:{back}"]
        for options, keep, said in ((coming, True, "before it was migrated away"), (["--startup=wait"], False, "migrated away")):
            self.source.options = options
            process = self.source.launch(create=True)
            self.assertEqual(process.wait(), harness.EX_DATAERR, process.log())
            self.assertIn(said, process.log())
            if keep:
                os.rename(self.source.image, self.source.image + ".old")
        self.source.options = coming
        for _ in range(2):
            self.source.start(create=True)
            self.assertNotEqual(self.init(self.source), 0)
            self.source.process.terminate()
            self.source.process.wait()
            self.source.options = ["--startup=wait"]
            self.assertEqual(self.source.launch(create=True).wait(), harness.EX_DATAERR)  # still the other host's
            self.source.options = coming
        self.source.start(create=True)
        self.assertEqual(self.set_blobs(self.source, self.get_blobs(self.dest)), 0)
        self.assertEqual(self.init(self.source, 1), 0)
        self.assertTrue(self.runs(self.source))
        self.assertFalse(self.runs(self.dest))
        self.source.process.terminate()
        self.source.options = ["--startup=wait"]
        self.source.start()
        self.assertEqual(self.init(self.source), 0)
        with self.source.client() as guest:
            self.startup(guest)
            self.assertEqual(guest.nv_read(DATA), b"before..")

    def test_one_image_for_both_hosts(self):
        """Storage that both hosts see: the new host's instance keeps its hands off the old one's image."""
        self.dest = harness.Instance(self, self.there.manager, uuid=self.source.uuid, name="dest",
                                     options=["--startup=wait", f"--incoming=unix:{self.take}"])
        self.dest.image = self.source.image
        process = self.dest.launch(create=True)
        self.assertEqual(process.wait(), harness.EX_TEMPFAIL, process.log())
        self.assertTrue(self.runs(self.source))

    def test_the_source_went_on(self):
        """State that is older than what the source has acknowledged since is not taken."""
        self.target()
        blobs = self.get_blobs(self.source)
        self.assertTrue(self.runs(self.source))
        self.assertEqual(self.set_blobs(self.dest, blobs), 0)
        self.assertNotEqual(self.init(self.dest, 1), 0)
        self.assert_stayed()

    def test_something_ran_after_the_blobs(self):
        """What no command did counts as well: the device model's measurements, what it resets and stores."""
        self.target()
        for name, requests in {"a hash sequence": [(6, b""), (7, struct.pack(">I", 4) + b"abcd"), (8, b"")],
                               "HASH_START alone": [(6, b"")],
                               "RESET_TPMESTABLISHED": [(tpm.Control.RESET_TPMESTABLISHED, b"\x03")],
                               "STORE_VOLATILE": [(tpm.Control.STORE_VOLATILE, b"")]}.items():
            with self.subTest(name):
                blobs = self.get_blobs(self.source)
                with self.source.control() as control:
                    for number, body in requests:
                        control.must(number, body)
                    if name == "HASH_START alone":
                        control.must(8)
                self.assertEqual(self.set_blobs(self.dest, blobs), 0)
                self.assertNotEqual(self.init(self.dest, 1), 0)
        # And what only looks does not.
        blobs = self.get_blobs(self.source)
        with self.source.control() as control:
            control.must(control.GET_TPMESTABLISHED, answer=4)
            control.must(control.LOCK_STORAGE, bytes(4))
        self.assertEqual(self.set_blobs(self.dest, blobs), 0)
        self.assertEqual(self.init(self.dest, 1), 0)
        self.assertFalse(self.runs(self.source))

    def test_silent_peers_hold_up_nobody(self):
        """Connections to --handover that never ask, in front of the one that does."""
        self.target()
        idle = [harness.connect(self.take) for _ in range(5)]
        idle[0].sendall(b"\x01\xc1\x00")  # and one that has begun
        self.assertEqual(self.set_blobs(self.dest, self.get_blobs(self.source)), 0)
        self.assertEqual(self.init(self.dest, 1), 0)
        self.assertTrue(self.runs(self.dest))
        # A server that took one after the other would have let some go by now, each after its time.
        for sock in idle:
            sock.setblocking(False)
            self.assertRaises(BlockingIOError, sock.recv, 1)
            sock.close()

    def test_other_state_than_the_source_gave(self):
        self.target()
        first = self.get_blobs(self.source)
        with self.source.client() as guest:
            guest.pcr_extend(13, b"\x01" * 32)
        second = self.get_blobs(self.source)
        self.assertEqual(self.set_blobs(self.dest, [first[0], first[1], first[2]]), 0)
        self.assertNotEqual(self.init(self.dest, 1), 0)
        self.assertEqual(self.set_blobs(self.dest, second), 0)
        self.assertEqual(self.init(self.dest, 1), 0)  # tried again with the right one
        self.assertTrue(self.runs(self.dest))
        self.assertFalse(self.runs(self.source))

    def test_damaged_on_the_way(self):
        self.target()
        blobs = self.get_blobs(self.source)
        damaged = bytearray(blobs[0])
        damaged[len(damaged) // 2] ^= 1
        self.set_blobs(self.dest, [bytes(damaged), blobs[1], blobs[2]])
        self.assertNotEqual(self.init(self.dest, 1), 0)
        self.assert_stayed()

    def test_the_new_hosts_manager_is_away(self):
        self.target()
        blobs = self.get_blobs(self.source)
        self.assertEqual(self.set_blobs(self.dest, blobs), 0)
        self.there.manager.process.kill()
        with self.dest.control() as control:
            control.sock.settimeout(3 * harness.PATIENCE)  # the instance waits for its manager, within bounds
            self.assertNotEqual(control.call(control.INIT, struct.pack(">I", 1))[0], 0)
        self.assertTrue(self.runs(self.source))

    def test_a_state_that_could_not_be_saved_does_not_run_later(self):
        """The new host's manager was away at INIT and comes back: the source was not asked, so the TPM stays off."""
        self.test_the_new_hosts_manager_is_away()
        self.there.manager.start()
        self.assertFalse(self.runs(self.dest))
        self.assertNotEqual(self.init(self.dest, 1), 0)
        self.assert_stayed()

    def test_the_old_hosts_manager_is_away(self):
        """Nobody knows then whether the vTPM is handed over already: neither host runs it, until the manager is back."""
        self.target()
        self.assertEqual(self.set_blobs(self.dest, self.get_blobs(self.source)), 0)
        self.here.manager.process.kill()
        with self.dest.control() as control:
            control.sock.settimeout(3 * harness.PATIENCE)
            control.sock.sendall(struct.pack(">II", control.INIT, 1))
            self.source.process.wait_log("it stands still until the manager is back", 3 * harness.PATIENCE)
            self.here.manager.start()
            control._client.read_exactly(4)  # yes, or no if it was asked too often in vain
        self.source.process.wait_log("another host has it now", 3 * harness.PATIENCE)
        self.assertFalse(self.runs(self.source))
        if not self.runs(self.dest):
            self.assertEqual(self.init(self.dest, 1), 0)
        self.assert_moved()

    def test_the_new_host_dies_before_it_asked(self):
        """It has the state on its disk, but not to run: neither then nor after a restart."""
        self.target(incoming="unix:" + self.path("nowhere"))
        blobs = self.get_blobs(self.source)
        self.assertEqual(self.set_blobs(self.dest, blobs), 0)
        before = self.records()
        with self.dest.control() as control:
            control.sock.sendall(struct.pack(">II", control.INIT, 1))
            harness.wait_until(lambda: self.saved_since(before), "the state on the new host's disk")
            self.dest.process.kill()
        self.assertTrue(self.runs(self.source))
        self.dest.options = ["--startup=wait"]
        process = self.dest.launch()
        self.assertEqual(process.wait(), harness.EX_DATAERR, process.log())
        self.assertIn("--incoming", process.log())
        self.dest.options = ["--startup=wait", f"--incoming=unix:{self.take}"]
        self.dest.start()
        self.assertNotEqual(self.init(self.dest), 0)  # the source has gone on
        self.assert_stayed()

    def records(self):
        """What makes a save of the new host durable: its slot, then its manager's record."""
        content = []
        for path in (self.dest.image, self.there.manager.store):
            with open(path, "rb") as f:
                content.append(f.read())
        return content

    def saved_since(self, before):
        return all(now != then for now, then in zip(self.records(), before))

    def test_the_new_host_dies_after_the_yes(self):
        """The source has let go; the new host, started again, asks again and runs it."""
        self.target()
        blobs = self.get_blobs(self.source)
        self.assertEqual(self.set_blobs(self.dest, blobs), 0)
        with self.dest.control() as control:
            control.sock.sendall(struct.pack(">II", control.INIT, 1))
            self.source.process.wait_log("another host has it now")
            self.dest.process.kill()
        self.assertFalse(self.runs(self.source))
        process = self.dest.launch()
        harness.wait_until(lambda: "VTPM attached" in process.log() or not process.running(), "its start")
        if not process.running():  # it was quicker than the kill: the vTPM is its own already
            self.assertEqual(process.wait(), harness.EX_CANTCREAT, process.log())
            self.dest.options = ["--startup=wait"]
            self.dest.start()
        self.assertEqual(self.init(self.dest), 0)
        with self.dest.client() as guest:
            guest.command(tpm.TPM_ST_NO_SESSIONS, 0x144, bytes(2))  # the registers are gone with the guest, unless it was done
            self.assertEqual(guest.nv_read(DATA), b"before..")

    def test_unfenced(self):
        self.target(incoming="unfenced")
        self.assertEqual(self.set_blobs(self.dest, self.get_blobs(self.source)), 0)
        self.assertEqual(self.init(self.dest, 1), 0)
        self.assertTrue(self.runs(self.dest))
        self.assertIn("must not run anywhere else", self.dest.process.log())

    def test_only_the_first_state_that_comes(self):
        """--incoming does not let a later snapshot through."""
        self.target()
        blobs = self.get_blobs(self.source)
        self.assertEqual(self.set_blobs(self.dest, blobs), 0)
        self.assertEqual(self.init(self.dest, 1), 0)
        self.assertEqual(self.set_blobs(self.dest, blobs), 9)
        self.assertEqual(self.init(self.dest), 0)

    def test_snapshots(self):
        """Going back to a snapshot is refused, and done and told of where the operator allows it."""
        blobs = self.get_blobs(self.source)
        with self.source.client() as guest:
            guest.nv_write(DATA, b"later...")
        self.assertEqual(self.set_blobs(self.source, blobs), 9)
        self.assertEqual(self.init(self.source), 0)
        with self.source.client() as guest:
            self.startup(guest)
            self.assertEqual(guest.nv_read(DATA), b"later...")
        self.source.process.terminate()
        self.source.options.append("--rollback=allow")
        self.source.start()
        self.assertEqual(self.set_blobs(self.source, blobs), 0)
        self.assertEqual(self.init(self.source, 1), 0)
        self.assertTrue(self.runs(self.source))
        self.assertIn("replaced from outside", self.source.process.log())


class Handover12(Hosts):
    """The same of a TPM 1.2."""
    VERSION = "1.2"
    test_moves = Handover.test_moves
    test_the_source_went_on = Handover.test_the_source_went_on
    test_damaged_on_the_way = Handover.test_damaged_on_the_way


if __name__ == "__main__":
    harness.main()
