"""Raw TPM commands over a stream socket: the few that tests need without a client library, for TPM 2.0 and TPM 1.2.

Names and numbers as in TCG's TPM 2.0 Library, part 2 and 3, and TPM Main 1.2, part 2 and 3.
"""
import hashlib
import hmac
import os
import socket
import struct

import harness

TPM_ST_NO_SESSIONS, TPM_ST_SESSIONS = 0x8001, 0x8002
TPM_TAG_RQU_COMMAND = 0x00C1
TPM_RH_OWNER, TPM_RS_PW = 0x40000001, 0x40000009
TPM_ALG_SHA1, TPM_ALG_SHA256 = 0x0004, 0x000B
TPMA_NV_AUTHWRITE, TPMA_NV_COUNTER, TPMA_NV_AUTHREAD, TPMA_NV_NO_DA = 1 << 2, 1 << 4, 1 << 18, 1 << 25
NV_ORDINARY = TPMA_NV_AUTHWRITE | TPMA_NV_AUTHREAD | TPMA_NV_NO_DA
TPM_RC_NV_DEFINED, TPM_RC_RETRY = 0x14C, 0x922


class TpmError(Exception):
    def __init__(self, code, what):
        super().__init__(f"{what}: TPM error 0x{code:x}")
        self.code = code


def again(command, *args, **kw):
    """What is protected by a counted authorisation: its first use in a power cycle is answered by TPM_RC_RETRY, once the TPM has noted
    that it is used; then the same is asked again, as drivers do."""
    try:
        return command(*args, **kw)
    except TpmError as e:
        if e.code != TPM_RC_RETRY:
            raise
        return command(*args, **kw)


