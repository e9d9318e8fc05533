#!/usr/bin/env python3
"""Checks what comments and documents say of the tree.

    check_comments.py SOURCE_ROOT

A source file that a comment or a page names is there: "util/fd.hpp" ends a path of the repository. A function that a comment
names with its parentheses, "take_staged()", is a word of the code, or stands in ELSEWHERE. No line of docs/, and none of the
rooms in NARROW, has more than 120 characters; a table's row may.
"""
import pathlib
import re
import sys

# Functions of the kernel, the C library and other people's libraries that are spoken of and not called by that name.
ELSEWHERE = set()
NARROW = ("util", "tpm", "xen", "ring", "engine", "hwtpm", "quote", "proto", "guest")
FILE = re.compile(r"(?<![\w./-])((?:[a-z_0-9]+/)*[a-z_0-9]+\.(?:hpp|cpp))\b")
FUNCTION = re.compile(r"(?<![\w:.>])([a-z_][a-z0-9_]{2,})\(\)")
COMMENT = re.compile(r'"(?:\\.|[^"\\\n])*"|//[^\n]*')


def comments(text):
    """Line number and text of each // comment."""
    for number, line in enumerate(text.splitlines(), 1):
        for m in COMMENT.finditer(line):
            if m.group().startswith("//"):
                yield number, m.group()


def code(text):
    return COMMENT.sub(lambda m: "" if m.group().startswith("//") else m.group(), text)


def check(root):
    found = [p for folder in ("src", "tests", "tools", "contrib", "docs") for p in sorted((root / folder).rglob("*"))]
    names = [str(p.relative_to(root)) for p in [*sorted(root.glob("*.md")), *found] if p.is_file()]
    ends = {"/".join(p.split("/")[i:]) for p in names for i in range(p.count("/") + 1)}
    sources = [p for p in names if p.endswith((".hpp", ".cpp")) and p.startswith(("src/", "tests/", "tools/"))]
    pages = [p for p in names if p.endswith(".md")]
    text = {p: (root / p).read_text() for p in sources + pages}
    words = set(re.findall(r"[a-z_][a-z0-9_]+", " ".join(code(text[p]) for p in sources))) | ELSEWHERE
    said = [(p, n, t) for p in sources for n, t in comments(text[p])]
    said += [(p, n, t) for p in pages for n, t in enumerate(text[p].splitlines(), 1)]
    problems = []
    for path, number, line in said:
        problems += [f"{path}:{number}: there is no {m[1]}" for m in FILE.finditer(line) if m[1] not in ends]
        if path in sources:
            problems += [f"{path}:{number}: nothing is called {m[1]}()" for m in FUNCTION.finditer(line) if m[1] not in words]
    narrow = [p for p in sources if p.startswith(tuple(f"src/{room}/" for room in NARROW))]
    narrow += [p for p in pages if p.startswith("docs/")]
    for path in narrow:
        problems += [f"{path}:{n}: {len(line)} characters" for n, line in enumerate(text[path].splitlines(), 1)
                     if len(line) > 120 and not line.startswith("|")]
    return problems


def main():
    problems = check(pathlib.Path(sys.argv[1]).resolve())
    for problem in problems:
        print(problem)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
