#!/usr/bin/python3
"""A running Linux guest moves from one QEMU to another, its vTPM from one vtpmd to another with another root of trust, while the
guest extends PCRs and writes NV all along; after migrations that were broken at each step, each of which the source survives."""
import base64
import os
import signal
import socket
import struct
import threading

import machine  # first: it knows where the others are
import harness
import lab
import tpm

DATA = 0x01500002
DIGEST = b"\x5a" * 32


def frame(code, handles, parameters):
    """A command with an empty password."""
    auth = struct.pack(">IHBH", tpm.TPM_RS_PW, 0, 0, 0)
    body = b"".join(struct.pack(">I", h) for h in handles) + struct.pack(">I", len(auth)) + auth + parameters
    return struct.pack(">HII", tpm.TPM_ST_SESSIONS, 10 + len(body), code) + body


# Each round: NV gets the round's number, PCR 12 one extend; what the TPM has acknowledged is counted in /run/acked.
LOAD = """
send() {
  dd bs=4096 if=/run/load.in 2>/dev/null >&3 && dd bs=4096 count=1 2>/dev/null <&3 >/run/load.out || return 1
  [ "$(dd bs=1 skip=6 count=4 if=/run/load.out 2>/dev/null | hexdump -v -e '1/1 "%02x"')" = 00000000 ]
}
exec 3<>/dev/tpmrm0
n=0
while n=$((n + 1)); do
  while [ -e /run/pause ]; do echo >/run/paused; sleep 0.1; done
  { echo WRITE_HEAD | base64 -d; printf %08d $n; echo WRITE_TAIL | base64 -d; } >/run/load.in
  send || { echo "write $n failed" >/run/load.end; exit; }
  echo $n >/run/written
  echo EXTEND | base64 -d >/run/load.in
  send || { echo "extend $n failed" >/run/load.end; exit; }
  echo $n >/run/extended
done
"""


class Cable:
    """Between the two QEMUs: stands still after `until` bytes, then goes on or is cut."""

    def __init__(self, near, far, until):
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(near)
        self.listener.listen(1)
        self.far, self.until = far, until
        self.held, self.released, self.cut = threading.Event(), threading.Event(), False
        threading.Thread(target=self._carry, daemon=True).start()

    def _carry(self):
        source, _ = self.listener.accept()
        target = harness.connect(self.far)
        target.settimeout(None)
        done = 0
        try:
            while data := source.recv(65536):
                target.sendall(data)
                done += len(data)
                if done >= self.until and not self.held.is_set():
                    self.held.set()
                    self.released.wait()
                    if self.cut:
                        break
        except OSError:
            pass  # one of the two is gone
        for end in (source, target, self.listener):
            end.close()

    def release(self, cut=False):
        self.cut = cut
        self.released.set()


