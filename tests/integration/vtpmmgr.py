"""The messages by which Xen's manage-vtpmmgr.pl manages its manager, byte by byte as it packs them, and what an approver signs
for it. Written after the script's messages, none of which is a secret: WIRE's table is in src/proto/vtpmmgr/management.hpp.
"""
import hashlib
import re
import struct
import subprocess
import uuid as uuids

TAG = 0x01C2
GROUP_LIST, GROUP_NEW, GROUP_DEL = 0x02000101, 0x02000102, 0x02000103
GROUP_UPDATE, GROUP_SHOW, GROUP_QUOTE = 0x02000106, 0x02000107, 0x02000108
GROUP_REGISTER, GROUP_RECOVER1, GROUP_RECOVER2 = 0x02000105, 0x02000109, 0x0200010A
VTPM_LIST, VTPM_NEW, VTPM_DEL = 0x02000201, 0x02000204, 0x02000205


def composite(pcrs, values):
    """SHA-1 of the TPM_PCR_COMPOSITE of these PCRs."""
    return hashlib.sha1(selection(pcrs) + struct.pack(">I", sum(map(len, values))) + b"".join(values)).digest()


def selection(pcrs):
    """A TPM_PCR_SELECTION."""
    return struct.pack(">H", 3) + sum(1 << n for n in pcrs).to_bytes(3, "little")


class Manager:
    """A manager behind a device or socket that tpm.Client (or what is derived from it) speaks to. Each method is a command of the
    script's; what the script would have printed as "TPM error" is tpm.TpmError."""

    def __init__(self, client):
        self.client = client

    def ask(self, ordinal, body=b""):
        return self.client.must(f"0x{ordinal:08x}", TAG, ordinal, body)

    def status(self, ordinal, body=b""):
        return self.client.command(TAG, ordinal, body)[0]

    def group_count(self):
        return struct.unpack(">I", self.ask(GROUP_LIST))[0]

    def show(self, group):
        """(UUID, the approver's modulus, config list) of a group."""
        answer = self.ask(GROUP_SHOW, struct.pack(">I", group))
        return answer[:16], answer[16:272], answer[272:]

    def vtpms(self, group):
        answer = self.ask(VTPM_LIST, struct.pack(">II", group, 0))
        if len(answer) != 4 + 16 * struct.unpack(">I", answer[:4])[0]:
            raise AssertionError(f"VTPM_LIST: {answer.hex()}")
        return [answer[i:i + 16] for i in range(4, len(answer), 16)]

    def list(self):
        """What `list` prints, group by group."""
        return [(*self.show(n), self.vtpms(n)) for n in range(self.group_count())]

    def group_add(self, modulus, chosen_id=bytes(20)):
        """(UUID, modulus of the attestation key, identity binding)."""
        answer = self.ask(GROUP_NEW, chosen_id + modulus)
        return answer[:16], answer[16:272], answer[272:]

    def group_update(self, group, signed_list):
        self.ask(GROUP_UPDATE, struct.pack(">I", group) + signed_list)

    def group_del(self, group):
        self.ask(GROUP_DEL, struct.pack(">I", group))

    def vtpm_add(self, group, uuid=None):
        # The script ends a UUID that it was given with a zero byte.
        return self.ask(VTPM_NEW, struct.pack(">I", group) + (uuid + b"\0" if uuid else b""))

    def vtpm_del(self, uuid):
        self.ask(VTPM_DEL, uuid)

    def group_quote(self, group, nonce, pcrs):
        """(signature, what follows it)."""
        answer = self.ask(GROUP_QUOTE, struct.pack(">I", group) + nonce + selection(pcrs))
        return answer[:256], answer[256:]

    # What Xen's manager designed, and the script does not send.

    def group_register(self, group, half_and_proof, pcrs):
        """(dhkx_2 and the blob, signature, what follows it)."""
        answer = self.ask(GROUP_REGISTER, struct.pack(">I", group) + half_and_proof + selection(pcrs))
        return answer[:288], answer[288:544], answer[544:]

    def group_recover1(self, group, attestation, nonce, pcrs):
        """`attestation`: the modulus of the key to quote by. (dhkx_1, signature, what follows it)."""
        key = (struct.pack(">IHIBIHH", 0x01010000, 0x12, 0, 1, 1, 1, 2) + struct.pack(">IIII", 12, 2048, 2, 0)
               + struct.pack(">II", 0, 256) + attestation + bytes(4))  # TPM_KEY: an identity, without its private part
        answer = self.ask(GROUP_RECOVER1, struct.pack(">I", group) + key + nonce + selection(pcrs))
        return answer[:256], answer[256:512], answer[512:]

    def group_recover2(self, group, half_and_blob):
        self.ask(GROUP_RECOVER2, struct.pack(">I", group) + half_and_blob)


class Approver:
    """A group's approver, with OpenSSL's tools; its key is a file in `directory`."""

    def __init__(self, directory):
        self.key = f"{directory}/approver-{uuids.uuid4()}.pem"
        self.openssl("genrsa", "-out", self.key, "2048")
        text = self.openssl("rsa", "-in", self.key, "-noout", "-modulus").decode()
        self.modulus = bytes.fromhex(re.search("Modulus=([0-9A-F]+)", text)[1])

    def openssl(self, *args, data=b""):
        return subprocess.run(["openssl", *args], input=data, check=True, timeout=60, stdout=subprocess.PIPE,
                              stderr=subprocess.DEVNULL).stdout

    def sign(self, sequence, platforms, labels=()):
        """The file that `group-update` takes. platforms: (PCRs, composite)."""
        config = struct.pack(">QI", sequence, len(platforms)) + b"".join(c for _, c in platforms)
        config += struct.pack(">I", len(labels)) + b"".join(labels)
        signature = self.openssl("dgst", "-sha1", "-sign", self.key, data=config)
        return signature + config + b"".join(selection(pcrs) for pcrs, _ in platforms)


def config_of(signed_list):
    """What group-show gives of it: without signature and selections."""
    platforms = struct.unpack(">I", signed_list[264:268])[0]
    labels = struct.unpack(">I", signed_list[268 + 20 * platforms:][:4])[0]
    return signed_list[256:272 + 20 * platforms + 20 * labels]


def _der(tag, *parts):
    body = b"".join(parts)
    size = len(body)
    return bytes([tag]) + (bytes([size]) if size < 128 else b"\x82" + struct.pack(">H", size)) + body


def public_key(modulus):
    """DER SubjectPublicKeyInfo of an RSA-2048 key with exponent 65537."""
    rsa = _der(0x30, _der(0x02, b"\0" + modulus), _der(0x02, b"\1\0\1"))
    return _der(0x30, _der(0x30, bytes.fromhex("06092a864886f70d010101"), b"\x05\0"), _der(0x03, b"\0" + rsa))


def signed_by(directory, modulus, digest, data, signature):
    """Whether OpenSSL says so."""
    for name, content in (("signer.der", public_key(modulus)), ("signature", signature), ("signed", data)):
        with open(f"{directory}/{name}", "wb") as f:
            f.write(content)
    return subprocess.run(["openssl", "dgst", f"-{digest}", "-keyform", "DER", "-verify", f"{directory}/signer.der", "-signature",
                           f"{directory}/signature", f"{directory}/signed"], timeout=60, stdout=subprocess.DEVNULL,
                          stderr=subprocess.DEVNULL, check=False).returncode == 0
