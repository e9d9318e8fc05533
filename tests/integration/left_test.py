#!/usr/bin/python3
"""What tools/test looks for at its end: processes, mounts and control groups that its tests left behind make the run fail, and go."""
import contextlib
import glob
import io
import json
import os
import signal

import control_group
import harness

harness.need_root()
harness.private_mounts()
left = control_group.left
VTPMCTL = os.environ.get("VTPMCTL", "vtpmctl")


class Left(harness.Case):
    def setUp(self):
        super().setUp()
        self.mark = f"VTPMD_LEFT_TEST={harness.new_uuid()}"
        self.env = dict([self.mark.split("=")])
        self.before = self.path("mounts")
        with open(self.before, "w") as f:
            f.write("\n".join(left.mounts()))
        for name, value in (("PATIENCE", 0.5), ("GROUPS", "/sys/fs/cgroup/**/" + os.path.basename(self.dir) + "-*")):
            self.addCleanup(setattr, left, name, getattr(left, name))
            setattr(left, name, value)

    def find(self):
        """(whether there was something, what was said of it)"""
        said = io.StringIO()
        with contextlib.redirect_stdout(said):
            return left.find(self.mark, self.before), said.getvalue()

    def test_nothing(self):
        self.assertEqual(self.find(), (False, ""))

    def test_an_instance_whose_manager_is_gone(self):
        """Another user's, forked, not to be looked into, with a parent that is nobody of the run's."""
        api = self.path("api.sock")
        os.mkdir(self.path("run"))
        manager = harness.Manager(self, options=[f"--api=unix:{api}", f"--run-dir={self.path('run')}"])
        manager.start(create=True, env=self.env)

        def ctl(*words):
            return json.loads(self.run_command(VTPMCTL, f"--socket={api}", *words, "--json")[1])
        uuid = ctl("create")["uuid"]
        ctl("start", uuid, "--wait")
        pid = ctl("show", uuid)["pid"]
        manager.process.kill()
        self.assertTrue(os.path.exists(f"/proc/{pid}"))
        found, said = self.find()
        self.assertTrue(found)
        self.assertRegex(said, rf"(?m)^left running: {pid} .*--uuid={uuid}")
        harness.wait_until(lambda: pid not in left.processes(self.mark), "the instance to be gone")
        self.assertEqual(self.find(), (False, ""))

    def test_what_is_about_to_end_is_waited_for(self):
        left.PATIENCE = harness.PATIENCE
        ending = self.spawn("ending", "sh", "-c", "exec sleep 1", env=self.env)
        self.assertEqual(self.find(), (False, ""))
        self.assertEqual(ending.wait(), 0)

    def test_a_process_of_others_stays(self):
        other = self.spawn("other", "sleep", "60", env={self.mark.split("=")[0]: "another run"})
        ours = self.spawn("ours", "sleep", "60", env=self.env)
        self.assertTrue(self.find()[0])
        self.assertEqual(ours.wait(), -signal.SIGKILL)
        self.assertTrue(other.running())

    def test_a_mount(self):
        place = self.path("mounted")
        os.mkdir(place)
        harness.mount("tmpfs", place, "tmpfs")
        found, said = self.find()
        self.assertEqual((found, said), (True, f"left mounted: {place}\n"))
        self.assertEqual(self.find(), (False, ""))

    def test_a_control_group(self):
        """One whose maker has gone. A maker that lives is still at work."""
        roots = ("/sys/fs/cgroup", *sorted(glob.glob("/sys/fs/cgroup/*")))
        root = next(f for f in roots if os.path.exists(f + "/cgroup.procs"))
        gone = self.spawn("gone", "true")
        gone.wait()
        group, busy = (os.path.join(root, f"{os.path.basename(self.dir)}-{pid}") for pid in (gone.pid, os.getpid()))
        for folder in (group, busy):
            os.mkdir(folder)
        self.addCleanup(os.rmdir, busy)
        inside = self.spawn("inside", "sleep", "60")
        with open(os.path.join(group, "cgroup.procs"), "w") as f:
            f.write(str(inside.pid))
        found, said = self.find()
        self.assertEqual((found, said), (True, f"left behind: {group}\n"))
        self.assertEqual(inside.wait(), -signal.SIGKILL)
        self.assertFalse(os.path.exists(group))
        self.assertEqual(self.find(), (False, ""))


if __name__ == "__main__":
    harness.main()
