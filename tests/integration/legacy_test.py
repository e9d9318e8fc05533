#!/usr/bin/python3
"""--legacy: a toolstack of 2006 opens, closes and deletes vTPMs by number; the manager keeps the table over its restarts."""
import os
import socket
import stat
import struct

import harness
import tpm

harness.need_root()
SUCCESS, FAIL, UNSUPPORTED, FORBIDDEN, INVALID = 0, 1, 2, 3, 5
CLEAR, RESUME = 1, 2
DATA = 0x00011101


class Legacy(harness.Case):
    def ask(self, ordinal, body, channel=0, tag=0x01C1):
        """The status, as the scripts of that time read it: behind the instance, the tag and the size."""
        with harness.connect(self.socket) as s:
            s.sendall(struct.pack(">IHII", channel, tag, 10 + len(body), ordinal) + body)
            answer = s.recv(64)
        self.assertEqual(answer[:10], struct.pack(">IHI", 0, 0x01C4, 10))
        self.assertEqual(len(answer), 14)
        return struct.unpack(">I", answer[10:])[0]

    def open(self, number, start=CLEAR, kind=2):
        return self.ask(0x01000001, struct.pack(">BBBI", 0, start, kind, number))

    def close(self, number):
        return self.ask(0x01000002, struct.pack(">I", number))

    def delete(self, number):
        return self.ask(0x01000003, struct.pack(">I", number))

    def guest(self, number):
        return tpm.Client(harness.connect(self.path("run", f"vtpm-{number}.sock")))

    def test_a_toolstacks_story(self):
        self.socket = self.path("legacy.sock")
        os.mkdir(self.path("run"))
        manager = harness.Manager(self, options=[f"--legacy=unix:{self.socket}", f"--run-dir={self.path('run')}"])
        manager.start(create=True)
        self.assertEqual(stat.S_IMODE(os.stat(self.socket).st_mode), 0o600)

        self.assertEqual(self.open(7), SUCCESS)
        with self.guest(7) as guest:
            guest.nv_define12(DATA, 8)
            guest.nv_write12(DATA, b"for good")
            guest.extend12(10, b"\x07" * 20)
            pcr = guest.pcr_read12(10)
            guest.must("TPM_SaveState", 0x00C1, 0x98)  # the guest is suspended
        self.assertEqual(self.open(7), FAIL)  # it is open
        self.assertEqual(self.close(7), SUCCESS)
        self.assertFalse(os.path.exists(self.path("run", "vtpm-7.sock")))
        self.assertEqual(self.open(7, RESUME), SUCCESS)
        with self.guest(7) as guest:
            self.assertEqual(guest.nv_read12(DATA, 8), b"for good")
            self.assertEqual(guest.pcr_read12(10), pcr)

        # A restart of the manager leaves the instances to their guests, and keeps the table.
        manager.process.terminate()
        manager.options += ["--spawn"]
        manager.start()
        with self.guest(7) as guest:
            self.assertEqual(guest.pcr_read12(10), pcr)
        self.assertEqual(self.open(7), FAIL)  # it is open still
        self.assertEqual(self.close(7), SUCCESS)
        self.assertFalse(os.path.exists(self.path("run", "vtpm-7.sock")))  # it waits for its toolstack
        self.assertEqual(self.open(8, kind=1), SUCCESS)
        self.assertEqual(self.open(7), SUCCESS)
        with self.guest(7) as guest, self.guest(8) as other:
            self.assertEqual(guest.nv_read12(DATA, 8), b"for good")
            self.assertEqual(guest.pcr_read12(10), bytes(20))
            with self.assertRaises(tpm.TpmError):
                other.nv_read12(DATA, 8)

        self.assertEqual(self.delete(7), SUCCESS)
        self.assertEqual(self.delete(7), INVALID)
        self.assertEqual(self.close(7), INVALID)
        self.assertEqual(self.open(7), SUCCESS)  # a new one
        with self.guest(7) as guest, self.assertRaises(tpm.TpmError):
            guest.nv_read12(DATA, 8)

        # What is not offered, and what makes no sense; nobody is hurt.
        for ordinal in (0x01000004, 0x01000005, 1, 2, 3, 4, 5):
            self.assertEqual(self.ask(ordinal, bytes(8)), UNSUPPORTED)
        self.assertEqual(self.ask(0x01000002, struct.pack(">I", 8), channel=8), FORBIDDEN)
        self.assertEqual(self.ask(0x01000002, struct.pack(">I", 8), tag=0x00C1), INVALID)
        self.assertEqual(self.ask(0x01000002, b""), INVALID)
        self.assertEqual(self.open(9, start=9), INVALID)
        self.assertEqual(self.open(0), INVALID)
        with harness.connect(self.socket) as s:
            s.sendall(struct.pack(">IHII", 0, 0x01C1, 0xFFFFFFFF, 0x01000002))
            self.assertEqual(s.recv(64)[10:], struct.pack(">I", INVALID))
            self.assertEqual(s.recv(64), b"")
        self.stranger()
        self.assertEqual(self.close(8), SUCCESS)
        manager.process.terminate()

    def stranger(self):
        """Whoever gets at the socket and is not root is told so."""
        os.chmod(self.socket, 0o666)
        os.chmod(self.dir, 0o755)
        read, write = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                os.setgroups([])
                os.setresgid(65534, 65534, 65534)
                os.setresuid(65534, 65534, 65534)
                s = socket.socket(socket.AF_UNIX)
                s.connect(self.socket)
                os.write(write, s.recv(64))
            finally:
                os._exit(0)
        os.waitpid(pid, 0)
        os.close(write)
        self.assertEqual(os.read(read, 64)[10:], struct.pack(">I", FORBIDDEN))
        os.close(read)


if __name__ == "__main__":
    harness.main()
