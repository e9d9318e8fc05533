#!/usr/bin/python3
"""Counts single test cases in Meson's logs.

    count.py [--slowest=FILE] TESTLOG.json...

A Meson test that prints a doctest summary or TAP lines counts as its cases, any other as one. One that ended badly has at
least one failure, and one that ran no case is a failure: it would pass whatever the product does. Prints
"PASSED FAILED" and, before it, one line for every Meson test that failed. Adds "SECONDS NAME" of each to FILE.
"""
import json
import re
import sys

DOCTEST = re.compile(r"test cases:\s+(\d+) \|\s+(\d+) passed \|\s+(\d+) failed")
TAP = re.compile(r"^(not )?ok \d+(?: -)? ?(.*)$", re.M)


def count(result: dict) -> tuple[int, int]:
    text = result.get("stdout", "")
    good = result["result"] in ("OK", "EXPECTEDFAIL")
    if m := DOCTEST.search(text):
        passed, failed = int(m.group(2)), int(m.group(3))
    elif lines := TAP.findall(text):
        failed = sum(1 for no, rest in lines if no or "# SKIP" in rest.upper())
        passed = len(lines) - failed
    else:
        passed, failed = (1, 0) if good else (0, 1)
    if not good and failed == 0:
        failed = 1
    if good and passed + failed == 0:
        failed = 1
    return passed, failed


def main() -> int:
    passed = failed = 0
    times: list[str] = []
    names = sys.argv[1:]
    to = names.pop(0).partition("=")[2] if names and names[0].startswith("--slowest=") else None
    for name in names:
        with open(name, encoding="utf-8", errors="replace") as log:
            for line in log:
                result = json.loads(line)
                p, f = count(result)
                passed, failed = passed + p, failed + f
                times.append(f"{result['duration']:.0f} {result['name']}\n")
                if f:
                    print(f"  failed: {result['name']} ({result['result']}, {f} of {p + f} cases), see {name}", file=sys.stderr)
    if to:
        with open(to, "a", encoding="utf-8") as out:
            out.writelines(times)
    print(passed, failed)
    return 0


if __name__ == "__main__":
    sys.exit(main())
