#!/usr/bin/python3
"""clang-tidy over the sources of a build directory, in parallel, several files at a time, with an answer remembered per file.

    tidy.py TOP BUILD

Only src/ is checked (headers through the sources that include them). A file that was clean is not looked at again until
it, a project header it includes, its command line, .clang-tidy or clang-tidy itself changes; what is remembered lives in
BUILD/clang-tidy.cache. Most of the time goes into the headers of Asio and Boost, so neighbouring files that have to be
looked at are read together, as in a unity build (90 at a time take a seventh less than 45, and 1.2 GiB). Prints findings,
then "tidy: N passed, N failed"; exit 1 if anything was found.
"""
import concurrent.futures
import hashlib
import json
import os
import pathlib
import re
import shlex
import subprocess
import sys

TIDY = "clang-tidy-14"
TOGETHER = 96
INCLUDE = re.compile(rb'^\s*#\s*include\s+"([^"]+)"', re.M)


def closure(path: pathlib.Path, src: pathlib.Path, seen: dict[pathlib.Path, bytes]) -> None:
    """The project's files that `path` includes, directly or not, with their contents."""
    if path in seen or not path.is_file():
        return
    seen[path] = content = path.read_bytes()
    for name in INCLUDE.findall(content):
        closure(src / name.decode(), src, seen)


def main() -> int:
    top, build = (pathlib.Path(a).resolve() for a in sys.argv[1:3])
    src = top / "src"
    cache = build / "clang-tidy.cache"
    cache.mkdir(exist_ok=True)
    salt = (top / ".clang-tidy").read_bytes() + subprocess.run(
        [TIDY, "--version"], check=True, capture_output=True).stdout

    # clang-tidy goes on with checks of its own choice if it cannot read the configuration.
    config = subprocess.run([TIDY, "--dump-config", str(src / "main.cpp"), "--"], capture_output=True, text=True, cwd=top)
    if "rror" in config.stderr:
        print(f"tidy: .clang-tidy cannot be read\n{config.stderr}")
        return 1

    # Without the build's precompiled header, which hides what a source forgets to include (and is another compiler's).
    bare = cache / "commands"
    bare.mkdir(exist_ok=True)
    jobs = 0
    stale: dict[tuple, list[tuple[pathlib.Path, pathlib.Path]]] = {}
    for entry in json.loads((build / "compile_commands.json").read_text()):
        path = (pathlib.Path(entry["directory"]) / entry["file"]).resolve()
        if src not in path.parents or path.suffix != ".cpp":
            continue
        files: dict[pathlib.Path, bytes] = {}
        closure(path, src, files)
        command = [a for a in shlex.split(entry["command"]) if a.startswith(("-D", "-I", "-std", "-isystem"))]
        digest = hashlib.sha256(salt + "\0".join(command).encode())
        for name in sorted(files):
            digest.update(str(name.relative_to(top)).encode() + b"\0" + files[name] + b"\0")
        jobs += 1
        mark = cache / digest.hexdigest()
        if mark.exists():
            mark.touch()
        else:
            stale.setdefault((entry["directory"], *command), []).append((path, mark))
    if not jobs:
        print(f"tidy: {build}/compile_commands.json names no source of {src}")
        return 1

    batches, commands = [], []
    cores = os.cpu_count() or 1
    for (directory, *command), files in stale.items():
        files.sort()  # by room
        # Alike in size and a multiple of the cores, so that none idles at the end.
        rounds = -(-len(files) // (TOGETHER * cores))
        size = -(-len(files) // (rounds * cores))
        for i in range(0, len(files), size):
            batches.append(files[i:i + size])
            main_file = files[i][0]
            if len(batches[-1]) > 1:
                main_file = bare / f"batch{len(batches)}.cpp"
                main_file.write_text("".join(f'#include "{path}" // NOLINT\n' for path, _ in batches[-1]))
            commands.append({"directory": directory, "file": str(main_file), "arguments": ["c++", *command, "-c", str(main_file)]})
    (bare / "compile_commands.json").write_text(json.dumps(commands))

    def check(job):
        files, command = job
        run = subprocess.run([TIDY, "-p", str(bare), "--quiet", f"--config-file={top / '.clang-tidy'}",
                              r"--header-filter=/(src|tests)/.*\.[hc]pp$", "--extra-arg=-Wno-unknown-warning-option",
                              command["file"]], capture_output=True, text=True, stdin=subprocess.DEVNULL)
        if run.returncode == 0:
            for _, mark in files:
                mark.touch()
        return [path for path, _ in files], run.returncode, run.stdout + run.stderr

    failed = 0
    work = sorted(zip(batches, commands), key=lambda j: -len(j[0]))  # the longest first, so that no core idles at the end
    with concurrent.futures.ThreadPoolExecutor(cores) as pool:
        for paths, status, text in pool.map(check, work):
            if status:
                named = [path for path in paths if f"{path}:" in text]
                failed += max(1, len(named))
                lines = [s for s in text.splitlines() if not re.match(r"^\d+ warnings? (and \d+ errors? )?generated|^Suppressed|^Use -", s)]
                print(f"--- {', '.join(str(path.relative_to(top)) for path in named or paths)}\n" + "\n".join(lines), flush=True)
    print(f"tidy: {jobs - failed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
