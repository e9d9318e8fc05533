"""A device model as QEMU is one: it brings its own socket for the commands, stops and starts the TPM at a reset, saves and restores it."""
import array
import socket
import struct

import harness
import tpm

CLEAR, STATE = 0, 1  # TPM_SU
DATA = 0x01500002
SECRET = b"secret"
SECRET_INDEX = 0x01500003  # behind the dictionary-attack logic


class Guest(tpm.Client):
    """A guest's TPM 2.0 driver, and what its programs ask."""

    def startup(self, kind=CLEAR):
        return self.command(tpm.TPM_ST_NO_SESSIONS, 0x144, struct.pack(">H", kind))[0]

    def shutdown(self, kind=CLEAR):
        self.must("TPM2_Shutdown", tpm.TPM_ST_NO_SESSIONS, 0x145, struct.pack(">H", kind))

    def property(self, which):
        answer = self.must("TPM2_GetCapability", tpm.TPM_ST_NO_SESSIONS, 0x17A, struct.pack(">III", 6, which, 1))
        return struct.unpack(">II", answer[-8:])[1]

    def lockout_counter(self):
        return self.property(0x20E)  # TPM_PT_LOCKOUT_COUNTER

    def clock(self):
        """Milliseconds, and whether they are safe."""
        answer = self.must("TPM2_ReadClock", tpm.TPM_ST_NO_SESSIONS, 0x181)
        return struct.unpack(">Q", answer[8:16])[0], answer[24] == 1

    def define_secret(self):
        attributes = tpm.TPMA_NV_AUTHWRITE | tpm.TPMA_NV_AUTHREAD
        public = struct.pack(">IHIHH", SECRET_INDEX, tpm.TPM_ALG_SHA256, attributes, 0, 8)
        self._sessions("TPM2_NV_DefineSpace", 0x12A, [tpm.TPM_RH_OWNER],
                       struct.pack(">H", len(SECRET)) + SECRET + struct.pack(">H", len(public)) + public)

    def use_secret(self, secret=SECRET):
        """Writes with the password: 0, or what the TPM says."""
        auth = struct.pack(">IHBH", tpm.TPM_RS_PW, 0, 0, len(secret)) + secret
        body = struct.pack(">III", SECRET_INDEX, SECRET_INDEX, len(auth)) + auth + struct.pack(">H", 8) + b"12345678" + bytes(2)
        while (result := self.command(tpm.TPM_ST_SESSIONS, 0x137, body)[0]) == tpm.TPM_RC_RETRY:
            pass  # once in a power cycle: it has noted that a secret is used
        return result


class DeviceModel:
    def __init__(self, path):
        self.control = tpm.Control(harness.connect(path))
        ours, theirs = socket.socketpair()
        self.control.sock.sendmsg([struct.pack(">I", tpm.Control.SET_DATAFD)],
                                  [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [theirs.fileno()]))])
        result = struct.unpack(">I", self.control._client.read_exactly(4))[0]
        if result:
            raise tpm.TpmError(result, "SET_DATAFD")
        theirs.close()
        ours.settimeout(harness.PATIENCE)
        self.guest = Guest(ours)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.vanish()

    def vanish(self):
        """As when QEMU is killed."""
        self.guest.close()
        self.control.close()

    def init(self, flags=0):
        return self.control.call(tpm.Control.INIT, struct.pack(">I", flags))[0]

    def reset(self):
        """As QEMU does at a machine's reset, and at its start."""
        self.control.must(tpm.Control.STOP)
        self.control.must(tpm.Control.SET_BUFFERSIZE, struct.pack(">I", 4096), 12)
        if result := self.init():
            raise tpm.TpmError(result, "INIT")

    def save(self, types=(1, 2, 3)):
        blobs = []
        for kind in types:
            head = self.control.must(tpm.Control.GET_STATEBLOB, struct.pack(">III", 1, kind, 0), 12)
            blobs.append(self.control._client.read_exactly(struct.unpack(">III", head)[2]))
        return blobs

    def set(self, blobs):
        """The first result that is not 0, or 0. A saved state that is empty is left out, as QEMU does."""
        self.control.must(tpm.Control.STOP)
        for kind, blob in enumerate(blobs, 1):
            if not blob:
                continue
            body = struct.pack(">III", 0, kind, len(blob)) + blob
            if result := self.control.call(tpm.Control.SET_STATEBLOB, body)[0]:
                return result
        return 0

    def restore(self, blobs):
        """0, or the first result that is not."""
        return self.set(blobs) or self.init(1)


class Host(harness.Case):
    """A manager, and an instance that waits for a device model."""
    OPTIONS = ()

    def setUp(self):
        super().setUp()
        self.manager = harness.Manager(self).start(create=True)
        self.uuid, self.qemu = harness.new_uuid(), self.path("q")
        self.image = self.path("v.img")
        self.process = None
        self.start(create=True)

    def start(self, create=False, options=None):
        options = self.OPTIONS if options is None else options
        self.process = self.spawn("instance", harness.VTPMD, "--mode=instance", f"--uuid={self.uuid}",
                                  f"--manager=unix:{self.manager.socket}", f"--state={self.image}", f"--guest=qemu:{self.qemu}",
                                  *(["--create"] if create else []), *options)
        self.process.wait_log("VTPM attached to Frontend")

    def device_model(self):
        return DeviceModel(self.qemu)

    def boot(self):
        machine = self.device_model()
        machine.reset()
        self.assertEqual(machine.guest.startup(), 0)
        return machine

    def shut_down(self, machine):
        """As QEMU ends: SHUTDOWN, and the instance ends with it."""
        machine.control.must(tpm.Control.SHUTDOWN)
        machine.vanish()
        self.assertEqual(self.process.wait(), 0)
