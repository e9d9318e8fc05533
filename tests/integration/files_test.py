#!/usr/bin/python3
"""Files that are pulled away while they are open: noticed before the next acknowledgement, with a way to rescue what was
acknowledged. And files that are made for an operator: none goes over what is no such file."""
import os
import shutil
import subprocess

import harness
import tpm

harness.need_root()
harness.private_mounts()
VTPMCTL = os.environ["VTPMCTL"]
COUNTER = 0x01500001
MS_BIND = 4096


class PulledAway(harness.Case):
    def setUp(self):
        super().setUp()
        self.place = self.path("place")
        os.mkdir(self.place)
        self.manager = harness.Manager(self, dir=self.place).start(create=True)
        self.instance = harness.Instance(self, self.manager, dir=self.place).start(create=True)
        with self.instance.client() as guest:
            guest.nv_define_counter(COUNTER)
        self.count = self.steps(3)

    def steps(self, count):
        """That many acknowledged steps of the guest's counter: where it stands."""
        with self.instance.client() as guest:
            for _ in range(count):
                guest.nv_increment(COUNTER)
            return guest.nv_count(COUNTER)

    def step_works(self):
        """Whether a step is acknowledged. While the manager cannot say what became of the last one an answer may take long."""
        try:
            with self.instance.client() as guest:
                guest.nv_increment(COUNTER)
                return True
        except (tpm.TpmError, OSError):
            return False

    def refused(self, culprit, pattern):
        """No step is acknowledged, and the log says why and the way out."""
        self.assertFalse(self.step_works(), "acknowledged in a file that is not there any more")
        culprit.process.wait_log(pattern)
        self.assertTrue(self.manager.process.running() and self.instance.process.running())

    def restart(self):
        for p in (self.instance.process, self.manager.process):
            p.kill()
        self.manager.start()
        self.instance.start()

    def check_intact(self):
        """Whatever was acknowledged is there; steps that were not may be too."""
        with self.instance.client() as guest:
            self.assertIn(guest.nv_count(COUNTER), range(self.count, self.count + 4))
        self.count = self.steps(2)

    def rescue(self, path):
        self.assertTrue(os.path.exists(path + ".rescued"), os.listdir(self.place))
        self.assertEqual(os.stat(path + ".rescued").st_mode & 0o777, 0o600)
        for p in (self.instance.process, self.manager.process):
            p.kill()
        os.rename(path + ".rescued", path)
        self.manager.start()
        self.instance.start()
        self.check_intact()

    def test_store_unlinked(self):
        os.unlink(self.manager.store)
        self.refused(self.manager, r"was deleted.*manager\.img\.rescued; then end this process")
        self.rescue(self.manager.store)

    def test_image_unlinked(self):
        os.unlink(self.instance.image)
        self.refused(self.instance, r"was deleted.*\.img\.rescued; then end this process")
        self.rescue(self.instance.image)

    def test_store_renamed_over_by_a_restore_tool(self):
        shutil.copyfile(self.manager.store, self.path("old"))
        self.count = self.steps(2)
        os.rename(self.path("old"), self.manager.store)
        self.refused(self.manager, r"renamed over it.*\.rescued")
        self.rescue(self.manager.store)

    def test_image_renamed_over_by_a_restore_tool(self):
        shutil.copyfile(self.instance.image, self.path("old"))
        self.count = self.steps(2)
        os.rename(self.path("old"), self.instance.image)
        self.refused(self.instance, r"renamed over it.*\.rescued")
        self.rescue(self.instance.image)

    def test_moved_and_put_back(self):
        for who, path in ((self.manager, self.manager.store), (self.instance, self.instance.image)):
            os.rename(path, path + ".away")
            self.refused(who, r"not at its path any more.*/proc/\d+/fd/\d+")
            os.rename(path + ".away", path)
            harness.wait_until(self.step_works, "it goes on", patience=4 * harness.PATIENCE)
            self.count = self.steps(1)
        self.restart()
        self.check_intact()
        self.assertEqual([n for n in os.listdir(self.place) if "rescued" in n], [])

    def test_directory_renamed_and_put_back(self):
        os.rename(self.place, self.place + ".away")
        self.refused(self.instance, "its directory was")
        os.rename(self.place + ".away", self.place)
        harness.wait_until(self.step_works, "it goes on", patience=4 * harness.PATIENCE)
        self.count = self.steps(1)
        self.restart()
        self.check_intact()

    def test_mounted_over(self):
        """The programs see this test's mounts."""
        os.mkdir(self.path("over"))
        harness.mount(self.path("over"), self.place, None, MS_BIND)
        try:
            self.refused(self.instance, "something was mounted over it|not at its path")
        finally:
            harness.umount(self.place)
        harness.wait_until(self.step_works, "it goes on", patience=4 * harness.PATIENCE)
        self.count = self.steps(1)
        self.restart()
        self.check_intact()

    def test_copied_over_in_place(self):
        """An older copy is written into the open file: what is in memory is written again, and nothing is lost."""
        for path in (self.manager.store, self.instance.image):
            shutil.copyfile(path, self.path("old"))
            self.count = self.steps(3)
            with open(self.path("old"), "rb") as old, open(path, "r+b") as f:
                f.write(old.read())
            harness.wait_until(self.step_works, "what was lost is written again", patience=4 * harness.PATIENCE)
            self.count = self.steps(1)
            self.restart()
            self.check_intact()

    def test_cut_short(self):
        os.truncate(self.manager.store, 200_000)
        self.refused(self.manager, "cut it short")

    def test_hard_link_keeps_the_file_and_not_its_place(self):
        os.link(self.manager.store, self.path("link"))
        self.count = self.steps(1)
        os.unlink(self.manager.store)
        self.refused(self.manager, "not at its path any more")
        os.link(self.path("link"), self.manager.store)
        harness.wait_until(self.step_works, "it goes on", patience=4 * harness.PATIENCE)
        self.count = self.steps(1)
        self.restart()
        self.check_intact()

    def test_sparse_copy_gets_its_room_again(self):
        for p in (self.instance.process, self.manager.process):
            p.terminate()
        self.count_blocks = os.stat(self.manager.store).st_blocks
        for path in (self.manager.store, self.instance.image):
            subprocess.run(["cp", "--sparse=always", path, self.path("sparse")], check=True, timeout=60)
            os.replace(self.path("sparse"), path)
        self.assertLess(os.stat(self.manager.store).st_blocks, self.count_blocks)
        self.manager.start()
        self.assertGreaterEqual(os.stat(self.manager.store).st_blocks * 512, os.stat(self.manager.store).st_size)
        self.instance.start()
        self.check_intact()


