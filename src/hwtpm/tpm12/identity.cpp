// Identities of a TPM 1.2 (attestation keys), quotes by them, and their activation (TPM Main part 3 sections 15 and
// 16).
#include "hwtpm/tpm12/attempt.hpp"
#include "tpm/codes.hpp"
#include "tpm/pcr.hpp"
#include "tpm/public_key.hpp"
#include "util/wire.hpp"

#include <algorithm>

namespace vtpmd::hwtpm {

namespace {

constexpr std::size_t digest_size_12 = 20;

/// The identity's own authorisation value: what protects it is that only this TPM can load it.
const SecretBytes& no_key_auth() {
    static const SecretBytes zeros(digest_size_12);
    return zeros;
}

/// TPM_PUBKEY of a TPM_KEY (part 2 sections 10.2, 10.5): version[4], usage u16, flags u32, authDataUsage u8,
/// TPM_KEY_PARMS, PCRInfo (u32, n), TPM_STORE_PUBKEY, private part (u32, n). Advances past the key.
Result<Bytes> read_key(WireReader& r, ByteView all) {
    r.skip(4 + 2 + 4 + 1);
    const std::size_t params_at = r.position();
    r.skip(4 + 2 + 2);
    r.skip(r.be32());
    const std::size_t params_size = r.position() - params_at;
    r.skip(r.be32());
    const ByteView modulus = r.bytes(r.be32());
    r.skip(r.be32());
    if (!r.ok()) {
        return make_error(Errc::protocol, "a key of the TPM: malformed");
    }
    WireWriter w;
    w.bytes(all.subspan(params_at, params_size)).be32(static_cast<std::uint32_t>(modulus.size())).bytes(modulus);
    return w.take();
}

} // namespace

// --- the endorsement key ---

/// TPM_PUBKEY of the storage root key or the endorsement key, which only the owner may read.
Result<Bytes> Tpm12::internal_public(std::uint32_t handle) {
    auto session = client_.oiap(config_.owner_auth);
    if (!session) {
        return session.error();
    }
    WireWriter w;
    w.be32(handle);
    auto out = client_.run(
        {.ordinal = v12::ord_owner_read_internal_pub, .parameters = w.view(), .name = "TPM_OwnerReadInternalPub"},
        std::span(&*session, 1));
    if (!out && out.error().code == Errc::permission) {
        return make_error(Errc::permission, "{}: the owner's authorisation is refused: give the right --owner-auth",
                          device_.description());
    }
    return out;
}

Result<Endorsement> Tpm12::endorsement() {
    return attempt(Repeat::always, [&]() -> Result<Endorsement> {
        auto pubkey = internal_public(v12::kh_ek);
        auto spki = pubkey ? spki_of_pubkey(*pubkey) : pubkey;
        if (!spki) {
            return spki.error();
        }
        return Endorsement{.key = std::move(*spki), .public_area = std::move(*pubkey), .certificate = {}};
    });
}

// --- identities ---

Result<AttestationKey> Tpm12::attestation_key_create(const AttestationKeyOptions& options) {
    if (options.type != KeyType::rsa_2048) {
        return make_error(Errc::unsupported, "a TPM 1.2 has RSA keys only");
    }
    if (options.chosen_id.size() != digest_size_12) {
        return make_error(Errc::usage, "a chosen identity of {} bytes: it is a SHA-1 digest", options.chosen_id.size());
    }
    return attempt(Repeat::always, [&] { return attestation_key_create_once(options); });
}

Result<AttestationKey> Tpm12::attestation_key_create_once(const AttestationKeyOptions& options) {
    std::array<Session12, 2> sessions;
    auto srk = client_.oiap(config_.srk_auth);
    if (!srk) {
        return srk.error();
    }
    auto owner = client_.osap(v12::et_owner, v12::kh_owner, config_.owner_auth);
    if (!owner) {
        return owner.error();
    }
    auto auth = Tpm12Client::encrypt_auth(*owner, no_key_auth().view());
    if (!auth) {
        return auth.error();
    }
    sessions[0] = std::move(*srk);
    sessions[1] = std::move(*owner);
    WireWriter w;
    w.bytes(*auth).bytes(options.chosen_id);
    // TPM_KEY: version 1.1, usage, flags, authDataUsage always; RSA-2048 that signs with SHA-1; no PCRs, no parts yet.
    w.be32(0x01010000).be16(v12::key_identity).be32(0).u8(1);
    w.be32(v12::alg_rsa).be16(v12::es_none).be16(v12::ss_rsassa_sha1).be32(12).be32(2048).be32(2).be32(0);
    w.be32(0).be32(0).be32(0);
    auto out =
        client_.run({.ordinal = tpm::ord::make_identity, .parameters = w.view(), .name = "TPM_MakeIdentity"}, sessions);
    if (!out) {
        return out.error();
    }
    WireReader r(*out);
    auto pubkey = read_key(r, *out);
    if (!pubkey) {
        return pubkey.error();
    }
    const std::size_t key_size = r.position();
    const ByteView binding = r.bytes(r.be32());
    if (!r.expect_end()) {
        return make_error(Errc::protocol, "TPM_MakeIdentity: malformed answer");
    }
    auto spki = spki_of_pubkey(*pubkey);
    if (!spki) {
        return spki.error();
    }
    return AttestationKey{.blob = to_bytes(ByteView(*out).first(key_size)),
                          .key = std::move(*spki),
                          .public_area = std::move(*pubkey),
                          .binding = to_bytes(binding)};
}

/// Loads the identity, and takes it out again when it goes.
class Tpm12::LoadedKey {
  public:
    LoadedKey(Tpm12Client& client, std::uint32_t handle)
        : client_(client)
        , handle_(handle) {}
    LoadedKey(const LoadedKey&) = delete;
    LoadedKey& operator=(const LoadedKey&) = delete;
    ~LoadedKey() {
        WireWriter w;
        w.be32(handle_).be32(v12::rt_key);
        (void)client_.run({.ordinal = tpm::ord::flush_specific, .parameters = w.view(), .name = "TPM_FlushSpecific"});
    }
    [[nodiscard]] std::uint32_t handle() const { return handle_; }

