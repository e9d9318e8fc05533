// Superblock: u16 version (2), u8 flags (1 complete), uuid[16], u32 counter handle,
//             u16 n, TPM identity[n]; u16 n, TPM description[n] (UTF-8);
//             u8 count, that many recovery keys: u8 n, id[n] (ASCII); u64 created; u8 n, label[n] (UTF-8);
//               u16 n, the key kept in a box[n]; u16 n, recovery box[n]   (version 1: u16 n, recovery box[n], n = 0: none)
//             u16 bank (TPM_ALG_ID), u32 PCRs (bit n: PCR n); u16 m, m values: u16 bank, u8 PCR, u8 n, digest[n];
//             u16 n, sealed blob[n]
// Keyring:    u8 version (1), uuid[16], master key[32], group 0's key[32], u32 counter handle, u64 counter base,
//             u8 n (at most 32), counter authorisation[n]
// Big-endian.
#include "manager/vault/superblock.hpp"

#include "util/wire.hpp"

namespace vtpmd::manager {

namespace {

constexpr std::uint16_t superblock_version = 2;
constexpr std::uint16_t one_key_version = 1;
constexpr std::uint8_t keyring_version = 1;
constexpr std::uint8_t flag_complete = 1;
constexpr unsigned pcr_count = 24;
constexpr std::size_t description_limit = 200;

void put_string(WireWriter& out, ByteView bytes) { out.be16(static_cast<std::uint16_t>(bytes.size())).bytes(bytes); }
Bytes get_string(WireReader& in) { return to_bytes(in.bytes(in.be16())); }
void put_text(WireWriter& out, std::string_view text) {
    out.u8(static_cast<std::uint8_t>(text.size())).bytes(as_bytes(text));
}
std::string text_of(ByteView bytes) {
    std::string out;
    for (std::byte b : bytes) {
        out += static_cast<char>(b);
    }
    return out;
}

void put_recovery_keys(WireWriter& out, const std::vector<RecoveryKey>& keys) {
    out.u8(static_cast<std::uint8_t>(keys.size()));
    for (const RecoveryKey& k : keys) {
        put_text(out, k.id);
        out.be64(k.created);
        put_text(out, k.label);
        put_string(out, k.kept);
        put_string(out, k.box);
    }
}

std::vector<RecoveryKey> get_recovery_keys(WireReader& in, std::uint16_t version) {
    std::vector<RecoveryKey> keys;
    if (version == one_key_version) {
        if (Bytes box = get_string(in); !box.empty()) {
            keys.push_back({.id = {}, .created = 0, .label = {}, .kept = {}, .box = std::move(box)});
        }
        return keys;
    }
    for (unsigned left = in.u8(); left > 0 && in.ok(); --left) {
        RecoveryKey k;
        k.id = text_of(in.bytes(in.u8()));
        k.created = in.be64();
        k.label = text_of(in.bytes(in.u8()));
        k.kept = get_string(in);
        k.box = get_string(in);
        keys.push_back(std::move(k));
    }
    return keys;
}

std::uint32_t mask_of(const hwtpm::PcrSelection& selection) {
    std::uint32_t mask = 0;
    for (unsigned p : selection.pcrs) {
        mask |= 1U << p;
    }
    return mask;
}

hwtpm::PcrSelection selection_of(std::uint16_t bank, std::uint32_t mask) {
    hwtpm::PcrSelection selection{.bank = static_cast<hwtpm::HashAlg>(bank), .pcrs = {}};
    for (unsigned p = 0; p < pcr_count; ++p) {
        if ((mask >> p & 1U) != 0) {
            selection.pcrs.push_back(p);
        }
    }
    return selection;
}

} // namespace

Keyring Keyring::clone() const {
    return {.image = image,
            .master = master.clone(),
            .group0 = group0.clone(),
            .counter = counter,
            .counter_base = counter_base};
}

Result<SecretBytes> pack(const Keyring& keyring) {
    if (keyring.counter.auth.size() > counter_auth_limit) {
        return make_error(Errc::too_large, "counter authorisation of {} bytes (at most {})",
                          keyring.counter.auth.size(), counter_auth_limit);
    }
    WireWriter out(128); // never grows, so that no copy is left behind
    out.u8(keyring_version).bytes(keyring.image.bytes).bytes(keyring.master.view()).bytes(keyring.group0.view());
    out.be32(keyring.counter.handle).be64(keyring.counter_base);
    out.u8(static_cast<std::uint8_t>(keyring.counter.auth.size())).bytes(keyring.counter.auth);
    Bytes plain = out.take();
    SecretBytes packed{ByteView(plain)};
    cleanse(plain);
    return packed;
}

Result<Keyring> unpack(ByteView packed) {
    WireReader in(packed);
    std::uint8_t version = in.u8();
    if (in.ok() && version != keyring_version) {
        return make_error(Errc::version, "sealed keys of version {} (this program knows {})", version, keyring_version);
    }
    Keyring k;
    k.image = Uuid{in.array<16>()};
    k.master = SecretBytes(in.bytes(key_size));
    k.group0 = SecretBytes(in.bytes(key_size));
    k.counter.handle = in.be32();
    k.counter_base = in.be64();
    k.counter.auth = to_bytes(in.bytes(in.u8()));
    if (!in.expect_end() || k.counter.auth.size() > counter_auth_limit) {
        return make_error(Errc::corrupt, "sealed keys of {} bytes are malformed", packed.size());
    }
    return k;
}

Bytes encode(const Superblock& s) {
    WireWriter out(1024);
    out.be16(superblock_version).u8(s.complete ? flag_complete : 0).bytes(s.image.bytes).be32(s.counter_handle);
    put_string(out, s.tpm_identity);
    put_string(out, as_bytes(std::string_view(s.tpm_description).substr(0, description_limit)));
    put_recovery_keys(out, s.recovery);
    out.be16(static_cast<std::uint16_t>(s.sealed.selection.bank)).be32(mask_of(s.sealed.selection));
    out.be16(static_cast<std::uint16_t>(s.sealed.values.size()));
    for (const hwtpm::PcrValue& v : s.sealed.values) {
        out.be16(static_cast<std::uint16_t>(v.bank)).u8(static_cast<std::uint8_t>(v.index));
        out.u8(static_cast<std::uint8_t>(v.digest.size())).bytes(v.digest);
    }
    put_string(out, s.sealed.blob);
    return out.take();
}

Result<Superblock> decode_superblock(ByteView bytes) {
    WireReader in(bytes);
    std::uint16_t version = in.be16();
    if (in.ok() && version != superblock_version && version != one_key_version) {
        return make_error(Errc::version, "superblock of version {} (this program knows {} and {})", version,
                          one_key_version, superblock_version);
    }
    Superblock s;
    std::uint8_t flags = in.u8();
    s.complete = (flags & flag_complete) != 0;
    s.image = Uuid{in.array<16>()};
    s.counter_handle = in.be32();
    s.tpm_identity = get_string(in);
    s.tpm_description = text_of(get_string(in));
    s.recovery = get_recovery_keys(in, version);
    std::uint16_t bank = in.be16();
    std::uint32_t mask = in.be32();
    s.sealed.selection = selection_of(bank, mask);
    std::uint16_t values = in.be16();
    for (unsigned i = 0; i < values && in.ok(); ++i) {
        hwtpm::PcrValue v{.bank = static_cast<hwtpm::HashAlg>(in.be16()), .index = in.u8(), .digest = {}};
        v.digest = to_bytes(in.bytes(in.u8()));
        s.sealed.values.push_back(std::move(v));
    }
    s.sealed.blob = get_string(in);
    if (!in.expect_end() || (flags & ~unsigned{flag_complete}) != 0 || mask >> pcr_count != 0 ||
        s.recovery.size() > recovery_key_limit) {
        return make_error(Errc::corrupt, "superblock of {} bytes is malformed", bytes.size());
    }
    return s;
}

} // namespace vtpmd::manager
