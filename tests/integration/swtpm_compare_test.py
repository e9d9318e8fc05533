#!/usr/bin/python3
"""Every command of swtpm_ioctl in every run state, to swtpm and to vtpmd side by side: the same answers, but for what is listed
here with its reason."""
import json
import os
import re
import struct

import harness
import tpm

STATES = ("before INIT", "after INIT", "started", "stopped")
COMMANDS = {
    "-c": ["-c"], "-e": ["-e"], "-r 0": ["-r", "0"], "-r 3": ["-r", "3"], "-v": ["-v"], "-C": ["-C"],
    "-l 0": ["-l", "0"], "-l 4": ["-l", "4"], "-l 5": ["-l", "5"], "-h": ["-h", "measured"], "-g": ["-g"],
    "-b 0": ["-b", "0"], "-b 4096": ["-b", "4096"], "-b 1024": ["-b", "1024"], "-b 3968": ["-b", "3968"],
    "--info 1": ["--info", "1"], "--info 2": ["--info", "2"], "--info 4": ["--info", "4"], "--info 8": ["--info", "8"],
    "--save permanent": ["--save", "permanent", "FILE"], "--save volatile": ["--save", "volatile", "FILE"],
    "--save savestate": ["--save", "savestate", "FILE"], "--load permanent": ["--load", "permanent", "BLOB"],
}
# (version or None for both, state or None for all, command): why vtpmd answers otherwise.
DIFFERENT = {
    (None, None, "-c"): "LOCK_STORAGE is served, as newer versions of swtpm do; SET_DATAFD belongs to --guest=qemu:, and no "
                        "command comes with swtpm's own header in front",
}


class Side:
    """One of the two, started new, brought into a run state."""

    def __init__(self, case, name, process, data, control, version):
        self.case, self.name, self.process, self.data, self.control, self.version = case, name, process, data, control, version

    def ioctl(self, *args):
        target = self.case.path(f"{self.name}.out")
        blob = self.case.path(f"{self.name}.permanent")
        args = [{"FILE": target, "BLOB": blob}.get(a, a) for a in args]
        status, text = self.case.run_command("swtpm_ioctl", "--unix", self.control, *args, ok=False)
        return status, text

    def enter(self, state):
        if state == "before INIT":
            return
        self.ioctl("-i")
        if state == "after INIT":
            return
        with tpm.Client(harness.connect(self.data)) as guest:
            if self.version == "2.0":
                guest.must("TPM2_Startup", tpm.TPM_ST_NO_SESSIONS, 0x144, bytes(2))
            else:
                guest.must("TPM_Startup", tpm.TPM_TAG_RQU_COMMAND, 0x99, struct.pack(">H", 1))
        if state == "stopped":
            self.ioctl("--save", "permanent", "BLOB")
            self.ioctl("--stop")


def plain(command, status, text):
    """What is compared: the exit status, and what was printed without what must differ."""
    if command.startswith("--info") and status == 0:
        try:
            told = json.loads(text[text.index("{"):])
        except ValueError:
            return status, text.strip()
        return status, sorted(told)
    text = re.sub(r"/tmp/\S+", "PATH", text)
    if command.startswith("--save"):
        text = re.sub(r"\d+ bytes", "N bytes", text)
    return status, text.strip()


class Compare(harness.Case):
    def swtpm(self, version, n):
        state = self.path(f"swtpm.{n}")
        os.makedirs(state)
        data, control = self.path(f"s{n}"), self.path(f"s{n}.ctrl")
        process = self.spawn("swtpm", "swtpm", "socket", *(["--tpm2"] if version == "2.0" else []), "--tpmstate", f"dir={state}",
                             "--server", f"type=unixio,path={data}", "--ctrl", f"type=unixio,path={control}",
                             "--seccomp", "action=none")
        harness.connect(control).close()
        return Side(self, "swtpm", process, data, control, version)

    def vtpmd_side(self, version):
        instance = harness.Instance(self, self.manager, version=version, options=["--startup=wait", "--rollback=allow"])
        instance.start(create=True)
        return Side(self, "vtpmd", instance.process, instance.socket, instance.socket + ".ctrl", version)

    def compare(self, version):
        self.manager = harness.Manager(self).start(create=True)
        unlike, never_different = [], set(DIFFERENT)
        for n, state in enumerate(STATES):
            sides = [self.swtpm(version, n), self.vtpmd_side(version)]
            for side in sides:
                side.enter(state)
            for command, args in [*COMMANDS.items(), ("-i", ["-i"]), ("--stop", ["--stop"]), ("--stop again", ["--stop"]),
                                  ("-i again", ["-i"]), ("-s", ["-s"])]:
                # Those that change the run state come last.
                swtpm, vtpmd = (plain(command, *side.ioctl(*args)) for side in sides)
                if swtpm == vtpmd:
                    continue
                known = [k for k in DIFFERENT if k[0] in (None, version) and k[1] in (None, state) and k[2] == command]
                if not known:
                    unlike.append(f"{state}: {command}: swtpm {swtpm}, vtpmd {vtpmd}")
                never_different -= set(known)
            for side in sides:
                self.assertEqual(side.process.wait(), 0, side.name)
        self.assertEqual(unlike, [], "\n".join(unlike))
        stale = [k for k in never_different if k[0] in (None, version)]
        self.assertEqual(stale, [], "listed as different, and alike")

    def test_tpm20(self):
        self.compare("2.0")

    def test_tpm12(self):
        self.compare("1.2")


if __name__ == "__main__":
    harness.main()
