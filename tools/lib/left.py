#!/usr/bin/python3
"""What tests left behind: processes that carry a mark in their environment, mounts and control groups of theirs.

  left.py mounts            the mounts of now, to compare with later
  left.py find MARK FILE    says what of a run with that mark is still there, beside the mounts in FILE, and ends or removes it;
                            exit status 1 if there was something

MARK is a NAME=VALUE that everything a run starts has in its environment. A process that is about to end is waited for.
"""
import ctypes
import glob
import os
import signal
import sys
import time

PATIENCE = 10  # seconds, for what is ending already
# Where tests mount and make control groups, outside of mount namespaces of their own.
PLACES = ("/tmp/vtpmd", "/var/tmp/vtpmd", "/run/vtpmd", "/var/lib/vtpmd", "/etc/vtpmd", "/var/lib/libvirt", "/run/libvirt",
          "/etc/libvirt", "/var/log/libvirt", "/var/cache/libvirt")
GROUPS = "/sys/fs/cgroup/**/vtpmd-test-*"


def ancestors():
    """This process and those above it, which carry the mark and go on."""
    pid, out = os.getpid(), set()
    while pid > 1:
        out.add(pid)
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as f:
            pid = int(f.read().rsplit(")", 1)[1].split()[1])
    return out


def processes(mark):
    """{pid: command line}"""
    spared, found = ancestors(), {}
    for pid in map(int, filter(str.isdigit, os.listdir("/proc"))):
        try:
            with open(f"/proc/{pid}/environ", "rb") as f:
                marked = mark.encode() in f.read().split(b"\0")
            if marked and pid not in spared:
                with open(f"/proc/{pid}/cmdline", "rb") as f:
                    words = f.read().replace(b"\0", b" ").decode(errors="replace").strip()
                if words:  # else it has ended, and nobody has asked how
                    found[pid] = words
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
    return found


def members(folder):
    """The processes of a control group. One of a process namespace beside ours has no number here, and reads as 0."""
    with open(os.path.join(folder, "cgroup.procs"), encoding="ascii") as f:
        return [int(pid) for pid in f.read().split() if pid != "0"]


def end_group(group, patience=PATIENCE):
    """Ends whatever runs in a control group (a container that lost its keeper), and removes the group. False if it is still there."""
    deadline = time.monotonic() + patience
    while os.path.isdir(group):
        for folder, _, _ in os.walk(group, topdown=False):
            try:
                with open(os.path.join(folder, "cgroup.kill"), "w", encoding="ascii") as f:  # cgroup2, and all of them
                    f.write("1")
            except OSError:
                pass
            try:
                for pid in members(folder):
                    try:
                        os.kill(pid, signal.SIGKILL)
                    except ProcessLookupError:
                        pass
                os.rmdir(folder)
            except OSError:  # it is not empty yet
                continue
        if time.monotonic() > deadline:
            return not os.path.isdir(group)
        time.sleep(0.05)
    return True


def mounts():
    with open("/proc/self/mountinfo", encoding="utf-8", errors="replace") as f:
        return [line.split()[4] for line in f]


def find(mark, before):
    deadline = time.monotonic() + PATIENCE
    while (left := processes(mark)) and time.monotonic() < deadline:
        time.sleep(0.2)
    for pid, words in left.items():
        print(f"left running: {pid} {words[:300]}")
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
    with open(before, encoding="utf-8") as f:
        known = f.read().splitlines()
    mounted = [m for m in mounts() if m not in known and m.startswith((*PLACES, os.getcwd() + "/"))]
    libc = ctypes.CDLL(None, use_errno=True)
    for place in reversed(mounted):
        print(f"left mounted: {place}")
        libc.umount2(place.encode(), 2)  # MNT_DETACH
    groups = sorted(glob.glob(GROUPS, recursive=True), reverse=True)
    groups = [g for g in groups if not os.path.exists(f"/proc/{g.rsplit('-', 1)[1]}")]
    for group in groups:
        print(f"left behind: {group}")
        end_group(group)
    return bool(left or mounted or groups)


if __name__ == "__main__":
    if sys.argv[1:] == ["mounts"]:
        print("\n".join(mounts()))
    elif len(sys.argv) == 4 and sys.argv[1] == "find":
        sys.exit(1 if find(*sys.argv[2:]) else 0)
    else:
        sys.exit(__doc__)
