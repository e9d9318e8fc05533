#!/usr/bin/python3
"""Management: vtpmctl and raw HTTP against a running manager; who may do what; what bad input gets."""
import concurrent.futures
import json
import os
import pwd
import re
import select
import shutil
import signal
import socket
import subprocess
import termios

import harness
import tpm

harness.need_root()
VTPMCTL = os.environ["VTPMCTL"]
DATA = 0x01500002
UNKNOWN = "00000000-0000-4000-8000-00000000dead"


class Managed(harness.Case):
    def setUp(self):
        super().setUp()
        self.api = self.path("api.sock")
        os.mkdir(self.path("run"))
        self.manager = harness.Manager(self, options=[f"--api=unix:{self.api}", f"--run-dir={self.path('run')}"])
        self.manager.start(create=True)

    def ctl(self, *args, status=0):
        got, text = self.run_command(VTPMCTL, f"--socket={self.api}", *args, ok=False)
        self.assertEqual(got, status, text)
        return text

    def connect(self):
        return harness.connect(self.api)

    def raw(self, data, finish=False):
        """What is answered to these bytes until the end of the connection."""
        with self.connect() as s:
            s.sendall(data)
            if finish:
                s.shutdown(socket.SHUT_WR)
            return self.read_all(s)

    def read_all(self, s):
        out = b""
        while True:
            try:
                got = s.recv(65536)
            except ConnectionResetError:
                return out
            if not got:
                return out
            out += got

    def call(self, method, target, body=None, headers=""):
        if not isinstance(body, (bytes, type(None))):
            body = json.dumps(body).encode()
        body = body or b""
        answer = self.raw(f"{method} {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{headers}"
                          f"Content-Length: {len(body)}\r\n\r\n".encode() + body)
        head, _, content = answer.partition(b"\r\n\r\n")
        status = int(head.split()[1])
        return status, (json.loads(content) if b"application/json" in head else content.decode())

    def expect_error(self, status, code, method, target, body=None):
        got, error = self.call(method, target, body)
        self.assertEqual((got, error.get("code")), (status, code), error)
        self.assertEqual(set(error), {"code", "message", "action"})
        self.assertTrue(error["message"] and error["action"], error)
        return error

    def state(self, uuid):
        return self.call("GET", f"/v1/vtpms/{uuid}")[1]["state"]

    def running(self, uuid):
        """A guest's connection to it, once it runs."""
        self.ctl("start", uuid)
        harness.wait_until(lambda: self.state(uuid) == "running", "the instance runs")
        return tpm.Client(harness.connect(self.path("run", uuid + ".sock")))

    def restart_manager(self):
        self.manager.process.terminate()
        self.manager.start()