class Client:
    """A guest on a data socket."""

    def __init__(self, sock):
        self.sock = sock

    def close(self):
        self.sock.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def read_exactly(self, count):
        data = b""
        while len(data) < count:
            part = self.sock.recv(count - len(data))
            if not part:
                raise ConnectionError(f"the peer closed after {len(data)} of {count} bytes")
            data += part
        return data

    def receive(self):
        """One whole response."""
        head = self.read_exactly(10)
        size = struct.unpack(">I", head[2:6])[0]
        if not 10 <= size <= 4096:
            raise AssertionError(f"a response of {size} bytes")
        return head + self.read_exactly(size - 10)

    def raw(self, frame):
        self.sock.sendall(frame)
        return self.receive()

    def command(self, tag, code, body=b""):
        """(response code, response body)."""
        answer = self.raw(struct.pack(">HII", tag, 10 + len(body), code) + body)
        return struct.unpack(">I", answer[6:10])[0], answer[10:]

    def must(self, what, tag, code, body=b""):
        status, answer = self.command(tag, code, body)
        if status:
            raise TpmError(status, what)
        return answer

    # ---- TPM 2.0

    def _sessions(self, what, code, handles, parameters, password=b""):
        """A command whose first handle is authorised by a password; gives the parameters of the answer."""
        auth = struct.pack(">IHBH", TPM_RS_PW, 0, 0, len(password)) + password
        body = b"".join(struct.pack(">I", h) for h in handles) + struct.pack(">I", len(auth)) + auth + parameters
        answer = self.must(what, TPM_ST_SESSIONS, code, body)
        size = struct.unpack(">I", answer[:4])[0]
        return answer[4:4 + size]

    def get_random(self, count=8):
        return self.must("TPM2_GetRandom", TPM_ST_NO_SESSIONS, 0x17B, struct.pack(">H", count))[2:]

    def pcr_extend(self, pcr, digest):
        """SHA-256 bank."""
        self._sessions("TPM2_PCR_Extend", 0x182, [pcr], struct.pack(">IH", 1, TPM_ALG_SHA256) + digest)

    def pcr_read(self, pcr, bank=TPM_ALG_SHA256):
        select = bytearray(3)
        select[pcr // 8] |= 1 << (pcr % 8)
        answer = self.must("TPM2_PCR_Read", TPM_ST_NO_SESSIONS, 0x17E, struct.pack(">IHB", 1, bank, 3) + bytes(select))
        digests = answer[4 + 4 + 2 + 1 + 3:]
        count, size = struct.unpack(">IH", digests[:6])
        return digests[6:6 + size] if count else b""

    def nv_define(self, index, size=8, attributes=NV_ORDINARY, password=b""):
        public = struct.pack(">IHIHH", index, TPM_ALG_SHA256, attributes, 0, size)
        self._sessions("TPM2_NV_DefineSpace", 0x12A, [TPM_RH_OWNER],
                       struct.pack(">H", len(password)) + password + struct.pack(">H", len(public)) + public)

    def nv_define_counter(self, index):
        self.nv_define(index, 8, NV_ORDINARY | TPMA_NV_COUNTER)

    def nv_undefine(self, index):
        self._sessions("TPM2_NV_UndefineSpace", 0x122, [TPM_RH_OWNER, index], b"")

    def nv_increment(self, index):
        self._sessions("TPM2_NV_Increment", 0x134, [index, index], b"")

    def nv_write(self, index, data, offset=0, password=b""):
        self._sessions("TPM2_NV_Write", 0x137, [index, index],
                       struct.pack(">H", len(data)) + data + struct.pack(">H", offset), password)

    def nv_read(self, index, size=8, offset=0, password=b""):
        return self._sessions("TPM2_NV_Read", 0x14E, [index, index], struct.pack(">HH", size, offset), password)[2:]

    def lockout_counter(self):
        """How many wrong passwords the TPM thinks that it has seen."""
        answer = self.must("TPM2_GetCapability", TPM_ST_NO_SESSIONS, 0x17A, struct.pack(">III", 6, 0x20E, 1))
        return struct.unpack(">I", answer[-4:])[0]

    def nv_count(self, index):
        return int.from_bytes(self.nv_read(index, 8), "big")

    # ---- TPM 1.2

    def get_random12(self, count=8):
        return self.must("TPM_GetRandom", TPM_TAG_RQU_COMMAND, 0x46, struct.pack(">I", count))[4:]

    def pcr_read12(self, pcr):
        return self.must("TPM_PcrRead", TPM_TAG_RQU_COMMAND, 0x15, struct.pack(">I", pcr))

    def extend12(self, pcr, digest):
        return self.must("TPM_Extend", TPM_TAG_RQU_COMMAND, 0x14, struct.pack(">I", pcr) + digest)

    def nv_define12(self, index, size, attributes=0x00000001):
        """Without authorisation, as a TPM whose NV is not yet locked allows."""
        info_short = struct.pack(">H3sB20s", 3, bytes(3), 0x1F, bytes(20))
        public = (struct.pack(">HI", 0x0018, index) + info_short + info_short + struct.pack(">HI", 0x0017, attributes)
                  + bytes(3) + struct.pack(">I", size))
        self.must("TPM_NV_DefineSpace", TPM_TAG_RQU_COMMAND, 0xCC, public + bytes(20))

    def nv_write12(self, index, data, offset=0):
        self.must("TPM_NV_WriteValue", TPM_TAG_RQU_COMMAND, 0xCD, struct.pack(">III", index, offset, len(data)) + data)

    def nv_read12(self, index, size, offset=0):
        return self.must("TPM_NV_ReadValue", TPM_TAG_RQU_COMMAND, 0xCF, struct.pack(">III", index, offset, size))[4:]


class Owner12:
    """The owner of a TPM 1.2 (TPM Main part 1 section 13, OIAP): takes it, and authorises commands. `encrypt` is OAEP (SHA-1, label
    TCPA) to the modulus of the endorsement key."""
    OAEP_KEY = struct.pack(">IHHIIII", 1, 3, 1, 12, 2048, 2, 0)  # TPM_KEY_PARMS

    def __init__(self, client, secret=b"\x5a" * 20):
        self.client, self.secret = client, secret

    def endorsement_key(self):
        """TPM_PUBKEY, as long as there is no owner."""
        return self.client.must("the endorsement key", 0x00C1, 0x7C, bytes(20))[:-20]

    def run(self, ordinal, parameters=b""):
        session = self.client.must("OIAP", 0x00C1, 0x0A)
        return self._authorised(session[:4], session[4:24], self.secret, ordinal, parameters)

    def run_with_secret(self, ordinal, new, before=b"", after=b""):
        """A command that gives the TPM a secret between its other parameters (OSAP, XOR)."""
        ours = os.urandom(20)
        session = self.client.must("OSAP", 0x00C1, 0x0B, struct.pack(">HI", 2, 0x40000001) + ours)
        shared = hmac.new(self.secret, session[24:44] + ours, hashlib.sha1).digest()
        mask = hashlib.sha1(shared + session[4:24]).digest()
        hidden = bytes(a ^ b for a, b in zip(new, mask))
        return self._authorised(session[:4], session[4:24], shared, ordinal, before + hidden + after)

    def _authorised(self, handle, even, key, ordinal, parameters):
        odd = os.urandom(20)
        digest = hashlib.sha1(struct.pack(">I", ordinal) + parameters).digest()
        proof = hmac.new(key, digest + even + odd + b"\0", hashlib.sha1).digest()
        body = self.client.must(f"ordinal {ordinal:#x}", 0x00C2, ordinal, parameters + handle + odd + b"\0" + proof)
        answer, even, proof = body[:-41], body[-41:-21], body[-20:]
        digest = hashlib.sha1(struct.pack(">II", 0, ordinal) + answer).digest()
        if hmac.new(key, digest + even + odd + body[-21:-20], hashlib.sha1).digest() != proof:
            raise AssertionError("the answer is not authorised by the TPM")
        return answer

    def take(self, encrypt):
        storage = struct.pack(">IHIB", 0x01010000, 0x11, 0, 1) + self.OAEP_KEY + bytes(12)
        encrypted = b"".join(struct.pack(">I", 256) + encrypt(secret) for secret in (self.secret, bytes(20)))
        self.run(0x0D, struct.pack(">H", 5) + encrypted + storage)

    def take_by_openssl(self, case):
        """take(), with the endorsement key in a case's ek.pem."""
        modulus = self.endorsement_key()[-256:]
        with open(case.path("ek.der"), "wb") as f:  # PKCS #1: SEQUENCE of modulus and 65537
            f.write(bytes.fromhex("3082010a02820101 00") + modulus + bytes.fromhex("0203010001"))
        case.run_command("openssl", "rsa", "-RSAPublicKey_in", "-inform", "DER", "-in", case.path("ek.der"), "-pubout", "-out",
                         case.path("ek.pem"))

        def encrypt(secret):
            with open(case.path("secret"), "wb") as f:
                f.write(secret)
            case.run_command("openssl", "pkeyutl", "-encrypt", "-pubin", "-inkey", case.path("ek.pem"), "-in", case.path("secret"),
                             "-out", case.path("encrypted"), "-pkeyopt", "rsa_padding_mode:oaep", "-pkeyopt", "rsa_oaep_md:sha1",
                             "-pkeyopt", "rsa_oaep_label:54435041")
            with open(case.path("encrypted"), "rb") as f:
                return f.read()
        self.take(encrypt)


def extended(old, digest, algorithm="sha256"):
    """What a PCR holds after an extend."""
    return hashlib.new(algorithm, old + digest).digest()


class Control:
    """The control channel that QEMU and swtpm's tools speak."""
    GET_CAPABILITY, INIT, SHUTDOWN, GET_TPMESTABLISHED, SET_LOCALITY = 1, 2, 3, 4, 5
    CANCEL, STORE_VOLATILE, RESET_TPMESTABLISHED, GET_STATEBLOB, SET_STATEBLOB = 9, 10, 11, 12, 13
    STOP, GET_CONFIG, SET_DATAFD, SET_BUFFERSIZE, GET_INFO, LOCK_STORAGE = 14, 15, 16, 17, 18, 19

    def __init__(self, sock):
        self.sock = sock
        self._client = Client(sock)

    def close(self):
        self.sock.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def call(self, number, body=b"", answer=0):
        """(result, answer bytes); the answer comes with result 0 only."""
        self.sock.sendall(struct.pack(">I", number) + body)
        result = struct.unpack(">I", self._client.read_exactly(4))[0]
        return result, (self._client.read_exactly(answer) if result == 0 and answer else b"")

    def must(self, number, body=b"", answer=0):
        result, data = self.call(number, body, answer)
        if result:
            raise TpmError(result, f"control command {number}")
        return data


class ManagerLink:
    """The manager's listen socket, spoken raw."""

    def __init__(self, path):
        self.sock = harness.connect(path)
        self._client = Client(self.sock)

    def close(self):
        self.sock.close()

    def call(self, ordinal, body=b"", tag=0x01C1):
        return self._client.command(tag, ordinal, body)


def closed_or_error(sock, frame):
    """Sends a frame that means nothing and says how it was met: 'closed', or the bytes that came back."""
    try:
        sock.sendall(frame)
        sock.shutdown(socket.SHUT_WR)
        data = b""
        while part := sock.recv(65536):
            data += part
        return data or "closed"
    except (ConnectionResetError, BrokenPipeError):
        return "closed"
