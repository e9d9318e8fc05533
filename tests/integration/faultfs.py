"""A file system that fails on command: files in memory, served to the kernel through /dev/fuse by a thread.

Mounted in the private mount namespace of the test (harness.private_mounts first), so the program under test meets real
EIO and ENOSPC from real system calls, whatever it uses to make them. Flat: one directory of regular files. Structures
and numbers as in linux/fuse.h, protocol 7.31.
"""
import errno
import fnmatch
import os
import stat
import struct
import threading
import time

import harness

(LOOKUP, FORGET, GETATTR, SETATTR, UNLINK, RENAME, OPEN, READ, WRITE, STATFS, RELEASE, FSYNC, FLUSH, INIT, OPENDIR, READDIR,
 RELEASEDIR, FSYNCDIR, ACCESS, CREATE, INTERRUPT, DESTROY, BATCH_FORGET, FALLOCATE, RENAME2) = (
    1, 2, 3, 4, 10, 12, 14, 15, 16, 17, 18, 20, 25, 26, 27, 28, 29, 30, 34, 35, 36, 38, 42, 43, 45)
FATTR_MODE, FATTR_SIZE = 1 << 0, 1 << 3
FOPEN_DIRECT_IO = 1 << 0
ROOT, BLOCK = 1, 4096
MAX_WRITE = 1 << 17


class Node:
    def __init__(self, mode):
        self.mode, self.data = mode, bytearray()


