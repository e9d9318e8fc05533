#!/usr/bin/env python3
"""Checks the include directions between the rooms of src/ (the table below is the rule).

    check_includes.py SRC

Everything may use util. A room may include what its row names and itself, nothing else; only src/xen/ includes the Xen
libraries' headers, only util/asio.hpp and named exceptions include Asio's.
"""
import pathlib
import re
import sys

ALLOWED = {
    "util": set(),
    "tpm": set(),
    "xen": set(),
    "ring": {"xen", "tpm"},
    "engine": {"tpm"},
    "store": {"tpm/version.hpp"},  # an image records the family of its TPM
    "hwtpm": {"tpm", "engine", "ring", "xen"},
    "proto": {"tpm"},
    "guest": {"ring", "tpm", "xen"},
    "instance": {"guest", "engine", "store", "proto", "tpm", "ring", "xen"},
    "manager": {"hwtpm", "store", "proto", "ring", "xen", "tpm"},
    "api": {"manager/control.hpp"},
    "main.cpp": {"instance", "manager", "api"},
}
XEN_HEADERS = re.compile(r"^(xenevtchn|xengnttab|xenstore|xenctrl|xen/)")
LOCAL = re.compile(r'^\s*#\s*include\s+"([^"]+)"')
SYSTEM = re.compile(r"^\s*#\s*include\s+<([^>]+)>")


def check(src: pathlib.Path) -> list[str]:
    problems = []
    files = sorted(p for p in src.rglob("*") if p.suffix in (".hpp", ".cpp"))
    if not files:
        problems.append(f"{src}: no sources found")
    for path in files:
        rel = path.relative_to(src)
        room = rel.parts[0]
        if room not in ALLOWED:
            problems.append(f"{rel}: '{room}' is not a room; add its include rule here first")
            continue
        allowed = ALLOWED[room] | {"util", room}
        for number, line in enumerate(path.read_text().splitlines(), 1):
            if m := LOCAL.match(line):
                target = m.group(1)
                if target.split("/")[0] not in allowed and target not in allowed:
                    problems.append(f"{rel}:{number}: {room} may not include {target}")
            if (m := SYSTEM.match(line)) and XEN_HEADERS.match(m.group(1)) and room != "xen":
                problems.append(f"{rel}:{number}: only xen/ may include <{m.group(1)}>")
    return problems


def main() -> int:
    problems = check(pathlib.Path(sys.argv[1]))
    for p in problems:
        print(p)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