class Api(Managed):
    def test_life_of_a_vtpm(self):
        """list, create, start, use, stop, start again with its state, delete; and gone also after a restart."""
        self.assertEqual(json.loads(self.ctl("list", "--json")), {"vtpms": []})
        made = json.loads(self.ctl("create", "--json"))
        uuid = made["uuid"]
        self.assertEqual((made["state"], made["saves"], made["tpm_version"]), ("fresh", 0, "2.0"))
        self.assertIn(uuid, self.ctl("list"))

        self.ctl("start", uuid)
        harness.wait_until(lambda: self.state(uuid) == "running", "the instance runs")
        guest_socket = self.path("run", uuid + ".sock")
        with tpm.Client(harness.connect(guest_socket)) as guest:
            guest.nv_define(DATA, 8)
            guest.nv_write(DATA, b"for good")
        error = self.ctl("delete", uuid, "--yes", status=harness.EX_TEMPFAIL)
        self.assertIn("what to do", error)
        self.ctl("start", uuid)  # is there already
        self.ctl("stop", uuid)
        self.assertEqual(self.state(uuid), "stopped")
        self.ctl("start", uuid)
        with tpm.Client(harness.connect(guest_socket)) as guest:
            self.assertEqual(guest.nv_read(DATA, 8), b"for good")
        self.ctl("stop", uuid)

        error = self.ctl("delete", uuid, status=harness.EX_USAGE)
        self.assertIn("--yes", error)
        self.assertIn(uuid, self.ctl("list"))
        self.ctl("delete", uuid, "--yes")
        for _ in range(2):
            self.assertNotIn(uuid, self.ctl("list"))
            self.ctl("show", uuid, status=harness.EX_DATAERR)
            self.ctl("create", uuid, status=harness.EX_DATAERR)
            self.manager.process.terminate()
            self.assertFalse(os.path.exists(self.api), "the socket is left behind")
            self.manager.start()

    def test_an_instance_of_somebody_else(self):
        uuid = harness.new_uuid()
        self.ctl("create", uuid, "--tpm-version=1.2")
        self.ctl("create", uuid, status=harness.EX_CANTCREAT)
        instance = harness.Instance(self, self.manager, version="1.2", uuid=uuid).start(create=True)
        self.assertEqual(self.state(uuid), "open")
        self.assertIn(str(instance.process.pid), self.ctl("start", uuid, status=harness.EX_TEMPFAIL))
        self.ctl("delete", uuid, "--yes", status=harness.EX_TEMPFAIL)
        self.ctl("stop", uuid)
        self.assertEqual(instance.process.wait(), 0)
        self.assertEqual(self.state(uuid), "stopped")
        self.ctl("delete", uuid, "--yes")

    def test_what_is_told(self):
        self.ctl("create")
        self.assertIn("embedded", self.ctl("status"))
        self.assertEqual(json.loads(self.ctl("freshness", "--json"))["policy"], "window:900")
        self.assertEqual(json.loads(self.ctl("seal", "--json"))["selection"], "none")
        metrics = self.ctl("metrics")
        for line in ('vtpmd_vtpms{state="fresh"} 1', 'vtpmd_vtpms{state="running"} 0', "# TYPE vtpmd_hwtpm_job_seconds histogram"):
            self.assertIn(line + "\n", metrics)
        names = set()
        for line in metrics.splitlines():  # the text format: each line is a comment or a sample of a family that was announced
            if line.startswith("# TYPE "):
                names.add(line.split()[2])
            elif not line.startswith("#"):
                name, value = line.rsplit(" ", 1)
                float(value)
                base = name.split("{")[0]
                self.assertTrue(base in names or base.rsplit("_", 1)[0] in names, line)
        for name in [n for n in names if f"# TYPE {n} histogram" in metrics]:  # cumulative, and its end is its count
            buckets = [float(line.split()[1]) for line in metrics.splitlines() if line.startswith(name + "_bucket{")]
            self.assertEqual(buckets, sorted(buckets), name)
            self.assertIn(f"{name}_count {int(buckets[-1])}\n", metrics)
        with open(os.path.join(os.path.dirname(__file__), "../../contrib/grafana/vtpmd.json")) as f:
            shown = set(re.findall(r"vtpmd_\w+(?=[{,])", f.read()))
        self.assertGreater(len(shown), 10)
        for name in shown:  # what the dashboard draws is there
            self.assertTrue(name in names or name.removesuffix("_bucket") in names, name)

    def figure(self, name):
        return sum(float(line.rsplit(" ", 1)[1]) for line in self.ctl("metrics").splitlines() if line.startswith(name))

    def test_what_guests_do(self):
        """By name and outcome, in metrics and in the live view; kept when the instance ends, not counted again when the manager is
        another."""
        instance = harness.Instance(self, self.manager).start(create=True)
        uuid, name = instance.uuid, "vtpmd_guest_commands_total"
        top = lambda: [row for row in json.loads(self.ctl("top", "--once", "--json"))["busiest"] if row["uuid"] == uuid]
        with instance.client() as guest:
            for _ in range(20):
                guest.get_random(8)
            guest.nv_define(0x01500002, 8)
            with self.assertRaises(tpm.TpmError):
                guest.nv_define(0x01500002, 8)
            with self.assertRaises(tpm.TpmError):
                guest.must("nothing", tpm.TPM_ST_NO_SESSIONS, 0x1FF, b"")
        random, define = ('{ordinal="TPM2_GetRandom",outcome="success"}', '{ordinal="TPM2_NV_DefineSpace",outcome="')
        harness.wait_until(lambda: self.figure(name + random) == 20, "the guest's commands in the metrics")
        harness.wait_until(lambda: self.figure(name + define + "tpm_error") == 1, "and those that failed")
        self.assertEqual(self.figure(name + define + "success"), 1)
        self.assertEqual(self.figure(name + '{ordinal="other",outcome="tpm_error"}'), 1)
        self.assertEqual(self.figure("vtpmd_guest_command_seconds_count"), self.figure(name))
        self.assertGreaterEqual(self.figure("vtpmd_guest_commits_total"), 1)
        row, = top()
        self.assertEqual((row["commands"], row["failures"], row["state"]), (self.figure(name), 2, "open"))
        text = self.ctl("top", "--once", "--interval=0.1")
        self.assertRegex(text, rf"(?m)^{uuid}  open +[0-9.]+ +{row['commands']} +2 +")
        self.assertRegex(text, r"(?m)^hardware TPM +[0-9.]+ commands/s; waiting: 0 urgent, \d routine")
        for bad in ("0", "x", "", "nan", "1e9"):
            self.assertIn("--interval", self.ctl("top", f"--interval={bad}", status=harness.EX_USAGE))
        self.assertIn("--once", self.ctl("top", "--json", status=harness.EX_USAGE))

        with instance.client() as guest:
            guest.get_random(8)
        instance.process.terminate()  # reports what it has not yet
        harness.wait_until(lambda: top() == [], "its end")
        self.assertEqual(self.figure(name + random), 21)
        instance.start()
        with instance.client() as guest:
            guest.get_random(8)
        harness.wait_until(lambda: self.figure(name + random) == 22, "the next instance's")
        self.manager.process.terminate()
        self.manager.start()
        harness.wait_until(lambda: name + random in self.ctl("metrics"), "the instance at the new manager, by itself")
        self.assertEqual((len(top()), self.figure(name + random)), (1, 0))
        with instance.client() as guest:
            guest.get_random(8)
        harness.wait_until(lambda: self.figure(name + random) >= 1, "what happened since")
        self.assertEqual(self.figure(name + random), 1)
        instance.process.terminate()

    def test_top_on_a_terminal(self):
        """Drawn anew until q, Ctrl-C or SIGTERM; the terminal is left as it was. Into a pipe it is plain text."""
        ours, theirs = os.openpty()
        self.addCleanup(os.close, ours)
        self.addCleanup(os.close, theirs)
        before = termios.tcgetattr(theirs)
        for key, end in ((b"q", None), (b"xQ", None), (None, signal.SIGINT), (None, signal.SIGTERM)):
            with self.subTest(key=key, end=end):
                top = subprocess.Popen([VTPMCTL, f"--socket={self.api}", "top", "--interval=0.1"], stdin=theirs, stdout=theirs,
                                       stderr=theirs)
                shown = b""
                while shown.count(b"\x1b[H") < 3:  # more than once
                    self.assertTrue(select.select([ours], [], [], 30)[0], shown)
                    shown += os.read(ours, 65536)
                self.assertIn(b"COMMANDS/S", shown)
                self.assertNotEqual(termios.tcgetattr(theirs)[3], before[3])
                if key:
                    os.write(ours, key)
                else:
                    top.send_signal(end)
                self.assertEqual(top.wait(30), 0)
                self.assertEqual(termios.tcgetattr(theirs), before)
        top = subprocess.Popen([VTPMCTL, f"--socket={self.api}", "top", "--interval=0.1"], stdin=subprocess.DEVNULL,
                               stdout=subprocess.PIPE)
        text = b"".join(top.stdout.readline() for _ in range(20))
        top.stdout.close()  # whoever read it is gone
        top.wait(30)
        self.assertGreater(text.count(b"COMMANDS/S"), 1)
        self.assertNotIn(b"\x1b", text)

    def test_bad_requests(self):
        for status, code, method, target, body in [
                (404, "no_such_path", "GET", "/v1/nothing", None),
                (404, "not_found", "GET", f"/v1/vtpms/{UNKNOWN}", None),
                (405, "no_such_method", "PUT", "/v1/vtpms", None),
                (404, "not_found", "POST", f"/v1/vtpms/{UNKNOWN}/reset", None),
                (405, "no_such_method", "GET", f"/v1/vtpms/{UNKNOWN}/reset", None),
                (400, "bad_request", "GET", "/v1/vtpms?name=%zz", None),
                (404, "not_found", "PATCH", f"/v1/vtpms/{UNKNOWN}", {"name": "a"}),
                (400, "bad_request", "PATCH", f"/v1/vtpms/{UNKNOWN}", {"name": 5}),
                (405, "no_such_method", "GET", "/v1/backup", None),
                (400, "bad_request", "POST", "/v1/backup", {"file": "/etc/passwd"}),
                (400, "bad_request", "POST", f"/v1/vtpms/{UNKNOWN}/reset", {"yes": "yes"}),
                (400, "bad_request", "GET", "/v1/vtpms/not-a-uuid", None),
                (400, "bad_request", "GET", "/v1/vtpms?limit=1", None),
                (400, "bad_request", "POST", "/v1/vtpms", b"{"),
                (400, "bad_request", "POST", "/v1/vtpms", b"[]"),
                (400, "bad_request", "POST", "/v1/vtpms", b"[" * 60000),
                (400, "bad_request", "POST", "/v1/vtpms", {"uuid": 5}),
                (400, "bad_request", "POST", "/v1/vtpms", {"uuid": "x"}),
                (400, "bad_request", "POST", "/v1/vtpms", {"colour": "blue"}),
                (400, "bad_request", "POST", "/v1/vtpms", {"tpm_version": "3.0"})]:
            with self.subTest(method=method, target=target, body=str(body)[:40]):
                self.expect_error(status, code, method, target, body)
        self.assertEqual(self.call("GET", "/v1/vtpms"), (200, {"vtpms": []}))

    def test_malformed_http(self):
        for data, wanted in [
                (b"nonsense\r\n\r\n", b"400"),
                (b"GET / HTTP/9.9\r\n\r\n", b"400"),
                (b"GET /v1/vtpms HTTP/1.1\r\nContent-Length: x\r\n\r\n", b"400"),
                (b"GET /v1/vtpms HTTP/1.1\r\nA: " + b"a" * 20000 + b"\r\n\r\n", b"431"),
                (b"POST /v1/vtpms HTTP/1.1\r\nContent-Length: 100000000\r\n\r\n", b"413")]:
            with self.subTest(data=data[:40]):
                answer = self.raw(data)
                self.assertEqual(answer.split()[1:2], [wanted], answer)
                self.assertIn(b'"action"', answer)
        self.raw(b"POST /v1/vtpms HTTP/1.1\r\nContent-Length: 50\r\n\r\n{", finish=True)  # leaves in the middle
        self.raw(b"\x16\x03\x01" + bytes(range(256)), finish=True)
        self.assertEqual(self.call("GET", "/v1/vtpms")[0], 200)

    def test_slow_senders_and_500_connections(self):
        """They hold up nobody, and the manager stops in good order with all of them open."""
        idle = []
        self.addCleanup(lambda: [s.close() for s in idle])
        for i in range(500):
            s = self.connect()
            idle.append(s)
            if i % 2:
                s.sendall(b"GET /v1/vtpms HTT")
        self.assertEqual(self.call("GET", "/v1/vtpms")[0], 200)
        for i, s in enumerate(idle):
            s.sendall(b"P/1.1\r\nConnection: close\r\n\r\n" if i % 2 else b"GET /v1/host HTTP/1.1\r\nConnection: close\r\n\r\n")
        for s in idle[:-50]:
            self.assertTrue(self.read_all(s).startswith(b"HTTP/1.1 200"))
        self.assertEqual(self.call("GET", "/v1/vtpms")[0], 200)
        more = [self.connect() for _ in range(20)]
        self.addCleanup(lambda: [s.close() for s in more])
        self.manager.process.terminate()

    def test_users(self):
        """Without a group nobody but root; a reader looks and changes nothing; others get nothing."""
        nobody = pwd.getpwnam("nobody")
        self.assertEqual(os.stat(self.api).st_mode & 0o777, 0o600)
        self.assertEqual(self.as_user(nobody, VTPMCTL, f"--socket={self.api}", "list")[0], harness.EX_NOPERM)
        self.manager.process.terminate()
        import grp
        groups = {"none": [], "read": ["--api-read-group=" + grp.getgrgid(nobody.pw_gid).gr_name],
                  "full": ["--api-group=" + grp.getgrgid(nobody.pw_gid).gr_name]}
        options = self.manager.options
        for right, more in groups.items():
            self.manager.options = options + (more or ["--api-group=daemon"])
            self.manager.start()
            with self.subTest(right=right):
                status, text = self.as_user(nobody, VTPMCTL, f"--socket={self.api}", "list")
                self.assertEqual(status, harness.EX_NOPERM if right == "none" else 0, text)
                status, text = self.as_user(nobody, VTPMCTL, f"--socket={self.api}", "create")
                self.assertEqual(status, 0 if right == "full" else harness.EX_NOPERM, text)
                self.assertEqual(len(json.loads(self.ctl("list", "--json"))["vtpms"]), 1 if right == "full" else 0)
            self.manager.process.terminate()
        self.manager.options = options
        self.assertEqual(self.vtpmd(*self.manager.args(False)[1:], "--api-group=no-such-group")[0], harness.EX_USAGE)

    def as_user(self, user, *args):
        def drop():
            os.setgroups([])
            os.setgid(user.pw_gid)
            os.setuid(user.pw_uid)
        # The programs' folder need not be open to that user, so it gets copies.
        program = self.path(os.path.basename(args[0]))
        if not os.path.exists(program):
            with open(args[0], "rb") as source, open(program, "wb") as target:
                target.write(source.read())
            os.chmod(program, 0o755)
        return self.run_command(program, *args[1:], ok=False, preexec_fn=drop)

    def test_vtpmctl_as_a_new_user(self):
        """Every refusal says what to do next."""
        for args, status in [([], harness.EX_USAGE), (["frobnicate"], harness.EX_USAGE), (["show"], harness.EX_USAGE),
                             (["show", "x"], harness.EX_NOINPUT), (["show", UNKNOWN], harness.EX_NOINPUT),
                             (["list", "--colour"], harness.EX_USAGE), (["create", "--tpm-version=3"], harness.EX_USAGE)]:
            with self.subTest(args=args):
                text = self.ctl(*args, status=status)
                self.assertRegex(text, r"vtpmctl (--help|list)|what to do: ")
        status, text = self.run_command(VTPMCTL, "--socket=/nonexistent/api.sock", "list", ok=False)
        self.assertEqual(status, harness.EX_UNAVAILABLE)
        self.assertIn("systemctl start", text)

    def test_two_clients_create_the_same(self):
        """One is made, the other is told that it is there."""
        uuid = harness.new_uuid()
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            statuses = sorted(pool.map(lambda _: self.call("POST", "/v1/vtpms", {"uuid": uuid})[0], range(4)))
        self.assertEqual(statuses, [201, 409, 409, 409])


