#!/usr/bin/env python3
"""Compares what --help lists with what the manual pages, the completion and the sample configurations have.

    check_options.py VTPMD VTPMCTL SOURCE_ROOT
"""
import pathlib
import re
import subprocess
import sys


def of_help(*command):
    text = subprocess.run(command, check=True, stdout=subprocess.PIPE, timeout=60).stdout.decode()
    return set(re.findall(r"^ +--([a-z][a-z0-9-]*)", text, re.M)), text


def of_man(path):
    """Options that have a heading of their own (the line after .TP or .TQ)."""
    found, heading = set(), False
    for line in path.read_text().splitlines():
        if heading:
            found.update(re.findall(r"--([a-z][a-z0-9-]*)", line.replace("\\-", "-").replace("\\fB", "").replace("\\fR", "")))
        heading = line in (".TP", ".TQ")
    return found


def compare(what, ours, theirs, problems):
    for name in sorted(ours - theirs):
        problems.append(f"{what}: --{name} is in --help and not there")
    for name in sorted(theirs - ours):
        problems.append(f"{what}: --{name} is there and not in --help")


def main():
    vtpmd, vtpmctl, root = sys.argv[1], sys.argv[2], pathlib.Path(sys.argv[3])
    problems = []
    daemon = of_help(vtpmd, "--mode=manager", "--help")[0] | of_help(vtpmd, "--mode=instance", "--help")[0]
    compare("vtpmd.8", daemon | {"mode", "version"}, of_man(root / "contrib/man/vtpmd.8"), problems)
    tool, text = of_help(vtpmctl, "--help")
    if len(daemon) < 20 or len(tool) < 5:
        problems.append("--help lists next to nothing: this test does not understand its form any more")
    compare("vtpmctl.1", tool, of_man(root / "contrib/man/vtpmctl.1"), problems)
    completion = (root / "contrib/completion/vtpmctl").read_text()
    compare("completion", tool, set(re.findall(r"--([a-z-]+)=?[ \"]", re.search(r'-W "(--[^"]*")', completion).group(1))), problems)
    commands = set(re.findall(r"^  ([a-z-]+) ", text.split("Options:")[0], re.M)) - {"vtpmctl"}
    for name in sorted(commands):
        if not re.search(rf"\b{name}\b", completion):
            problems.append(f"completion: no command {name}")
        if not re.search(rf'^\.(B|BI|BR) "?{name}\b', (root / "contrib/man/vtpmctl.1").read_text().replace("\\-", "-"), re.M):
            problems.append(f"vtpmctl.1: no command {name}")
    for mode in ("manager", "instance"):
        sample = root / f"contrib/conf/{mode}.conf"
        names = set(re.findall(r"^#?([a-z][a-z0-9-]*) *=", sample.read_text(), re.M))
        if len(names) < 3:
            problems.append(f"{sample.name}: next to nothing in it: this test does not understand its form any more")
        for name in sorted(names - of_help(vtpmd, f"--mode={mode}", "--help")[0]):
            problems.append(f"{sample.name}: {name} is no option of --mode={mode}")
    for p in problems:
        print(p)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
