#!/usr/bin/env python3
"""Checks the include directions between the rooms of src/ (the table below is the rule).

    check_includes.py SRC

Everything may use util. A room may include what its row names and itself, nothing else; only src/xen/ includes the Xen
libraries' headers, only util/asio.hpp and named exceptions include Asio's. What uses <algorithm> includes it: GCC 12
brings it in with other headers, GCC 14 does not.
"""
import pathlib
import re
import sys

# A room, or a room inside of one, and what it may include beside util and itself: "ring" is the files of that folder,
# "engine/" also all folders in it, "store/image_copy.hpp" the one header. The longest row that fits a file is its rule.
ALLOWED = {
    "util": set(),
    "pch": set(),
    "tpm": set(),
    "xen": set(),
    "ring": {"xen", "tpm"},
    "engine": {"tpm"},
    "store": {"tpm/version.hpp"},  # an image records the family of its TPM
    "hwtpm": {"tpm"},
    "hwtpm/drivers": {"hwtpm", "tpm", "engine", "ring", "xen"},
    "hwtpm/tpm12": {"hwtpm", "tpm"},
    "hwtpm/tpm20": {"hwtpm", "tpm"},
    "hwtpm/queue": {"hwtpm", "hwtpm/drivers", "hwtpm/tpm12", "hwtpm/tpm20", "tpm"},
    "quote": {"tpm"},
    "proto/link": {"tpm"},
    "proto/query": {"proto/link"},
    "proto/vtpmmgr": {"proto/link"},
    "proto/vtpm_managerd": set(),
    "guest": {"ring", "tpm", "xen"},
    "instance/state": {"instance/counters.hpp", "instance/life.hpp", "engine", "store", "proto/link", "tpm"},
    "instance/making": {"engine", "proto/link", "tpm"},
    "instance/quotes": {"instance/making", "engine", "proto/link", "quote", "tpm"},
    "instance/migration": {"guest", "store", "proto/link"},
    "instance/links": {"instance/options.hpp", "proto/link", "ring", "xen"},
    "instance": {"instance/", "guest", "engine", "store", "proto/", "quote", "tpm", "ring", "xen"},
    "manager/vault": {"manager/options.hpp", "hwtpm", "store", "proto/link", "tpm"},
    "manager/groups": {"manager/vault", "hwtpm", "quote", "store", "proto/", "tpm"},
    "manager/ca": {"manager/vault", "hwtpm", "proto/link", "tpm"},
    "manager/instances": {"manager/options.hpp", "manager/vault"},
    "manager/links": {"manager/vault", "manager/instances/processes.hpp", "hwtpm", "store", "proto/link", "tpm"},
    "manager/xen": {"manager/instances", "manager/links", "ring", "xen", "tpm"},
    "manager/management": {"manager/vault", "manager/groups", "manager/ca", "manager/links", "manager/instances", "hwtpm",
                           "quote", "store", "proto/link", "tpm"},
    "manager/compat/vtpmmgr": {"manager/groups", "manager/links", "manager/vault", "hwtpm", "proto/", "tpm"},
    "manager/compat/vtpm_managerd": {"manager/links", "manager/instances", "proto/"},
    "manager": {"manager/", "hwtpm/", "quote", "store", "proto/", "ring", "xen", "tpm"},
    "api": {"manager/management/control.hpp"},
    "main.cpp": {"instance", "manager", "api"},
}
XEN_HEADERS = re.compile(r"^(xenevtchn|xengnttab|xenstore|xenctrl|xen/)")
ALGORITHMS = re.compile(
    r"std::(?:ranges::(?:adjacent_find|all_of|any_of|contains|copy|count|count_if|equal|fill|find|find_if|for_each|generate|"
    r"lower_bound|max|min|mismatch|none_of|remove|remove_if|reverse|search|sort|stable_partition|transform|unique)|"
    r"adjacent_find|all_of|any_of|clamp|copy_n|count_if|equal|fill_n|find_if|for_each|generate|lower_bound|max|min|mismatch|"
    r"none_of|remove_if|reverse|rotate|search|sort|transform|upper_bound)[<(]")
LOCAL = re.compile(r'^\s*#\s*include\s+"([^"]+)"')
SYSTEM = re.compile(r"^\s*#\s*include\s+<([^>]+)>")


def room_of(rel: pathlib.Path) -> str | None:
    if str(rel) in ALLOWED:
        return str(rel)
    fitting = [room for room in ALLOWED if rel.parent.is_relative_to(room)]
    return max(fitting, key=len, default=None)


def permitted(target: str, allowed: set[str]) -> bool:
    folder = target.rpartition("/")[0]
    return target in allowed or folder in allowed or any(a.endswith("/") and target.startswith(a) for a in allowed)


def check(src: pathlib.Path) -> list[str]:
    problems = []
    files = sorted(p for p in src.rglob("*") if p.suffix in (".hpp", ".cpp"))
    if not files:
        problems.append(f"{src}: no sources found")
    for path in files:
        rel = path.relative_to(src)
        room = room_of(rel)
        if room is None:
            problems.append(f"{rel}: '{rel.parent}' is not a room; add its include rule here first")
            continue
        allowed = ALLOWED[room] | {"util", room}
        text = path.read_text()
        if (m := ALGORITHMS.search(text)) and "#include <algorithm>" not in text:
            problems.append(f"{rel}: uses {m.group()[:-1]} and does not include <algorithm>")
        for number, line in enumerate(text.splitlines(), 1):
            if m := LOCAL.match(line):
                target = m.group(1)
                if not permitted(target, allowed):
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