  private:
    Tpm12Client& client_;
    std::uint32_t handle_;
};

Result<std::unique_ptr<Tpm12::LoadedKey>> Tpm12::load(const AttestationKey& key) {
    auto session = client_.oiap(config_.srk_auth);
    if (!session) {
        return session.error();
    }
    WireWriter parent;
    parent.be32(v12::kh_srk);
    auto out = client_.run({.ordinal = tpm::ord::load_key2,
                            .handles = parent.view(),
                            .parameters = key.blob,
                            .response_handles = 4,
                            .name = "TPM_LoadKey2"},
                           std::span(&*session, 1));
    if (!out) {
        switch (out.error().code == Errc::tpm ? out.error().detail : 0) {
        case v12::rc_decrypt_error:
        case v12::rc_bad_parameter:
        case v12::rc_bad_param_size:
        case v12::rc_invalid_key_usage:
        case v12::rc_bad_key_property:
            return make_error(Errc::mismatch,
                              "{}: this key was not made by this TPM, or the TPM was cleared since, or it is damaged",
                              device_.description());
        default:
            return out.error();
        }
    }
    WireReader r(*out);
    const std::uint32_t handle = r.be32();
    if (!r.expect_end()) {
        return make_error(Errc::protocol, "TPM_LoadKey2: malformed answer");
    }
    return std::make_unique<LoadedKey>(client_, handle);
}

// --- quotes ---

Result<Quote> Tpm12::quote(const AttestationKey& key, const QuoteRequest& request) {
    if (request.nonce.size() != digest_size_12) {
        return make_error(Errc::usage, "a nonce of {} bytes: a TPM 1.2 takes 20", request.nonce.size());
    }
    for (const PcrSelection& s : request.selections) {
        if (s.bank != HashAlg::sha1) {
            return make_error(Errc::pcr_mismatch, "{}: a TPM 1.2 has SHA-1 PCRs only", to_string(s));
        }
    }
    if (request.selections.size() != 1) {
        return make_error(Errc::usage, "{} selections: a TPM 1.2 has one bank", request.selections.size());
    }
    for (unsigned pcr : request.selections.front().pcrs) {
        if (pcr / 8 >= request.selection_size) {
            return make_error(Errc::usage, "PCR {} does not fit into a selection of {} bytes", pcr,
                              request.selection_size);
        }
    }
    return attempt(Repeat::always, [&] { return quote_once(key, request); });
}

Result<Quote> Tpm12::quote_once(const AttestationKey& key, const QuoteRequest& request) {
    auto loaded = load(key);
    if (!loaded) {
        return loaded.error();
    }
    auto session = client_.oiap(no_key_auth());
    if (!session) {
        return session.error();
    }
    const PcrSelection& selection = request.selections.front();
    WireWriter handle;
    handle.be32((*loaded)->handle());
    WireWriter w;
    w.bytes(request.nonce);
    put_pcr_selection(w, selection, request.selection_size);
    auto out =
        client_.run({.ordinal = tpm::ord::quote, .handles = handle.view(), .parameters = w.view(), .name = "TPM_Quote"},
                    std::span(&*session, 1));
    if (!out) {
        return out.error();
    }
    WireReader r(*out); // TPM_PCR_COMPOSITE: select, u32, values; u32, signature
    r.skip(r.be16());
    const ByteView values = r.bytes(r.be32());
    const std::size_t composite_size = r.position();
    const ByteView signature = r.bytes(r.be32());
    if (!r.expect_end() || values.size() != selection.pcrs.size() * digest_size_12) {
        return make_error(Errc::protocol, "TPM_Quote: malformed answer");
    }
    auto composite = sha1({ByteView(*out).first(composite_size)});
    if (!composite) {
        return composite.error();
    }
    WireWriter info; // TPM_QUOTE_INFO, part 2 section 11.3
    info.be32(0x01010000).bytes(as_bytes("QUOT")).bytes(*composite).bytes(request.nonce);
    Quote quote{.attested = info.take(), .signature = to_bytes(signature), .values = {}};
    for (std::size_t i = 0; i < selection.pcrs.size(); ++i) {
        quote.values.push_back(
            {HashAlg::sha1, selection.pcrs[i], to_bytes(values.subspan(i * digest_size_12, digest_size_12))});
    }
    return quote;
}

// --- activation ---

Result<SecretBytes> Tpm12::activate_credential(const AttestationKey& key, ByteView credential) {
    return attempt(Repeat::always, [&] { return activate_once(key, credential); });
}

Result<SecretBytes> Tpm12::activate_once(const AttestationKey& key, ByteView credential) {
    auto loaded = load(key);
    if (!loaded) {
        return loaded.error();
    }
    std::array<Session12, 2> sessions;
    for (Session12& s : sessions) {
        auto made = client_.oiap(&s == sessions.data() ? no_key_auth() : config_.owner_auth);
        if (!made) {
            return made.error();
        }
        s = std::move(*made);
    }
    WireWriter handle;
    handle.be32((*loaded)->handle());
    WireWriter w;
    w.be32(static_cast<std::uint32_t>(credential.size())).bytes(credential);
    auto out = client_.run({.ordinal = tpm::ord::activate_identity,
                            .handles = handle.view(),
                            .parameters = w.view(),
                            .name = "TPM_ActivateIdentity"},
                           sessions);
    if (!out) {
        switch (out.error().code == Errc::tpm ? out.error().detail : 0) {
        case v12::rc_decrypt_error:
        case v12::rc_bad_parameter:
        case v12::rc_bad_param_size:
            return make_error(Errc::mismatch, "{}: the credential was made for another identity or another TPM",
                              device_.description());
        default:
            return out.error();
        }
    }
    WireReader r(*out); // TPM_SYMMETRIC_KEY, part 2 section 5.10: algorithm u32, scheme u16, u16, key
    r.skip(4 + 2);
    SecretBytes secret(r.bytes(r.be16()));
    const bool whole = r.expect_end();
    cleanse(*out);
    if (!whole) {
        return make_error(Errc::protocol, "TPM_ActivateIdentity: malformed answer");
    }
    return secret;
}

// --- what a TPM 1.2 does not have ---

Result<SealedSecret> Tpm12::seal_for(const SecretBytes& /*secret*/, const Approver& /*approver*/) {
    return make_error(Errc::unsupported, "a TPM 1.2 has no PolicyAuthorize: seal for each approved configuration");
}

Result<SecretBytes> Tpm12::unseal_for(const SealedSecret& /*sealed*/, const Approver& /*approver*/,
                                      const Approval& /*approval*/) {
    return make_error(Errc::unsupported, "a TPM 1.2 has no PolicyAuthorize: seal for each approved configuration");
}

} // namespace vtpmd::hwtpm