class Names(Managed):
    def test_names(self):
        """Wherever a UUID is taken, if it is the name of one; told who they are if it is not."""
        odd = 'Zürich "3" & 100%'
        uuid = json.loads(self.ctl("create", f"--name={odd}", "--json"))["uuid"]
        other = json.loads(self.ctl("create", "--name=web", "--json"))["uuid"]
        nameless = json.loads(self.ctl("create", "--json"))["uuid"]
        self.assertEqual(json.loads(self.ctl("show", odd, "--json"))["uuid"], uuid)
        self.assertRegex(self.ctl("list"), f"{uuid} .*{odd}\n")
        self.assertEqual([v["uuid"] for v in json.loads(self.ctl("list", "--name=web", "--json"))["vtpms"]], [other])
        with self.running(uuid) as guest:  # renamed while it is open
            self.ctl("rename", odd, "web")
            guest.get_random(8)
        error = self.ctl("show", "web", status=harness.EX_USAGE)
        self.assertIn(uuid, error)
        self.assertIn(other, error)
        self.ctl("delete", "web", "--yes", status=harness.EX_USAGE)
        self.ctl("show", odd, status=harness.EX_NOINPUT)
        self.ctl("show", "", status=harness.EX_NOINPUT)
        self.ctl("stop", uuid.upper())
        self.ctl("rename", other, "db")
        self.ctl("reset", "web", "--yes")
        self.ctl("rename", nameless, "web2")
        self.ctl("rename", "web2", "")
        for _ in range(2):
            names = {v["uuid"]: v["name"] for v in self.call("GET", "/v1/vtpms")[1]["vtpms"]}
            self.assertEqual(names, {uuid: "web", other: "db", nameless: ""})
            self.restart_manager()
        self.ctl("delete", "web", "--yes")
        self.ctl("show", "web", status=harness.EX_NOINPUT)
        for bad in ("x" * 65, "a\tb", " a", nameless):
            self.assertIn("name: ", self.ctl("rename", other, bad, status=harness.EX_USAGE))
        self.expect_error(400, "bad_request", "PATCH", f"/v1/vtpms/{other}", b'{"name":"\xff"}')
        self.assertEqual(json.loads(self.ctl("show", "db", "--json"))["name"], "db")
        group = self.call("GET", f"/v1/vtpms/{other}")[1]["group"]
        self.assertEqual(len(json.loads(self.ctl("list", f"--group={group}", "--json"))["vtpms"]), 2)
        self.assertIn(other, self.ctl("move", "db", f"--group={group}"))


