#include "hwtpm/tpm12/tpm12.hpp"

#include "hwtpm/tcti.hpp"
#include "hwtpm/tpm12/attempt.hpp"
#include "tpm/commands.hpp"
#include "util/text.hpp"
#include "util/wire.hpp"

#include <openssl/evp.h>

namespace vtpmd::hwtpm {

namespace {

/// TPM_KEY_PARMS of RSA-2048, exponent 65537, for storage.
void put_rsa_2048(WireWriter& w) {
    w.be32(v12::alg_rsa).be16(v12::es_rsaes_oaep).be16(v12::ss_none).be32(12).be32(2048).be32(2).be32(0);
}

/// The modulus of a TPM_PUBKEY, and where it ends.
Result<Bytes> read_modulus(WireReader& r, std::string_view what) {
    r.skip(4 + 2 + 2);
    r.skip(r.be32()); // TPM_RSA_KEY_PARMS
    const ByteView modulus = r.bytes(r.be32());
    if (!r.ok() || modulus.empty()) {
        return make_error(Errc::protocol, "{}: not a public key", what);
    }
    return to_bytes(modulus);
}

} // namespace

void Tpm12::begin_batch() {
    claimed_ = device_.claim();
    if (!claimed_ && claimed_.error().code == Errc::closed) {
        log_.info("{}: {}; starting it anew", device_.description(), claimed_.error().message);
        started_ = false;
        claimed_ = Result<void>();
    }
}

Result<void> Tpm12::ready() {
    if (!claimed_) {
        return claimed_;
    }
    if (started_) {
        return {};
    }
    if (auto r = device_.restart(); !r) {
        return r;
    }
    if (claimed_ = device_.claim(); !claimed_) {
        return claimed_;
    }
    return start();
}

Result<void> Tpm12::start() {
    if (!claimed_) {
        return claimed_;
    }
    started_ = false;
    Result<void> r = startup();
    if (r && device_.exclusive()) {
        r = flush_left_over();
    }
    if (r) {
        r = read_part();
    }
    if (r) {
        r = own();
    }
    if (r) {
        r = note_identity();
    }
    started_ = r.has_value();
    return r;
}

Result<void> Tpm12::startup() {
    const Bytes command = tpm::startup_command(TpmVersion::tpm12, tpm::StartupMode::clear);
    auto answer = device_.transmit(command, time_limit(command));
    if (!answer) {
        return answer.error();
    }
    auto r = tpm::check_response(*answer, "TPM_Startup");
    if (!r && r.error().detail != v12::rc_invalid_postinit) { // the firmware has done it
        return r;
    }
    // A part that has not tested itself refuses what comes next; asked to go on with its tests it answers at once.
    (void)client_.run({.ordinal = tpm::ord::continue_self_test, .name = "TPM_ContinueSelfTest"});
    return {};
}

Result<Bytes> Tpm12::capability(std::uint32_t area, std::uint32_t sub, std::string_view name) {
    WireWriter w;
    w.be32(area);
    if (area == v12::cap_version_val) {
        w.be32(0);
    } else {
        w.be32(4).be32(sub);
    }
    auto out = client_.run({.ordinal = tpm::ord::get_capability, .parameters = w.view(), .name = name});
    if (!out) {
        return out.error();
    }
    WireReader r(*out);
    const ByteView value = r.bytes(r.be32());
    if (!r.expect_end()) {
        return make_error(Errc::protocol, "{}: malformed answer", name);
    }
    return to_bytes(value);
}

/// Authorisation sessions of a process that was killed: a part has room for three.
Result<void> Tpm12::flush_left_over() {
    auto list = capability(v12::cap_handle, v12::rt_auth, "listing sessions");
    if (!list) {
        return list.error();
    }
    WireReader r(*list);
    unsigned flushed = 0;
    for (unsigned left = r.be16(); left > 0 && r.ok(); --left) {
        WireWriter w;
        const std::uint32_t handle = r.be32();
        w.be32(handle).be32(v12::rt_auth);
        flushed +=
            client_.run({.ordinal = tpm::ord::flush_specific, .parameters = w.view(), .name = "TPM_FlushSpecific"}) ? 1
                                                                                                                    : 0;
    }
    if (flushed != 0) {
        log_.info("{}: flushed {} sessions that an earlier user left behind", device_.description(), flushed);
    }
    return {};
}

Result<void> Tpm12::read_part() {
    // TPM_CAP_VERSION_INFO: tag u16, version (major, minor, revMajor, revMinor), specLevel u16, errataRev u8,
    // vendor[4], ...
    auto info = capability(v12::cap_version_val, 0, "asking for the version");
    if (!info) {
        return info.error();
    }
    WireReader r(*info);
    r.skip(4);
    const unsigned major = r.u8();
    const unsigned minor = r.u8();
    r.skip(3);
    const ByteView vendor = r.bytes(4);
    part_ = fmt::format("{} firmware {}.{}", printable({reinterpret_cast<const char*>(vendor.data()), vendor.size()}),
                        major, minor);
    return r.ok() ? Result<void>()
                  : Result<void>(make_error(Errc::protocol, "asking for the version: malformed answer"));
}

Result<void> Tpm12::own() {
    auto owner = capability(v12::cap_property, v12::prop_owner, "asking for the owner");
    if (!owner) {
        return owner.error();
    }
    if (owner->size() == 1 && owner->front() != std::byte{0}) {
        return {};
    }
    auto taken = take_ownership();
    if (!taken && (taken.error().detail == v12::rc_disabled || taken.error().detail == v12::rc_deactivated)) {
        return make_error(Errc::unavailable, "{}: the TPM is {}: enable and activate it in the firmware's setup",
                          device_.description(), taken.error().detail == v12::rc_disabled ? "disabled" : "deactivated");
    }
    if (taken) {
        log_.info("{}: ownership taken", device_.description());
    }
    return taken;
}

Result<Bytes> Tpm12::endorsement_key() {
    auto nonce = random_nonce();
    if (!nonce) {
        return nonce.error();
    }
    auto out = client_.run({.ordinal = tpm::ord::read_pubek, .parameters = *nonce, .name = "TPM_ReadPubek"});
    if (!out && out.error().detail == v12::rc_no_endorsement) {
        WireWriter w;
        w.bytes(*nonce);
        put_rsa_2048(w);
        out = client_.run({.ordinal = tpm::ord::create_endorsement_key_pair,
                           .parameters = w.view(),
                           .name = "TPM_CreateEndorsementKeyPair"});
    }
    if (!out) {
        return out.error();
    }
    WireReader r(*out);
    return read_modulus(r, "the endorsement key");
}

Result<void> Tpm12::take_ownership() {
    auto modulus = endorsement_key();
    if (!modulus) {
        return modulus.error();
    }
    auto owner = encrypt_for_endorsement_key(*modulus, config_.owner_auth.view());
    auto srk = encrypt_for_endorsement_key(*modulus, config_.srk_auth.view());
    if (!owner || !srk) {
        return owner ? srk.error() : owner.error();
    }
    WireWriter w;
    w.be16(v12::pid_owner).be32(static_cast<std::uint32_t>(owner->size())).bytes(*owner);
    w.be32(static_cast<std::uint32_t>(srk->size())).bytes(*srk);
    // TPM_KEY: version 1.1, usage, flags, authDataUsage always, parameters, no PCRs, no public or private part yet.
    w.be32(0x01010000).be16(v12::key_storage).be32(0).u8(1);
    put_rsa_2048(w);
    w.be32(0).be32(0).be32(0);
    auto session = client_.oiap(config_.owner_auth);
    if (!session) {
        return session.error();
    }
    auto done = client_.run({.ordinal = tpm::ord::take_ownership, .parameters = w.view(), .name = "TPM_TakeOwnership"},
                            std::span(&*session, 1));
    return done ? Result<void>() : Result<void>(done.error());
}

/// SHA-256 of the SRK's modulus, which only the owner may read.
Result<void> Tpm12::note_identity() {
    auto pubkey = internal_public(v12::kh_srk);
    if (!pubkey) {
        return pubkey.error();
    }
    WireReader r(*pubkey);
    auto modulus = read_modulus(r, "the storage root key");
    if (!modulus) {
        return modulus.error();
    }
    Bytes digest(32);
    if (EVP_Digest(modulus->data(), modulus->size(), uchar_ptr(MutByteView(digest)), nullptr, EVP_sha256(), nullptr) !=
        1) {
        return make_error(Errc::unsupported, "OpenSSL refuses SHA-256");
    }
    if (!identity_.empty() && identity_ != digest) {
        return make_error(
            Errc::mismatch,
            "{}: this is not the TPM that was here before (storage root key {}, now {}): cleared or exchanged",
            device_.description(), to_hex(identity_), to_hex(digest));
    }
    identity_ = std::move(digest);
    return {};
}

Result<Bytes> Tpm12::identity() {
    return attempt(Repeat::always, [&]() -> Result<Bytes> { return identity_; });
}

Result<Bytes> Tpm12::random(std::size_t count) {
    return attempt(Repeat::always, [&]() -> Result<Bytes> {
        Bytes out;
        while (out.size() < count) {
            const Bytes command =
                tpm::get_random_command(TpmVersion::tpm12, static_cast<std::uint16_t>(count - out.size()));
            auto answer = device_.transmit(command, time_limit(command));
            if (!answer) {
                return answer.error();
            }
            auto got = tpm::parse_get_random(TpmVersion::tpm12, *answer);
            if (!got) {
                return got.error();
            }
            if (got->empty() || got->size() > count - out.size()) {
                return make_error(Errc::protocol, "TPM_GetRandom: {} bytes where 1 to {} were asked for", got->size(),
                                  count - out.size());
            }
            out.insert(out.end(), got->begin(), got->end());
        }
        return out;
    });
}

} // namespace vtpmd::hwtpm
