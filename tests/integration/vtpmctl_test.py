#!/usr/bin/python3
"""vtpmctl's command line against its own table: a command takes its own options, and no other's."""
import os
import re
import socket
import sys
import threading

import harness

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
import check_options  # noqa: E402

VTPMCTL = os.environ["VTPMCTL"]
EX_PROTOCOL = 76
NOBODY = "--socket=/nonexistent/api.sock"


class Vtpmctl(harness.Case):
    def ctl(self, *args, status=0):
        got, text = self.run_command(VTPMCTL, *args, ok=False)
        self.assertEqual(got, status, f"{args}: {text}")
        return text

    def refused(self, *args):
        text = self.ctl(*args, status=harness.EX_USAGE)
        self.assertEqual(len(text.splitlines()), 1, text)
        return text

    def test_every_option_with_every_other_command(self):
        """Refused before anything is done, with what was meant."""
        commands = check_options.commands_of(VTPMCTL)
        every = sorted(set().union(*(c.options for c in commands)))
        self.assertGreater(len(commands), 20)
        self.assertGreater(len(every), 20)
        for c in commands:
            for option in every:
                if option in c.options:
                    continue
                text = self.refused(*c.name.split(), NOBODY, f"--{option}")
                self.assertRegex(text, rf"^vtpmctl: {c.name} has no --{option}; did you mean (--|vtpmctl )[a-z]")
                self.assertIn(f"see vtpmctl {c.name} --help", text)

    def test_an_option_is_alike_in_all_commands(self):
        """With a value everywhere or nowhere: that is how a command behind its options is found."""
        kinds = {}
        for c in check_options.commands_of(VTPMCTL):
            for name, value in re.findall(r"--([a-z-]+)(=?)", c.usage):
                kinds.setdefault(name, set()).add(value)
        self.assertEqual([name for name, kind in kinds.items() if len(kind) != 1], [])

    def test_help_of_each_command(self):
        """It shows that command alone, and asks nobody; each option has a text."""
        commands = check_options.commands_of(VTPMCTL)
        for c in commands:
            for help_option in ("--help", "-h"):
                text = self.ctl(NOBODY, *c.name.split(), help_option)
                self.assertTrue(text.startswith(f"vtpmctl {c.name}"), text)
                self.assertLess(max(map(len, text.splitlines())), 120)
                self.assertEqual(check_options.options_in(text), c.options | {"socket", "help"})
                self.assertNotRegex(text, r"(?m)^  [a-z]", "another command is in it")
        families = {c.name.split()[0] for c in commands if " " in c.name}
        self.assertIn("group", families)
        for family in families:
            listed = set(re.findall(rf"(?m)^  ({family} [a-z]+)", self.ctl(family, "--help")))
            self.assertEqual(listed, {c.name for c in commands if c.name.startswith(family + " ")})

    def test_what_was_meant(self):
        for args, meant in ((["verify-quote", "q", "--pcrs=sha256:10=00"], "verify-quote has no --pcrs; did you mean --pcr?"),
                            (["verify-quote", "--host-pcrs", "x", "q"], "verify-quote has no --host-pcrs; did you mean --host-pcr?"),
                            (["quote", "v", "--pcr=sha256:10"], "quote has no --pcr; did you mean --pcrs?"),
                            (["verify-quote", "q", "--label=prod"], "did you mean vtpmctl recovery add, approve?"),
                            (["list", "--colour=red"], "list has no --colour; see vtpmctl list --help"),
                            (["list", "-x"], "list has no -x; see"),
                            (["lst"], "there is no command 'lst'; did you mean list?"),
                            (["group", "shw"], "group takes one of: list, show, create"),
                            (["--colour"], "there is no option --colour"), ([], "say what to do")):
            self.assertIn(meant, self.refused(*args))

    def test_values_and_words(self):
        refused = self.refused
        self.assertIn("--name needs a value", refused("list", "--name"))
        self.assertIn("--json takes no value", refused("list", "--json=yes"))
        self.assertIn("takes one --name, and it is given twice", refused("list", "--name=a", "--name", "b"))
        self.assertIn("needs --list: the newer approval list", refused("group", "update", harness.new_uuid()))
        self.assertIn("takes no argument", refused("status", "now"))
        self.assertIn("needs a vTPM's UUID or name, and its new name", refused("rename", "a"))
        self.assertIn("takes one UUID at most", refused("create", "a", "b"))
        self.assertIn("together with --request only", refused("verify-quote", "q", "--key=k", "--nonce=00", "--approver=nowhere"))
        self.assertIn("together with --request only", refused("verify-quote", "q", "--key=k", "--nonce=00", "--locality=1"))
        with open(self.path("request"), "wb"):
            pass
        self.assertIn("no --group together with --request", refused("verify-quote", "q", "--key=k", "--nonce=00",
                                                                    f"--request={self.path('request')}", "--group=g"))
        self.assertIn("takes --recovery-signature together with --recovery-key",
                      refused("group", "create", "--approver=/dev/null", "--list=/dev/null", "--recovery-signature=/dev/null"))
        self.assertIn("--interval has nothing to do", refused("top", "--once", "--json", "--interval=1"))

    def test_where_options_may_stand(self):
        """Before the command, behind it, with "=" or a blank; a name may begin with a dash or be empty."""
        for args in (["--json", "list", NOBODY], ["--name", "x", "list", NOBODY], ["list", *NOBODY.split("=")],
                     ["group", NOBODY, "list"], [NOBODY, "group", "list"], ["delete", "-y", "x", NOBODY],
                     ["rename", NOBODY, "x", ""], ["rename", NOBODY, "--", "x", "-dash"], ["rename", NOBODY, "[x]", "{y}"],
                     ["list", NOBODY, "--name", "--json"]):
            with self.subTest(args=args):
                self.assertIn("/nonexistent/api.sock: No such file", self.ctl(*args, status=harness.EX_UNAVAILABLE))
        self.assertRegex(self.ctl("--version"), r"^vtpmctl \d+\.\d+")
        self.assertRegex(self.ctl(NOBODY, "list", "--version"), r"^vtpmctl \d+\.\d+")

    def test_what_answers_is_not_vtpmd(self):
        """Another program at the socket; and one that says nothing, or ends in the middle of its answer."""
        for n, (answer, status, words) in enumerate((
                (b"hello\n", EX_PROTOCOL, "is not vtpmd"), (b"", EX_PROTOCOL, "is not vtpmd"),
                (b"HTTP/1.1 503 No\r\nContent-Length: 2\r\n\r\n{}", harness.EX_UNAVAILABLE, "the manager answered 503"),
                (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{}", harness.EX_UNAVAILABLE, "sent 2 of 9 bytes"))):
            with self.subTest(answer=answer):
                path = self.path(f"{n}.sock")
                with socket.socket(socket.AF_UNIX) as listener:
                    listener.bind(path)
                    listener.listen()
                    thread = threading.Thread(target=self.answer, args=(listener, answer))
                    thread.start()
                    self.assertIn(words, self.ctl(f"--socket={path}", "status", status=status))
                    thread.join()

    @staticmethod
    def answer(listener, content):
        with listener.accept()[0] as peer:
            peer.recv(65536)
            peer.sendall(content)


if __name__ == "__main__":
    harness.main()