class Migration(machine.Case):
    def begin(self):
        self.here = harness.Manager(self, name="here").start(create=True)
        self.new_manager("there")
        self.take = self.path("take")
        self.source = machine.Vtpm(self, self.here, name="source", options=[f"--handover=unix:{self.take}"]).start(create=True)
        self.a = machine.Machine(self, self.source, "crb", "a").power_on()
        self.a.guest.tpm("/dev/tpmrm0").nv_define(DATA, 8)
        write = frame(0x137, [DATA, DATA], struct.pack(">H", 8) + b"\0" * 8 + struct.pack(">H", 0))
        script = LOAD
        for name, data in (("WRITE_HEAD", write[:-10]), ("WRITE_TAIL", write[-2:]),
                           ("EXTEND", frame(0x182, [12], struct.pack(">IH", 1, tpm.TPM_ALG_SHA256) + DIGEST))):
            script = script.replace(name, base64.b64encode(data).decode())
        text = base64.b64encode(script.encode()).decode()
        self.a.guest.sh(f"echo {text} | base64 -d >/run/load.sh; setsid sh /run/load.sh >/dev/null 2>&1 </dev/null & "
                        "await 60 '[ -s /run/extended ]'", seconds=70)

    def new_manager(self, name):
        """Another host's."""
        self.there = harness.Manager(self, name=name).start(create=True)

    def replace_store_there(self):
        """The new host's manager has another store, just before the state comes: it does not know the vTPM."""
        self.dest.process.popen.send_signal(signal.SIGSTOP)
        self.there.process.kill()
        os.rename(self.there.store, self.there.store + ".before")
        self.there.options.remove("--auto-create")
        self.there.start(create=True)
        self.dest.process.popen.send_signal(signal.SIGCONT)

    def prepare_target(self, take=None):
        self.dest = machine.Vtpm(self, self.there, uuid=self.source.uuid, name="dest",
                                 options=[f"--incoming=unix:{take or self.take}"]).start(create=True)
        self.channel = self.path("migrate")
        self.b = machine.Machine(self, self.dest, "crb", "b", options=["-incoming", f"unix:{self.channel}"]).launch()
        harness.wait_until(lambda: self.b.qmp("query-status")["status"] == "inmigrate", "the second QEMU")

    def migrate(self):
        self.a.qmp("migrate", uri=f"unix:{self.channel}")
        return harness.wait_until(lambda: (s := self.a.qmp("query-migrate")).get("status") in ("completed", "failed") and s["status"],
                                  "the migration", lab.BOOT_PATIENCE)

    def assert_goes_on(self, guest):
        """The load goes on, and TPM and guest agree on what was acknowledged."""
        self.assertEqual(guest.run("cat /run/load.end", ok=False)[0], 1, "the load met an error")
        was = int(guest.sh("cat /run/extended"))
        guest.await_(f"[ $(cat /run/extended) -gt {was + 3} ]", "more of the load")
        guest.sh("touch /run/pause")
        guest.await_("[ -e /run/paused ]")
        written, extended = (int(guest.sh(f"cat /run/{f}")) for f in ("written", "extended"))
        self.assertEqual(written, extended)
        client = guest.tpm("/dev/tpmrm0")
        self.assertEqual(int(client.nv_read(DATA)), written)
        pcr = bytes(32)
        for _ in range(extended):
            pcr = tpm.extended(pcr, DIGEST)
        self.assertEqual(client.pcr_read(12), pcr)
        for number in range(8):
            self.assertNotEqual(client.pcr_read(number), bytes(32))
        guest.sh("rm /run/pause /run/paused")

    def broken(self, what, ruin, take=None):
        """A migration that `ruin` spoils in its middle: the source goes on."""
        self.prepare_target(take)
        near = f"{self.channel}.{what}"
        cable = Cable(near, self.channel, 2 << 20)
        self.a.qmp("migrate", uri=f"unix:{near}")
        harness.wait_until(cable.held.is_set, f"{what}: the middle", lab.BOOT_PATIENCE)
        cable.release(cut=bool(ruin()))
        harness.wait_until(lambda: self.a.qmp("query-migrate").get("status") in ("completed", "failed"), what, lab.BOOT_PATIENCE)
        self.assertNotEqual(self.b.qemu.wait(lab.BOOT_PATIENCE), 0, what)
        if self.a.qmp("query-status")["status"] != "running":
            self.a.qmp("cont")
        self.assert_goes_on(self.a.guest)
        self.assertNotIn("another host has it now", self.source.process.log(), what)
        self.assertNotIn("is this one's now", self.dest.process.log(), what)
        self.dest.process.kill()

    def test_under_load(self):
        self.begin()
        self.broken("connection cut", lambda: True)
        self.broken("new host's QEMU killed", lambda: self.b.qemu.kill())
        self.broken("new host's vTPM killed", lambda: self.dest.process.kill())
        self.broken("new host cannot ask", lambda: None, take=self.path("nowhere"))
        self.broken("new host's manager gone", lambda: self.there.process.kill())
        self.there.start()
        self.broken("new host's manager refuses", self.replace_store_there)
        self.assertIn("not registered", self.dest.process.log())
        self.new_manager("elsewhere")
        os.unlink(self.dest.image)
        self.prepare_target()
        self.assertEqual(self.migrate(), "completed")
        self.b.attach()
        harness.wait_until(lambda: self.b.qmp("query-status")["status"] == "running", "the guest on the other host", lab.BOOT_PATIENCE)
        self.assert_goes_on(self.b.guest)
        self.assertIn("another host has it now", self.source.process.log())
        self.assertIn("is this one's now", self.dest.process.log())
        # The old side is dead, and stays so.
        with self.source.control() as control:
            self.assertNotEqual(control.call(control.INIT, bytes(4))[0], 0)
        self.a.qmp("quit")
        self.a.qemu.wait()
        self.source.process.wait()
        self.assertEqual(self.source.launch(create=True).wait(), harness.EX_DATAERR)
        # And the new one a vTPM like any other.
        self.b.guest.sh("touch /run/pause")
        self.b.guest.await_("[ -e /run/paused ]")
        client = self.b.guest.tpm("/dev/tpmrm0")
        client.nv_write(DATA, b"and here")
        self.b.power_off()
        self.dest.process.wait()
        self.dest.options = []
        self.dest.start()
        box = machine.Machine(self, self.dest, "crb", "c").power_on()
        self.assertEqual(box.guest.tpm().nv_read(DATA), b"and here")


if __name__ == "__main__":
    harness.main()
