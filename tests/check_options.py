#!/usr/bin/env python3
"""Compares what --help lists with what the manual pages, the completion and the sample configurations have.

    check_options.py VTPMD VTPMCTL SOURCE_ROOT

Of vtpmctl it goes through the table of commands, as `vtpmctl COMMAND --help` prints it: the manual's synopsis of each command
is the one of its help, each option has an entry in the manual, and the completion offers each command's options and no others.
"""
import os
import pathlib
import re
import subprocess
import sys


def output(*command):
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, timeout=60).stdout.decode()


def options_in(text):
    return set(re.findall(r"^ +--([a-z][a-z0-9-]*)", text, re.M))


def of_help(*command):
    return options_in(output(*command))


def plain(roff):
    return re.sub(r'\\f[BIRP]|^\.(BI|BR|IR|B|I) |"', "", roff.replace("\\-", "-"))


def headings(path):
    """The lines after .TP and .TQ, without fonts."""
    lines = path.read_text().splitlines()
    return [plain(line) for before, line in zip(lines, lines[1:]) if before in (".TP", ".TQ")]


def of_man(path):
    """Options that have a heading of their own."""
    return {name for line in headings(path) if line.startswith("-") for name in re.findall(r"--([a-z][a-z0-9-]*)", line)}


def compare(what, ours, theirs, problems):
    for name in sorted(ours - theirs):
        problems.append(f"{what}: --{name} is in --help and not there")
    for name in sorted(theirs - ours):
        problems.append(f"{what}: --{name} is there and not in --help")


class Command:
    """One of vtpmctl's, as its help has it."""

    def __init__(self, vtpmctl, name):
        text = output(vtpmctl, *name.split(), "--help")
        self.name = name
        self.usage = " ".join(text.split("\n\n")[0].split()).removeprefix("vtpmctl ")
        own, common = text.split("Options of every command:")
        self.options, self.common = options_in(own), options_in(common)


def commands_of(vtpmctl):
    text = output(vtpmctl, "--help").split("Options of every command:")[0]
    names = re.findall(r"^  ([a-z-]+(?: [a-z-]+)*)(?: [A-Z\[].*?)?(?:  .*)?$", text, re.M)
    return [Command(vtpmctl, name) for name in names if name != "vtpmctl"]


def completed(script, vtpmctl, *words):
    """What bash offers for the last of these words."""
    program = 'source "$1"; shift; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _vtpmctl; printf "%s\\n" "${COMPREPLY[@]}"'
    path = os.path.dirname(os.path.abspath(vtpmctl)) + ":" + os.environ["PATH"]
    done = subprocess.run(["bash", "-c", program, "bash", str(script), "vtpmctl", *words], check=True, stdout=subprocess.PIPE,
                          timeout=60, env=dict(os.environ, PATH=path))
    return set(done.stdout.decode().split())


def check_vtpmctl(vtpmctl, root, problems):
    commands = commands_of(vtpmctl)
    if len(commands) < 20:
        problems.append("vtpmctl --help lists next to nothing: this test does not understand its form any more")
    manual, script = root / "contrib/man/vtpmctl.1", root / "contrib/completion/vtpmctl"
    every = set().union({"version"}, *(c.options | c.common for c in commands))
    compare("vtpmctl.1", every, of_man(manual), problems)
    synopses = [" ".join(line.split()) for line in headings(manual)]
    offered = completed(script, vtpmctl, "")
    for c in commands:
        if c.usage not in synopses:
            problems.append(f"vtpmctl.1: no entry with this synopsis: {c.usage}")
        first, *rest = c.name.split()
        if first not in offered or (rest and rest[0] not in completed(script, vtpmctl, first, "")):
            problems.append(f"completion: no command {c.name}")
        compare(f"completion of {c.name}", c.options | c.common,
                {word.strip("-=") for word in completed(script, vtpmctl, first, *rest, "--")}, problems)


def main():
    vtpmd, vtpmctl, root = sys.argv[1], sys.argv[2], pathlib.Path(sys.argv[3])
    problems = []
    daemon = of_help(vtpmd, "--mode=manager", "--help") | of_help(vtpmd, "--mode=instance", "--help")
    if len(daemon) < 20:
        problems.append("vtpmd --help lists next to nothing: this test does not understand its form any more")
    compare("vtpmd.8", daemon | {"mode", "version"}, of_man(root / "contrib/man/vtpmd.8"), problems)
    check_vtpmctl(vtpmctl, root, problems)
    for mode in ("manager", "instance"):
        sample = root / f"contrib/conf/{mode}.conf"
        names = set(re.findall(r"^#?([a-z][a-z0-9-]*) *=", sample.read_text(), re.M))
        if len(names) < 3:
            problems.append(f"{sample.name}: next to nothing in it: this test does not understand its form any more")
        for name in sorted(names - of_help(vtpmd, f"--mode={mode}", "--help")):
            problems.append(f"{sample.name}: {name} is no option of --mode={mode}")
    for p in problems:
        print(p)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
