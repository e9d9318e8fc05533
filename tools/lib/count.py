#!/usr/bin/python3
"""Counts single test cases in Meson's logs.

    count.py TESTLOG.json...

A Meson test that prints a doctest summary or TAP lines counts as its cases, any other as one. One that ended badly has at
least one failure, and one that ran no case is a failure: it would pass whatever the product does. Prints
"PASSED FAILED" and, before it, one line for every Meson test that failed.
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
    for name in sys.argv[1:]:
        with open(name, encoding="utf-8", errors="replace") as log:
            for line in log:
                result = json.loads(line)
                p, f = count(result)
                passed, failed = passed + p, failed + f
                if f:
                    print(f"  failed: {result['name']} ({result['result']}, {f} of {p + f} cases), see {name}", file=sys.stderr)
    print(passed, failed)
    return 0


if __name__ == "__main__":
    sys.exit(main())