class Backup(Managed):
    """A copy of the store while it is written, and what it means to put it back."""

    def setUp(self):
        super().setUp()
        self.kept, self.busy = self.path("kept"), harness.Instance(self, self.manager)
        self.quiet = harness.Instance(self, self.manager)
        for instance in (self.busy, self.quiet):
            with instance.start(create=True).client() as guest:
                guest.nv_define(DATA, 8)
                guest.nv_write(DATA, b"kept....")
        self.quiet.process.terminate()

    def write(self, count):
        with self.busy.client() as guest:
            for n in range(count):
                guest.nv_write(DATA, b"%08d" % n)

    def put_back(self):
        """Everything stops, and the store is the backup."""
        self.busy.process.terminate()
        self.manager.process.terminate()
        shutil.copyfile(self.kept, self.manager.store)

    def refused(self, instance):
        process = instance.launch(create=True)
        self.assertEqual(process.wait(), harness.EX_DATAERR, process.log())
        return process.log()

    def check_restored(self):
        """What was saved since is refused, by name; what was not is there; and there is a way out."""
        with self.quiet.start().client() as guest:
            self.assertEqual(guest.nv_read(DATA, 8), b"kept....")
        self.quiet.process.terminate()
        self.assertIn("is an older copy", self.refused(self.busy))
        self.ctl("reset", self.busy.uuid, "--yes")
        self.assertIn("move it away", self.refused(self.busy))
        os.rename(self.busy.image, self.path("aside"))
        with self.busy.start().client() as guest:
            self.assertRaises(tpm.TpmError, guest.nv_read, DATA, 8)

    def restart_with(self, *options):
        self.manager.process.terminate()
        self.manager.options += options
        self.manager.start()

    def refused_as_a_rollback(self):
        """The counter's value, as the refusal tells it."""
        process = self.manager.launch()
        self.assertEqual(process.wait(), harness.EX_DATAERR, process.log())
        return re.search(r"--accept-counter=(\d+)", process.log()).group(1)

    def test_the_file(self):
        """Commits go on, and each that was acknowledged before is in it; a file that is there is kept."""
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            writing = pool.submit(self.write, 50)
            for n in range(3):
                done = json.loads(self.ctl("backup", self.kept, *(["--yes"] if n else []), "--json"))
            writing.result()
        size = os.stat(self.kept).st_size
        self.assertEqual((done["bytes"], os.stat(self.kept).st_mode & 0o777), (size, 0o600))
        self.assertLessEqual(size, os.stat(self.manager.store).st_size)
        self.assertIn("--yes", self.ctl("backup", self.kept, status=harness.EX_CANTCREAT))
        self.assertIn("name a place", self.ctl("backup", "/nonexistent/file", status=harness.EX_CANTCREAT))
        self.assertEqual([n for n in os.listdir(self.dir) if n.startswith("kept")], ["kept"])
        with self.connect() as s:  # somebody who asks and does not read holds up nobody
            s.sendall(b"POST /v1/backup HTTP/1.1\r\nContent-Length: 0\r\n\r\n")
            s.recv(10)
            self.assertIn("one is made at a time", self.ctl("backup", self.path("next"), status=harness.EX_TEMPFAIL))
            self.write(5)
        harness.wait_until(lambda: self.run_command(VTPMCTL, f"--socket={self.api}", "backup", self.path("next"),
                                                    ok=False)[0] == 0, "the next backup is made")

    def test_progress_on_a_terminal(self):
        import pty
        pid, terminal = pty.fork()
        if pid == 0:
            os.execv(VTPMCTL, [VTPMCTL, f"--socket={self.api}", "backup", self.kept])
        shown = b""
        try:
            while got := os.read(terminal, 4096):
                shown += got
        except OSError:  # its end
            pass
        self.assertEqual(os.waitpid(pid, 0)[1], 0, shown)
        self.assertIn(b"100 %", shown)

    def test_restored_without_freshness(self):
        self.restart_with("--freshness=off")
        self.ctl("backup", self.kept)
        self.write(3)
        self.put_back()
        self.manager.start()
        self.check_restored()

    def test_restored_with_strict_freshness(self):
        self.restart_with("--freshness=strict")
        self.ctl("backup", self.kept)
        self.write(3)
        self.put_back()
        self.manager.options.append(f"--accept-counter={self.refused_as_a_rollback()}")  # knowingly
        self.manager.start()
        self.manager.options.pop()
        self.check_restored()

    def test_restored_with_windows_of_freshness(self):
        self.ctl("backup", self.kept)
        self.put_back()  # the clean stop in it has stepped the counter
        self.refused_as_a_rollback()