class MadeFiles(harness.Case):
    def setUp(self):
        super().setUp()
        self.api = self.path("api.sock")
        self.manager = harness.Manager(self, options=["--auto-create", f"--api=unix:{self.api}"]).start(create=True)
        self.instance = harness.Instance(self, self.manager).start(create=True)

    def ctl(self, *args, status=0, cwd=None):
        got, text = self.run_command(VTPMCTL, f"--socket={self.api}", *args, ok=False, cwd=cwd)
        self.assertEqual(got, status, text)
        return text

    def test_backup_over(self):
        """Never over the store, whatever it is called, nor over anything else that is no backup."""
        store = os.stat(self.manager.store)
        os.symlink(self.manager.store, self.path("symlink"))
        os.symlink(self.path("symlink"), self.path("symlink2"))
        os.symlink(self.path("nowhere"), self.path("dangling"))
        os.link(self.manager.store, self.path("hardlink"))
        os.mkdir(self.path("directory"))
        os.symlink(self.dir, self.path("directory", "up"))
        with open(self.path("letter"), "w") as f:
            f.write("dear operator")
        shutil.copyfile(self.manager.store, self.path("stopped.img"))  # a store, and no backup
        name = os.path.basename(self.manager.store)
        victims = [self.manager.store, self.path("symlink"), self.path("symlink2"), self.path("hardlink"),
                   self.path("directory", "up", name), self.path("dangling"), self.path("directory"), self.path("letter"),
                   self.path("stopped.img"), self.instance.image, "/dev/null", name, "./" + name]
        for victim in victims:
            before = os.stat(os.path.join(self.dir, victim)) if "dangling" not in victim else None
            for flags in ([], ["--yes"], ["--yes", "--json"]):
                with self.subTest(victim=victim, flags=flags):
                    text = self.ctl("backup", victim, *flags, status=harness.EX_CANTCREAT, cwd=self.dir)
                    self.assertIn("name", text)
            if before:
                after = os.stat(os.path.join(self.dir, victim))
                self.assertEqual((before.st_ino, before.st_size), (after.st_ino, after.st_size))
        self.assertEqual(os.stat(self.manager.store).st_ino, store.st_ino)
        self.assertFalse([n for n in os.listdir(self.dir) if ".img." in n], "a draft was left")
        for n in range(2):
            self.ctl("backup", self.path("kept"), *(["--yes"] if n else []))
        os.symlink(self.path("kept"), self.path("to-kept"))
        self.ctl("backup", self.path("to-kept"), "--yes")
        self.assertTrue(os.path.islink(self.path("to-kept")))
        self.assertFalse(os.path.islink(self.path("kept")))
        # A restored backup that was changed since is a store, and is not replaced any more.
        for p in (self.instance.process, self.manager.process):
            p.terminate()
        self.manager.store, first = self.path("kept"), self.manager.store
        self.manager.options.append("--freshness=off")
        self.manager.start()
        harness.Instance(self, self.manager, name="another").start(create=True).process.terminate()
        self.manager.process.terminate()
        self.manager.store = first
        self.manager.start()
        self.assertIn("is not a backup", self.ctl("backup", self.path("kept"), "--yes", status=harness.EX_CANTCREAT))

    def test_other_files_that_are_made(self):
        """Recovery files and approval lists."""
        self.assertIn("name another", self.ctl("recovery", "add", self.manager.store, status=harness.EX_CANTCREAT))
        with open(self.path("letter"), "w") as f:
            f.write("dear operator\n" * 30)
        self.assertIn("is there", self.ctl("recovery", "add", self.path("letter"), status=harness.EX_CANTCREAT))
        self.assertEqual(self.ctl("recovery", "list").count("\n"), 1)
        subprocess.run(["openssl", "ecparam", "-genkey", "-name", "prime256v1", "-noout", "-out", self.path("key")], check=True,
                       timeout=60, stderr=subprocess.DEVNULL)
        sign = ["approve", f"--key={self.path('key')}", f"--group={harness.new_uuid()}",
                "--pcr=sha256:0=" + "00" * 32]
        self.ctl(*sign, "--sequence=1", f"--out={self.path('list')}")
        self.ctl(*sign, "--sequence=2", f"--out={self.path('list')}")  # one of its kind is replaced
        for victim in (self.path("letter"), self.manager.store, self.instance.image, self.path("key")):
            with self.subTest(victim=victim), open(victim, "rb") as f:
                content = f.read()
                self.ctl(*sign, "--sequence=3", f"--out={victim}", status=harness.EX_CANTCREAT)
                with open(victim, "rb") as again:
                    self.assertEqual(again.read(), content)
        self.assertTrue(self.manager.process.running())


if __name__ == "__main__":
    harness.main()
