#!/usr/bin/python3
"""What strangers can send to the three kinds of socket: no crash, no hang, no growth, and others are served meanwhile."""
import os
import random
import resource
import socket
import struct
import threading
import time
import uuid

import harness
import tpm

DATA = 0x01500002
HELLO = 0x56500001
FRAMES = 10_000
HEADROOM = 24 << 20  # bytes that a process may grow by while it is abused; a sanitizer's quarantine is not counted


class BadInput(harness.Case):
    def setUp(self):
        super().setUp()
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 8192), hard))
        self.manager = harness.Manager(self).start(create=True)
        self.victim = harness.Instance(self, self.manager).start(create=True)
        self.neighbour = harness.Instance(self, self.manager).start(create=True)
        self.guest = self.neighbour.client()
        self.addCleanup(self.guest.close)
        self.guest.nv_define(DATA, 8)
        self.processes = [self.manager.process, self.victim.process, self.neighbour.process]
        self.before = [(p.rss(), p.descriptors()) for p in self.processes]
        self.serial = 0
        self.caller = uuid.uuid4()

    def assert_served(self):
        """Another vTPM works, durably; so does the abused one for a guest that behaves."""
        self.serial += 1
        value = b"%08d" % self.serial
        self.guest.nv_write(DATA, value)
        self.assertEqual(self.guest.nv_read(DATA), value)
        with self.victim.client() as client:
            self.assertEqual(len(client.get_random(8)), 8)

    def assert_unharmed(self):
        self.assert_served()
        for p, (rss, descriptors) in zip(self.processes, self.before):
            self.assertTrue(p.running(), f"{p.name} ended: {p.log()[-2000:]}")
            harness.wait_until(lambda: p.descriptors() <= descriptors + 4, f"{p.name} closes what it no longer needs")
            if harness.SLOW == 1:
                self.assertLess(p.rss(), rss + HEADROOM, f"{p.name} grew")
            self.assertLess(len(p.log()), 256 << 10, f"{p.name} lets strangers fill the log")

    def targets(self):
        """(name, address, a good frame); the manager is met once by a stranger, once by one who said hello."""
        hello = struct.pack(">HIIH16sBI", 0x01C1, 33, HELLO, 1, self.caller.bytes, 2, 1)
        return [
            ("guest data", self.victim.socket, struct.pack(">HIIH", tpm.TPM_ST_NO_SESSIONS, 12, 0x17B, 8)),
            ("control", self.victim.socket + ".ctrl", struct.pack(">IB", 5, 0)),
            ("manager", self.manager.socket, hello),
            ("manager, greeted", self.manager.socket, hello + struct.pack(">HII", 0x01C1, 10 + 64, 1) + os.urandom(64)),
        ]

    def throw(self, address, *frames, patience=0.2):
        """Sends on one connection whatever comes back; the peer may close it."""
        s = harness.connect(address)
        s.settimeout(patience)
        try:
            for frame in frames:
                s.sendall(frame)
            s.shutdown(socket.SHUT_WR)
            while s.recv(65536):
                pass
        except (ConnectionResetError, BrokenPipeError, TimeoutError):
            pass
        finally:
            s.close()

    def test_wrong_fields(self):
        u16 = (0, 1, 0x00C1, 0x00C4, 0x01C1, 0x01C2, 0x01C4, 0x8001, 0x8002, 0xFFFF)
        u32 = (0, 1, 9, 10, 11, 4088, 4096, 4097, 0x7FFFFFFF, 0x80000000, 0xFFFFFFF5, 0xFFFFFFFF)
        for tag in u16:
            for size in u32:
                code = random.choice((1, 2, 3, 0x17B, HELLO, 0xFFFFFFFF))
                frame = struct.pack(">HII", tag, size, code) + os.urandom(random.randrange(70))
                for name, address, good in self.targets():
                    self.throw(address, good[:33] if "greeted" in name else b"", frame, patience=0.02)
        for number in [*range(0, 22), 0x100, 0xFFFFFFFF]:
            for body in (b"", b"\xff" * 3, bytes(4), b"\xff" * 4, bytes(12), b"\xff" * 20, struct.pack(">III", 1, 1, 0xFFFFFFFF)):
                if number in (2, 3, 14):  # INIT, SHUTDOWN and STOP are orders, not bad input
                    continue
                self.throw(self.victim.socket + ".ctrl", struct.pack(">I", number) + body, patience=0.02)
        self.assert_unharmed()

    def test_truncated_at_every_length(self):
        for name, address, good in self.targets():
            for length in range(len(good)):
                self.throw(address, good[:length], patience=1)
            self.assert_served()
        self.assert_unharmed()

    def test_oversized(self):
        for name, address, _ in self.targets():
            for size in (4096, 4097, 65536, 1 << 20):
                head = struct.pack(">HII", 0x8001, size, 0x17B)
                self.throw(address, head, bytes(size - 10))
                self.throw(address, bytes(1 << 20))
                self.throw(address, os.urandom(1 << 20))
        self.assert_unharmed()

    def test_ten_thousand_random_frames(self):
        """Well-framed nonsense for the guest's TPM and the manager, and noise for the control channel."""
        sent = 0
        client = self.victim.client()
        while sent < FRAMES // 2:
            body = os.urandom(random.choice((0, 2, 4, 12, 33, 64, 500)))
            code = random.choice((random.randrange(0x11F, 0x198), random.getrandbits(32)))
            if code in (0x144, 0x145, 0x126, 0x12D):  # startup, shutdown, clear and clear-control mean what they say
                continue
            status, _ = client.command(random.choice((0x8001, 0x8002, 0x00C1, random.getrandbits(16))), code, body)
            sent += 1
            if sent % 500 == 0:
                self.assert_served_quickly()
        client.close()
        noise = [self.victim.socket + ".ctrl", self.manager.socket]
        while sent < FRAMES:
            address = random.choice(noise)
            frames = [self.targets()[3][2]] if address == self.manager.socket and random.random() < 0.5 else []
            for _ in range(25):
                body = os.urandom(random.randrange(0, 120))
                if address == self.manager.socket:
                    code = random.choice((0, 1, 2, 3, 4, 0x46, 0x15, HELLO, random.getrandbits(32)))
                    frames.append(struct.pack(">HII", random.choice((0x01C1, 0x01C2, 0x00C1)), 10 + len(body), code) + body)
                else:
                    frames.append(struct.pack(">I", random.choice((0, 1, 4, 6, 7, 9, 11, 12, 13, 15, 17, 18, 19, 99))) + body)
            self.throw(address, *frames, patience=0.05)
            sent += len(frames)
            if sent % 500 == 0:
                self.assert_served_quickly()
        # The noise may have spelled INIT or STOP by chance of the bytes; a power cycle makes the vTPM whole again.
        with self.victim.control() as control:
            control.must(control.INIT, bytes(4))
        self.assert_unharmed()

    def test_a_device_model_that_misbehaves(self):
        """qemu:PATH: what is handed over as a descriptor, beside a device model that behaves; then what comes over the right one."""
        path = self.path("box.qemu")
        box = harness.Instance(self, self.manager, name="box", options=["--startup=wait", f"--guest=qemu:{path}"]).start(create=True)
        self.processes.append(box.process)
        self.before.append((box.process.rss(), box.process.descriptors()))

        def hand_over(sock, *descriptors, command=tpm.Control.SET_DATAFD):
            socket.send_fds(sock, [struct.pack(">I", command)], descriptors)
            return sock.recv(64)

        def power_on():
            """(control connection, its data socket's client) of a device model that behaves."""
            control = harness.connect(path)
            mine, theirs = socket.socketpair()
            with theirs:
                self.assertEqual(hand_over(control, theirs.fileno()), bytes(4))
            mine.settimeout(harness.PATIENCE)
            tpm.Control(control).must(tpm.Control.INIT, bytes(4))
            client = tpm.Client(mine)
            client.must("TPM2_Startup", tpm.TPM_ST_NO_SESSIONS, 0x144, bytes(2))
            return control, client

        control, client = power_on()
        stream, other = socket.socketpair()
        datagram, other_datagram = socket.socketpair(type=socket.SOCK_DGRAM)
        read_end, write_end = os.pipe()
        file = os.open(box.image, os.O_RDONLY)
        internet = socket.socket(socket.AF_INET)
        for descriptors in ((), (file,), (read_end,), (write_end,), (datagram.fileno(),), (internet.fileno(),), (stream.fileno(),),
                            (stream.fileno(),) * 20, (file,) * 100):
            for stranger in (harness.connect(path), control):
                self.assertNotEqual(hand_over(stranger, *descriptors), bytes(4), descriptors)
                if stranger is not control:
                    hand_over(stranger, *descriptors, command=tpm.Control.GET_CAPABILITY)  # a descriptor that nobody asked for
                    socket.send_fds(stranger, [b"\0\0"], descriptors)                      # one in the middle of a request
                    stranger.close()
                self.assertEqual(len(client.get_random(8)), 8)
        for end in (stream, other, datagram, other_datagram, internet):
            end.close()
        for descriptor in (read_end, write_end, file):
            os.close(descriptor)

        good = struct.pack(">HIIH", tpm.TPM_ST_NO_SESSIONS, 12, 0x17B, 8)
        for data in (*(good[:length] for length in range(1, len(good))), struct.pack(">HII", 0x8001, 0xFFFFFFFF, 0x17B), bytes(1 << 16),
                     os.urandom(1 << 16), struct.pack(">HII", 0x8001, 9, 0x17B)):
            client.sock.settimeout(5)
            try:
                client.sock.sendall(data)
                client.sock.shutdown(socket.SHUT_WR)
                while client.sock.recv(65536):
                    pass
            except (ConnectionResetError, BrokenPipeError):
                pass
            client.close()
            control.close()
            control, client = power_on()
            self.assertEqual(len(client.get_random(8)), 8)
        client.close()
        control.close()
        self.assert_unharmed()

    def assert_served_quickly(self):
        self.serial += 1
        self.guest.nv_write(DATA, b"%08d" % self.serial)

    def test_half_open_and_never_reading(self):
        idle = []
        for name, address, good in self.targets():
            for n in range(30):
                s = harness.connect(address)
                s.setblocking(False)
                try:
                    if n % 3 == 0:
                        s.send(good[:n % len(good)])
                    elif n % 3 == 1:
                        s.send(good[:-1])
                    else:
                        while True:  # asks and asks and never reads
                            if not s.send(good * 200):
                                break
                except (BlockingIOError, BrokenPipeError, ConnectionResetError):
                    pass
                idle.append(s)
            self.assert_served()
        for p, (rss, _) in zip(self.processes, self.before):
            if harness.SLOW == 1:
                self.assertLess(p.rss(), rss + HEADROOM, f"{p.name} grew")
        for s in idle:
            s.close()
        self.assert_unharmed()

    def test_a_thousand_connections(self):
        for name, address, good in self.targets():
            with self.subTest(name):
                crowd = []
                try:
                    for _ in range(1000):
                        s = socket.socket(socket.AF_UNIX)
                        s.settimeout(harness.PATIENCE)
                        try:
                            s.connect(address)
                            crowd.append(s)
                        except (BlockingIOError, ConnectionRefusedError, TimeoutError):
                            s.close()  # being turned away is an answer too
                    self.serial += 1
                    self.guest.nv_write(DATA, b"%08d" % self.serial)
                finally:
                    for s in crowd:
                        s.close()
        self.assert_unharmed()

    def test_connections_come_and_go(self):
        stop = threading.Event()

        def rattle(address, good):
            while not stop.is_set():
                try:
                    s = harness.connect(address)
                    s.send(good[:random.randrange(len(good))])
                    s.close()
                except (ConnectionResetError, BrokenPipeError):
                    pass
        # Without the greeted one: a vTPM that opens and closes is a line in the log each time, and should be.
        threads = [threading.Thread(target=rattle, args=t[1:]) for t in self.targets()[:3]]
        for t in threads:
            t.start()
        try:
            deadline = time.monotonic() + 2
            while time.monotonic() < deadline:
                self.assert_served_quickly()
        finally:
            stop.set()
            for t in threads:
                t.join(harness.PATIENCE)
        self.assert_unharmed()

    def test_a_stranger_is_not_a_vtpm(self):
        """Who is neither root nor of the vtpmd group gets nothing from the manager, whatever UUID is claimed."""
        if os.geteuid() != 0:
            harness.need_root()
        os.chmod(self.manager.socket, 0o777)
        code = ("import socket,sys; s=socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); s.settimeout(5)\n"
                "try:\n s.sendall(bytes.fromhex('01c10000000a00000002')); d=s.recv(4096)\n"
                "except OSError: d=b''\n"
                "sys.exit(0 if d==b'' or d[6:10]!=bytes(4) else 1)")
        status, text = self.run_command("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "/usr/bin/python3", "-c", code,
                                        self.manager.socket, ok=False)
        self.assertEqual(status, 0, text)
        mode = os.stat(self.victim.socket).st_mode & 0o777
        self.assertEqual(mode & 0o007, 0, "a guest's socket open to all")
        self.assert_unharmed()


if __name__ == "__main__":
    harness.main()