class FaultFs:
    """`faults` holds (operation, name pattern, errno) with operation one of read, write, fsync, open; every match fails.
    `capacity` is what all files together may hold; beyond it growing is ENOSPC. `hits` counts faults served."""

    def __init__(self, case, capacity=1 << 30):
        self.dir = case.path("faulty")
        os.makedirs(self.dir)
        self.capacity, self.faults, self.hits = capacity, [], 0
        self.nodes, self.names, self.next = {}, {}, 2
        self.fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
        harness.mount("faultfs", self.dir, "fuse", 0, f"fd={self.fd},rootmode=40000,user_id=0,group_id=0,allow_other")
        self.thread = threading.Thread(target=self._serve, daemon=True)
        self.thread.start()
        case.addCleanup(self.close)

    def close(self):
        try:
            harness.umount(self.dir)
        except OSError:
            pass

    # ---- what a test asks

    def fail(self, operation, pattern, error):
        self.faults.append((operation, pattern, error))

    def heal(self):
        self.faults, self.hits = [], 0

    def used(self):
        return sum(len(n.data) for n in self.nodes.values())

    # ---- the kernel's side

    def _fault(self, operation, node):
        name = next((n for n, i in self.names.items() if i == node), "")
        for what, pattern, error in self.faults:
            if what == operation and fnmatch.fnmatch(name, pattern):
                self.hits += 1
                raise OSError(error, os.strerror(error))

    def _attr(self, number):
        now = int(time.time())
        if number == ROOT:
            size, mode = 0, stat.S_IFDIR | 0o755
        else:
            node = self._node(number)
            size, mode = len(node.data), stat.S_IFREG | node.mode
        return struct.pack("<6Q10I", number, size, (size + 511) // 512, now, now, now, 0, 0, 0, mode, 1, 0, 0, 0, BLOCK, 0)

    def _node(self, number):
        if number not in self.nodes:
            raise OSError(errno.ENOENT, "")
        return self.nodes[number]

    def _entry(self, number):
        return struct.pack("<4Q2I", number, 0, 0, 0, 0, 0) + self._attr(number)

    def _grow(self, node, size):
        if size > len(node.data):
            if self.used() + size - len(node.data) > self.capacity:
                self.hits += 1
                raise OSError(errno.ENOSPC, "")
            node.data.extend(bytes(size - len(node.data)))

    def _serve(self):
        while True:
            try:
                request = os.read(self.fd, MAX_WRITE + 4096)
            except OSError as e:
                if e.errno == errno.ENOENT or e.errno == errno.EINTR:
                    continue
                os.close(self.fd)  # unmounted
                return
            _, opcode, unique, number = struct.unpack_from("<IIQQ", request)
            body = request[40:]
            if opcode in (FORGET, BATCH_FORGET, INTERRUPT):
                continue
            try:
                answer, error = self._handle(opcode, number, body), 0
            except OSError as e:
                answer, error = b"", e.errno
            try:
                os.write(self.fd, struct.pack("<IiQ", 16 + len(answer), -error, unique) + answer)
            except OSError:
                pass  # the caller was killed meanwhile

    def _handle(self, opcode, number, body):
        name = lambda raw: raw.split(b"\0")[0].decode()
        if opcode == INIT:
            return struct.pack("<IIIIHHIIHHI7I", 7, 31, 0, 0, 16, 12, MAX_WRITE, 1, 32, 0, 0, *[0] * 7)
        if opcode == LOOKUP:
            found = self.names.get(name(body))
            if found is None:
                raise OSError(errno.ENOENT, "")
            return self._entry(found)
        if opcode == GETATTR:
            return struct.pack("<QII", 0, 0, 0) + self._attr(number)
        if opcode == SETATTR:
            valid, _, _, size = struct.unpack_from("<IIQQ", body)
            node = self._node(number)
            if valid & FATTR_SIZE:
                self._fault("write", number)
                self._grow(node, size)
                del node.data[size:]
            if valid & FATTR_MODE:
                node.mode = struct.unpack_from("<I", body, 68)[0] & 0o7777
            return struct.pack("<QII", 0, 0, 0) + self._attr(number)
        if opcode == CREATE:
            mode = struct.unpack_from("<II", body)[1]
            number, self.next = self.next, self.next + 1
            self.nodes[number] = Node(mode & 0o7777)
            self.names[name(body[16:])] = number
            return self._entry(number) + struct.pack("<QII", 0, FOPEN_DIRECT_IO, 0)
        if opcode == OPEN:
            self._fault("open", number)
            return struct.pack("<QII", 0, FOPEN_DIRECT_IO, 0)
        if opcode == OPENDIR:
            return struct.pack("<QII", 0, 0, 0)
        if opcode == READ:
            self._fault("read", number)
            _, offset, size = struct.unpack_from("<QQI", body)
            return bytes(self._node(number).data[offset:offset + size])
        if opcode == WRITE:
            self._fault("write", number)
            _, offset, size = struct.unpack_from("<QQI", body)
            node, data = self._node(number), body[40:40 + size]
            self._grow(node, offset + size)
            node.data[offset:offset + size] = data
            return struct.pack("<II", size, 0)
        if opcode in (FSYNC, FSYNCDIR):
            self._fault("fsync", number)
            return b""
        if opcode == FALLOCATE:
            _, offset, length, mode = struct.unpack_from("<QQQI", body)
            if mode not in (0, 1):
                raise OSError(errno.EOPNOTSUPP, "")
            self._fault("write", number)
            if mode == 0:
                self._grow(self._node(number), offset + length)
            return b""
        if opcode == UNLINK:
            self.names.pop(name(body), None)
            return b""
        if opcode in (RENAME, RENAME2):
            names = body[8 if opcode == RENAME else 16:].split(b"\0")
            self.names[names[1].decode()] = self.names.pop(names[0].decode())
            return b""
        if opcode == STATFS:
            free = max(0, self.capacity - self.used()) // BLOCK
            return struct.pack("<5Q4I6I", self.capacity // BLOCK, free, free, 1000, 1000, BLOCK, 255, BLOCK, 0, *[0] * 6)
        if opcode == READDIR:
            offset = struct.unpack_from("<QQ", body)[1]
            out = b""
            for position, (entry, inode) in enumerate(sorted(self.names.items()), 1):
                if position > offset:
                    raw = entry.encode()
                    out += struct.pack("<QQII", inode, position, len(raw), 8) + raw + bytes(-len(raw) % 8)
            return out[:4096]
        if opcode in (RELEASE, RELEASEDIR, FLUSH, ACCESS, DESTROY):
            return b""
        raise OSError(errno.ENOSYS, "")
