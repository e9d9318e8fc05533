#!/usr/bin/python3
"""The targets of a Meson build directory that the tests of some suites need, for ninja.

    targets.py BUILD SUITE...

So a part of the tests builds what it runs and nothing else. Prints paths relative to BUILD, one a line.
"""
import json
import pathlib
import sys


def main() -> int:
    build, suites = pathlib.Path(sys.argv[1]).resolve(), set(sys.argv[2:])
    info = build / "meson-info"
    targets = {t["id"]: [str(pathlib.Path(f).relative_to(build)) for f in t["filename"]]
               for t in json.loads((info / "intro-targets.json").read_text())}
    wanted: set[str] = set()
    found: set[str] = set()
    for test in json.loads((info / "intro-tests.json").read_text()):
        mine = {s.split(":")[-1] for s in test["suite"]} & suites
        found |= mine
        if mine:
            for target in test["depends"]:
                wanted.update(targets[target])
    if missing := suites - found:
        print(f"targets: no test is of suite {', '.join(sorted(missing))}", file=sys.stderr)
        return 1
    print("\n".join(sorted(wanted)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