class Reset(Managed):
    """To factory on purpose: the old state is gone, and no copy of it comes back or is replaced by mistake."""

    def copy(self, source, target):
        shutil.copyfile(source, target)
        return target

    def elsewhere(self, uuid, image):
        """An instance that somebody starts on this image: its log, once it has refused."""
        before = open(image, "rb").read()
        instance = harness.Instance(self, self.manager, uuid=uuid)
        instance.image = image
        process = instance.launch(create=True)
        self.assertEqual(process.wait(), harness.EX_DATAERR, process.log())
        self.assertEqual(open(image, "rb").read(), before, "an image that was refused is left as it is")
        return process.log()

    def test_reset(self):
        uuid = json.loads(self.ctl("create", "--json"))["uuid"]
        image = self.path(uuid + ".img")
        self.ctl("reset", uuid, "--yes")  # it has nothing yet
        self.assertNotIn("reset", self.call("GET", f"/v1/vtpms/{uuid}")[1])
        with self.running(uuid) as guest:
            guest.nv_define(DATA, 8)
            guest.nv_write(DATA, b"first...")
            older = self.copy(image, self.path("older"))
            guest.nv_write(DATA, b"second..")
            guest.nv_write(DATA, b"third...")
        self.assertIn("vtpmctl stop", self.ctl("reset", uuid, "--yes", status=harness.EX_TEMPFAIL))
        self.ctl("stop", uuid)
        past = self.copy(image, self.path("past"))
        self.assertIn("--yes", self.ctl("reset", uuid, status=harness.EX_USAGE))
        self.assertEqual(self.state(uuid), "stopped")
        for _ in range(2):
            self.assertIn("fresh", self.ctl("reset", uuid, "--yes"))
            self.restart_manager()
            self.assertEqual(self.state(uuid), "fresh")
        # Only the state that was reset is replaced, not an older copy of it.
        self.assertIn("is not the one that was reset", self.elsewhere(uuid, older))
        with self.running(uuid) as guest:
            self.assertRaises(tpm.TpmError, guest.nv_read, DATA, 8)
            guest.nv_define(DATA, 8)
            guest.nv_write(DATA, b"new life")
        self.ctl("stop", uuid)
        self.restart_manager()
        shown = self.call("GET", f"/v1/vtpms/{uuid}")[1]
        self.assertGreater(shown["reset"], 1_700_000_000)
        self.assertEqual(shown["state"], "stopped")
        self.assertIn("was reset to factory on", self.elsewhere(uuid, past))
        self.assertIn("was reset to factory on", self.elsewhere(uuid, older))
        with self.running(uuid) as guest:
            self.assertEqual(guest.nv_read(DATA, 8), b"new life")

    def test_an_instance_that_began_before(self):
        """The manager is away for a moment and the vTPM is reset: what runs is its past, and keeps nothing."""
        instance = harness.Instance(self, self.manager).start(create=True)
        uuid = instance.uuid
        with instance.client() as guest:
            guest.nv_define(DATA, 8)
            guest.nv_write(DATA, b"before..")
            instance.process.popen.send_signal(signal.SIGSTOP)  # or it is back with its manager before the reset
            self.restart_manager()
            self.assertIn("in use", self.ctl("reset", uuid, "--yes", status=harness.EX_TEMPFAIL))
            # Where the manager cannot know of it (another host's image, a note that was lost) it happens all the same.
            self.manager.process.terminate()
            os.unlink(self.path("run", "instances", uuid))
            self.manager.start()
            self.ctl("reset", uuid, "--yes")
            instance.process.popen.send_signal(signal.SIGCONT)
            self.assertRaises(tpm.TpmError, guest.nv_write, DATA, b"after...")
        instance.process.wait_log("was reset to factory after this instance began")
        instance.process.kill()
        instance.start()
        instance.process.wait_log("a fresh TPM takes the place")
        with instance.client() as guest:
            self.assertRaises(tpm.TpmError, guest.nv_read, DATA, 8)

    def test_an_image_that_was_lost(self):
        """Its reset is the way out: the TPM family stays, though there is no image that says it."""
        uuid = json.loads(self.ctl("create", "--tpm-version=1.2", "--json"))["uuid"]
        image = self.path(uuid + ".img")
        with self.running(uuid) as guest:
            guest.get_random12(8)  # it is made
        self.ctl("stop", uuid)
        os.unlink(image)
        instance = harness.Instance(self, self.manager, version="1.2", uuid=uuid)
        instance.image = image
        process = instance.launch(create=True)
        self.assertNotEqual(process.wait(), 0)
        self.assertIn("vtpmctl", process.log())
        self.ctl("reset", uuid, "--yes")
        with self.running(uuid) as guest:
            guest.get_random12(8)  # it is made
        self.assertEqual(self.call("GET", f"/v1/vtpms/{uuid}")[1]["tpm_version"], "1.2")


if __name__ == "__main__":
    harness.main()
