// Layout, all big-endian; a string is u32 n, bytes[n]:
//   u8 version (1; 2: with the old form at the end; 3: and its registration)
//   string approver | string approval list (approval_list.cpp)
//   u16 n, n seals: string blob | u16 bank | u8 k, k * index u8 | u8 m, m * { u16 bank, u8 index, string digest }
//   strings: attestation key's blob, key, public area, binding
//   strings: recovery key, challenge, box
//   version 2: string list, a frame of GROUP_UPDATE (proto/vtpmmgr/management.hpp; empty: none yet) | string box
//   version 3: dhkx_1[256] | dhkx_2[256] | blob[32] | check[32] | u8 sealed box (0, 1)
#include "manager/groups/group_detail.hpp"

#include "manager/vault/crypto.hpp"
#include "tpm/pcr.hpp"
#include "util/openssl_ptr.hpp"
#include "util/wire.hpp"

#include <openssl/x509.h>

namespace vtpmd::manager {

namespace {

constexpr std::uint8_t detail_version = 1;
constexpr std::uint8_t detail_version_old = 2; ///< a group of the old form
constexpr std::uint8_t detail_version_registered = 3;
constexpr std::size_t shared_secret_size = 32; ///< the x coordinate, P-256

void put_part(WireWriter& w, ByteView part) { w.be32(static_cast<std::uint32_t>(part.size())).bytes(part); }
Bytes get_part(WireReader& r) { return to_bytes(r.bytes(r.be32())); }

void put_seal(WireWriter& w, const hwtpm::SealedSecret& s) {
    put_part(w, s.blob);
    w.be16(static_cast<std::uint16_t>(s.selection.bank)).u8(static_cast<std::uint8_t>(s.selection.pcrs.size()));
    for (unsigned index : s.selection.pcrs) {
        w.u8(static_cast<std::uint8_t>(index));
    }
    w.u8(static_cast<std::uint8_t>(s.values.size()));
    for (const hwtpm::PcrValue& v : s.values) {
        w.be16(static_cast<std::uint16_t>(v.bank)).u8(static_cast<std::uint8_t>(v.index));
        put_part(w, v.digest);
    }
}

hwtpm::SealedSecret get_seal(WireReader& r) {
    hwtpm::SealedSecret s;
    s.blob = get_part(r);
    s.selection.bank = static_cast<hwtpm::HashAlg>(r.be16());
    for (unsigned n = r.u8(); n > 0 && r.ok(); --n) {
        s.selection.pcrs.push_back(r.u8());
    }
    for (unsigned n = r.u8(); n > 0 && r.ok(); --n) {
        hwtpm::PcrValue v{.bank = static_cast<hwtpm::HashAlg>(r.be16()), .index = r.u8(), .digest = {}};
        v.digest = get_part(r);
        s.values.push_back(std::move(v));
    }
    return s;
}

std::uint8_t version_of(const GroupDetail& d) {
    if (!d.old) {
        return detail_version;
    }
    return d.old->registration ? detail_version_registered : detail_version_old;
}

void put_registration(WireWriter& w, const OldForm& old) {
    const OldRegistration& r = *old.registration;
    w.bytes(r.approver_half).bytes(r.manager_half).bytes(r.blob).bytes(r.check).u8(old.sealed_box ? 1 : 0);
}

void get_registration(WireReader& r, OldForm& old) {
    OldRegistration& to = old.registration.emplace();
    to.approver_half = r.array<sizeof(to.approver_half)>();
    to.manager_half = r.array<sizeof(to.manager_half)>();
    to.blob = r.array<sizeof(to.blob)>();
    to.check = r.array<sizeof(to.check)>();
    const std::uint8_t sealed = r.u8();
    old.sealed_box = sealed == 1;
    if (sealed > 1) {
        r.fail();
    }
}

Bytes box_aad(const Uuid& group, ByteView challenge) {
    WireWriter w;
    return w.bytes(as_bytes("vtpmd group recovery")).bytes(group.bytes).bytes(challenge).take();
}

Result<hwtpm::Pkey> p256_key(ByteView spki) {
    auto parsed = hwtpm::parse_public_key(spki);
    if (!parsed) {
        return in_context(parsed.error(), "the recovery key");
    }
    if (parsed->type != hwtpm::KeyType::ecdsa_p256) {
        return make_error(Errc::usage, "the recovery key is an RSA key: expected one on P-256");
    }
    return hwtpm::to_pkey(*parsed);
}

Result<Bytes> spki_of(EVP_PKEY* key) {
    unsigned char* der = nullptr;
    const int size = i2d_PUBKEY(key, &der);
    if (size <= 0) {
        return make_error(Errc::unavailable, "OpenSSL could not write a public key");
    }
    Bytes out = to_bytes(view_of(der, static_cast<std::size_t>(size)));
    OPENSSL_free(der);
    return out;
}

Result<SecretBytes> share(EVP_PKEY* own, EVP_PKEY* peer) {
    const KeyContext ctx(EVP_PKEY_CTX_new(own, nullptr));
    SecretBytes shared(shared_secret_size);
    std::size_t size = shared.size();
    if (!ctx || EVP_PKEY_derive_init(ctx.get()) <= 0 || EVP_PKEY_derive_set_peer(ctx.get(), peer) <= 0 ||
        EVP_PKEY_derive(ctx.get(), uchar_ptr(shared.mut()), &size) <= 0 || size != shared.size()) {
        return make_error(Errc::unavailable, "OpenSSL could not do ECDH on P-256");
    }
    return shared;
}

} // namespace

Bytes encode(const GroupDetail& d) {
    WireWriter w;
    w.u8(version_of(d));
    put_part(w, d.protection.approver);
    put_part(w, encode(d.protection.approved));
    w.be16(static_cast<std::uint16_t>(d.protection.seals.size()));
    for (const hwtpm::SealedSecret& s : d.protection.seals) {
        put_seal(w, s);
    }
    for (const Bytes* part : {&d.attestation.blob, &d.attestation.key, &d.attestation.public_area,
                              &d.attestation.binding, &d.recovery.key, &d.recovery.challenge, &d.recovery.box}) {
        put_part(w, *part);
    }
    if (d.old) {
        put_part(w, d.old->update ? proto::management::encode(*d.old->update) : Bytes{});
        put_part(w, d.old->box);
        if (d.old->registration) {
            put_registration(w, *d.old);
        }
    }
    return w.take();
}

Result<GroupDetail> decode_group_detail(ByteView bytes) {
    WireReader r(bytes);
    const std::uint8_t version = r.u8();
    if (r.ok() && (version < detail_version || version > detail_version_registered)) {
        return make_error(Errc::version, "a group's record of version {}: this program knows {} to {}", version,
                          detail_version, detail_version_registered);
    }
    GroupDetail d;
    d.protection.approver = get_part(r);
    const Bytes list = get_part(r);
    for (unsigned n = r.be16(); n > 0 && r.ok(); --n) {
        d.protection.seals.push_back(get_seal(r));
    }
    for (Bytes* part : {&d.attestation.blob, &d.attestation.key, &d.attestation.public_area, &d.attestation.binding,
                        &d.recovery.key, &d.recovery.challenge, &d.recovery.box}) {
        *part = get_part(r);
    }
    Bytes update;
    if (version >= detail_version_old) {
        update = get_part(r);
        d.old.emplace().box = get_part(r);
    }
    if (version == detail_version_registered) {
        get_registration(r, *d.old);
    }
    if (!r.expect_end()) {
        return make_error(Errc::corrupt, "a group's record of {} bytes is malformed", bytes.size());
    }
    auto approved = decode_approval_list(list);
    if (!approved) {
        return in_context(approved.error(), "a group's record");
    }
    d.protection.approved = std::move(*approved);
    if (!update.empty()) {
        auto request = proto::management::parse(update);
        auto* signed_list = request ? std::get_if<proto::management::GroupUpdate>(&*request) : nullptr;
        if (signed_list == nullptr) {
            return make_error(Errc::corrupt, "a group's record: its list is malformed");
        }
        d.old->update = std::move(*signed_list);
    }
    return d;
}

Result<GroupRecovery> keep_for_recovery(const Uuid& group, ByteView recovery_key, const SecretBytes& group_key) {
    auto peer = p256_key(recovery_key);
    if (!peer) {
        return peer.error();
    }
    const hwtpm::Pkey own(EVP_PKEY_Q_keygen(nullptr, nullptr, "EC", "P-256"));
    if (!own) {
        return make_error(Errc::unavailable, "OpenSSL could not make a key");
    }
    auto challenge = spki_of(own.get());
    auto shared = share(own.get(), peer->get());
    if (!challenge || !shared) {
        return challenge ? shared.error() : challenge.error();
    }
    const Bytes aad = box_aad(group, *challenge);
    GroupRecovery out{.key = to_bytes(recovery_key), .challenge = std::move(*challenge), .box = {}};
    out.box = close_box(derive_key(*shared, "vtpmd group recovery", aad), aad, group_key.view());
    return out;
}

Result<SecretBytes> recover_key(const Uuid& group, const GroupRecovery& recovery, const SecretBytes& shared) {
    if (recovery.key.empty()) {
        return make_error(Errc::usage, "group {} was made without a recovery key", group);
    }
    if (shared.size() != shared_secret_size) {
        return make_error(Errc::usage, "a shared secret of {} bytes: expected {} (openssl pkeyutl -derive)",
                          shared.size(), shared_secret_size);
    }
    const Bytes aad = box_aad(group, recovery.challenge);
    auto key = open_box(derive_key(shared, "vtpmd group recovery", aad), aad, recovery.box);
    if (!key) {
        return make_error(Errc::permission,
                          "group {}: this is not the secret shared between its recovery key and its present challenge",
                          group);
    }
    return key;
}

} // namespace vtpmd::manager
