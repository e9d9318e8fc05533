#!/usr/bin/python3
"""A replaced TPM, recovery keys, old copies, forks, and backups that are looked at: rollback stays noticed."""
import json
import os
import shutil

import harness
import tpm

VTPMCTL = os.environ["VTPMCTL"]
COUNTER = 0x01500001


class Recovery(harness.Case):
    def setUp(self):
        super().setUp()
        self.api = self.path("api.sock")
        self.file = self.path("recovery")
        self.manager = harness.Manager(self, options=["--auto-create", f"--api=unix:{self.api}"])
        self.manager.options.append(f"--recovery-file={self.file}")
        self.manager.start(create=True)
        self.manager.options.pop()
        self.instance = harness.Instance(self, self.manager).start(create=True)
        with self.instance.client() as guest:
            guest.nv_define_counter(COUNTER)
            guest.nv_increment(COUNTER)
            self.count = guest.nv_count(COUNTER)

    def ctl(self, *args, status=0):
        got, text = self.run_command(VTPMCTL, f"--socket={self.api}", *args, ok=False)
        self.assertEqual(got, status, text)
        return text

    def stop(self):
        self.instance.process.terminate()
        self.manager.process.terminate()

    def start_with(self, *options):
        """In good order, or what it says at its end."""
        self.manager.options += options
        process = self.manager.launch()
        del self.manager.options[len(self.manager.options) - len(options):]
        harness.wait_until(lambda: "Waiting for commands" in process.log() or not process.running(), "it starts or ends")
        return process

    def refused(self, *options, words=(), status=harness.EX_DATAERR):
        process = self.start_with(*options)
        self.assertEqual(process.wait(), status, process.log())
        for word in words:
            self.assertIn(word, process.log())

    def serves(self, *options):
        process = self.start_with(*options)
        self.assertTrue(process.running(), process.log())
        return process

    def new_tpm(self):
        """Another one, in the place of the one that the store was sealed by."""
        other = harness.Manager(self, name="other").start(create=True)
        other.process.terminate()
        self.manager.tpm = other.tpm

    def grow(self, steps):
        self.instance.start()
        with self.instance.client() as guest:
            for _ in range(steps):
                guest.nv_increment(COUNTER)
            self.count = guest.nv_count(COUNTER)
        self.instance.process.terminate()

    def check(self, *options, status=0, store=None):
        got, text = self.run_command(harness.VTPMD, "--mode=manager", "--check", f"--store={store or self.manager.store}",
                                     f"--tpm={self.manager.tpm}", *options, ok=False)
        self.assertEqual(got, status, text)
        return text

    def test_recovery(self):
        """The story of a replaced TPM, to its end."""
        with open(self.file, encoding="utf-8") as f:
            lines = f.read().splitlines()
        words = "\n".join(line for line in lines if line.startswith("#"))
        store = json.loads(self.ctl("status", "--json"))["store_uuid"]
        for word in (store, self.manager.store, os.uname().nodename, "--recovery-file", "--accept-counter=none"):
            self.assertIn(word, words)
        self.assertRegex(lines[-1], "^[0-9a-f]{64}$")
        recovery = f"--recovery-file={self.file}"
        self.stop()
        self.new_tpm()
        self.refused(words=["--recovery-file", "--accept-counter=none", "if it is gone"])
        self.refused(recovery, words=["newest copy", "--accept-counter=none"])
        self.check(status=harness.EX_DATAERR)
        self.assertIn("a start          is refused", self.check(recovery, status=harness.EX_DATAERR))
        self.serves(recovery, "--accept-counter=none")
        self.grow(1)
        self.manager.process.terminate()
        self.serves()
        self.manager.process.terminate()
        shutil.copyfile(self.manager.store, self.path("old"))
        self.serves()
        self.grow(4)
        self.manager.process.terminate()
        shutil.copyfile(self.manager.store, self.path("newest"))
        shutil.copyfile(self.path("old"), self.manager.store)
        self.refused(words=["old copy"])
        self.refused(recovery, words=["not needed"], status=harness.EX_USAGE)
        self.refused("--accept-counter=none", words=["not needed"], status=harness.EX_USAGE)
        shutil.copyfile(self.path("newest"), self.manager.store)
        self.refused(recovery, words=["not needed", "configuration"], status=harness.EX_USAGE)
        self.assertIn("opens it", self.check(recovery))
        self.serves()
        self.instance.start()
        with self.instance.client() as guest:
            self.assertEqual(guest.nv_count(COUNTER), self.count)

    def test_keys_are_added_listed_and_removed(self):
        listed = json.loads(self.ctl("recovery", "list", "--json"))["recovery_keys"]
        self.assertEqual(len(listed), 1)
        second = self.path("second")
        made = json.loads(self.ctl("recovery", "add", second, "--label=safe in Kiel", "--json"))
        self.assertEqual(os.stat(second).st_mode & 0o777, 0o600)
        with open(second, encoding="utf-8") as f:
            text = f.read()
        self.assertIn("safe in Kiel", text)
        self.assertIn(made["id"], text)
        self.assertNotIn(text.splitlines()[-1], self.manager.process.log())
        self.assertIn("safe in Kiel", self.ctl("recovery", "list"))
        self.ctl("recovery", "remove", listed[0]["id"], "--yes")
        self.assertIn("no recovery key", self.ctl("recovery", "remove", listed[0]["id"], "--yes", status=harness.EX_NOINPUT))
        self.assertIn("printable", self.ctl("recovery", "add", self.path("third"), "--label=a\nb", status=harness.EX_USAGE))
        self.assertFalse(os.path.exists(self.path("third")))
        self.stop()
        self.new_tpm()
        self.refused(f"--recovery-file={self.file}", "--accept-counter=none", words=["not a recovery key of this store"])
        self.serves(f"--recovery-file={second}", "--accept-counter=none")
        self.assertIn("safe in Kiel", self.ctl("recovery", "list"))

    def test_a_trial_of_a_backup_does_not_make_production_old(self):
        """With a look, and with a start."""
        kept = self.path("kept")
        self.ctl("backup", kept)
        with self.instance.client() as guest:
            for _ in range(10):
                guest.nv_increment(COUNTER)
            self.count = guest.nv_count(COUNTER)
        self.instance.process.terminate()
        self.manager.process.kill()
        self.assertIn("a start          serves", self.check(store=kept))
        self.assertIn("a backup", self.check(store=kept))
        trial = harness.Manager(self, name="trial", tpm=self.manager.tpm)
        trial.store = kept
        trial.start()
        trial.process.wait_log("this is a backup")
        trial.process.terminate()
        self.manager.start()
        self.instance.start()
        with self.instance.client() as guest:
            self.assertEqual(guest.nv_count(COUNTER), self.count)

    def test_a_backup_is_verified_while_the_manager_runs(self):
        kept = self.path("kept")
        self.ctl("backup", kept)

        def verify(path=kept):
            return json.loads(self.ctl("backup", "--verify", path, "--json"))
        before = json.loads(self.ctl("freshness", "--json"))["counter"]
        self.assertEqual((verify()["relation"], verify()["backup"], verify()["vtpms"]), ("newest", True, 1))
        with self.instance.client() as guest:
            guest.nv_increment(COUNTER)
        self.assertEqual((verify()["relation"], verify()["behind"]), ("older", 1))
        self.assertEqual(json.loads(self.ctl("freshness", "--json"))["counter"], before)
        self.assertIn("older copy", self.ctl("backup", "--verify", kept))
        # Which keys open it: one that was added since does not, one that was removed since still does.
        old = [k["id"] for k in verify()["opened_by"]]
        self.ctl("recovery", "add", self.path("second"), "--label=second safe")
        seen = verify()
        self.assertEqual([k["id"] for k in seen["opened_by"]], old)
        second = seen["not_opened_by"][0]["id"]
        said = self.ctl("backup", "--verify", kept)
        self.assertIn(f"Recovery key {second} (second safe) does NOT open it", said)
        self.ctl("backup", self.path("newer"))
        self.assertIn(f"Recovery key {second} (second safe) opens it", self.ctl("backup", "--verify", self.path("newer")))
        self.ctl("recovery", "remove", second, "--yes")
        self.assertIn(second, [k["id"] for k in verify(self.path("newer"))["opened_by"]])
        self.assertEqual(verify()["not_opened_by"], [])
        with open(self.path("letter"), "w") as f:
            f.write("dear operator")
        self.assertIn("not the image of a manager",
                      self.ctl("backup", "--verify", self.path("letter"), status=harness.EX_SOFTWARE))
        with open(kept, "rb") as f:
            content = bytearray(f.read())
        used = len(content.rstrip(b"\0"))
        content[used - 300] ^= 1
        with open(self.path("flipped"), "wb") as f:
            f.write(content)
        self.assertIn("damaged", self.ctl("backup", "--verify", self.path("flipped"), status=harness.EX_SOFTWARE))
        self.ctl("backup", "--verify", kept, "--yes", status=harness.EX_USAGE)
        # Another store's.
        other = harness.Manager(self, name="other", options=["--auto-create", f"--api=unix:{self.path('o.sock')}"])
        other.start(create=True)
        self.run_command(VTPMCTL, f"--socket={self.path('o.sock')}", "backup", self.path("others"))
        self.assertIn("is a copy of store", self.ctl("backup", "--verify", self.path("others"), status=harness.EX_TEMPFAIL))
        other.process.terminate()
        # A fork: the backup is started, changed, and then shown to the store that went on by itself.
        self.stop()
        shutil.copyfile(self.manager.store, self.path("store"))
        shutil.copyfile(kept, self.manager.store)
        self.manager.options.append("--freshness=off")
        self.manager.start()
        harness.Instance(self, self.manager, name="fork").start(create=True).process.terminate()
        self.manager.process.terminate()
        shutil.copyfile(self.manager.store, self.path("fork"))
        shutil.copyfile(self.path("store"), self.manager.store)
        self.manager.start()
        seen = verify(self.path("fork"))
        self.assertEqual((seen["relation"], seen["ahead"] > 0), ("fork", True))
        self.assertIn("has to be given up", self.ctl("backup", "--verify", self.path("fork")))

    def test_a_look_at_a_store_that_is_open_is_refused(self):
        mine = self.manager.tpm
        self.new_tpm()
        self.assertIn("in use by another process", self.check(status=harness.EX_TEMPFAIL))
        self.manager.tpm = mine
        self.stop()
        self.assertIn("a start          serves", self.check())
        got, text = self.run_command(harness.VTPMD, "--mode=manager", "--check", "--create", ok=False)
        self.assertEqual(got, harness.EX_USAGE, text)


if __name__ == "__main__":
    harness.main()
