// Endorsement key, attestation keys, quotes and credential activation of a TPM 2.0.
#include "hwtpm/tpm20/objects.hpp"
#include "hwtpm/tpm20/tpm20.hpp"
#include "tpm/pcr.hpp"
#include "util/text.hpp"
#include "util/wire.hpp"

#include <algorithm>
#include <tss2/tss2_mu.h>

namespace vtpmd::hwtpm {

namespace {

// TCG EK Credential Profile for TPM 2.0: low range, RSA-2048 (section B.3.3), and its places in NV (section 2.2.1.4).
constexpr std::uint32_t endorsement_handle = 0x81010001;
constexpr std::uint32_t certificate_index = 0x01C00002;
constexpr std::string_view policy_a = "837197674484b3f81a90cc8d46a5d724fd52d76e06520b64f2a1da1b331469aa";
constexpr std::size_t nonce_limit = 32; // TPM2B_DATA holds a digest of every TPM, of SHA-256 at least
constexpr int consistent_quotes = 5;
constexpr std::size_t nv_chunk = 512;

TPM2B_PUBLIC endorsement_template() {
    TPM2B_PUBLIC out{};
    TPMT_PUBLIC& p = out.publicArea;
    p.type = TPM2_ALG_RSA;
    p.nameAlg = TPM2_ALG_SHA256;
    p.objectAttributes = TPMA_OBJECT_FIXEDTPM | TPMA_OBJECT_FIXEDPARENT | TPMA_OBJECT_SENSITIVEDATAORIGIN |
                         TPMA_OBJECT_ADMINWITHPOLICY | TPMA_OBJECT_RESTRICTED | TPMA_OBJECT_DECRYPT;
    const Bytes policy = from_hex(policy_a).value();
    p.authPolicy.size = static_cast<UINT16>(policy.size());
    std::copy(policy.begin(), policy.end(), reinterpret_cast<std::byte*>(p.authPolicy.buffer));
    TPMS_RSA_PARMS& rsa = p.parameters.rsaDetail;
    rsa.symmetric = {.algorithm = TPM2_ALG_AES, .keyBits = {.aes = 128}, .mode = {.aes = TPM2_ALG_CFB}};
    rsa.scheme.scheme = TPM2_ALG_NULL;
    rsa.keyBits = 2048;
    p.unique.rsa.size = 256;
    return out;
}

bool is_endorsement_key(const TPMT_PUBLIC& p) {
    const TPM2B_PUBLIC wanted = endorsement_template();
    const TPMT_PUBLIC& w = wanted.publicArea;
    return p.type == w.type && p.nameAlg == w.nameAlg && p.objectAttributes == w.objectAttributes &&
           p.authPolicy.size == w.authPolicy.size &&
           std::equal(w.authPolicy.buffer, w.authPolicy.buffer + w.authPolicy.size, p.authPolicy.buffer);
}

TPM2B_PUBLIC attestation_template(KeyType type) {
    TPM2B_PUBLIC out{};
    TPMT_PUBLIC& p = out.publicArea;
    p.nameAlg = TPM2_ALG_SHA256;
    p.objectAttributes = TPMA_OBJECT_FIXEDTPM | TPMA_OBJECT_FIXEDPARENT | TPMA_OBJECT_SENSITIVEDATAORIGIN |
                         TPMA_OBJECT_USERWITHAUTH | TPMA_OBJECT_NODA | TPMA_OBJECT_RESTRICTED |
                         TPMA_OBJECT_SIGN_ENCRYPT;
    if (type == KeyType::rsa_2048) {
        p.type = TPM2_ALG_RSA;
        TPMS_RSA_PARMS& rsa = p.parameters.rsaDetail;
        rsa.symmetric.algorithm = TPM2_ALG_NULL;
        rsa.scheme.scheme = TPM2_ALG_RSASSA;
        rsa.scheme.details.rsassa.hashAlg = TPM2_ALG_SHA256;
        rsa.keyBits = 2048;
    } else {
        p.type = TPM2_ALG_ECC;
        TPMS_ECC_PARMS& ecc = p.parameters.eccDetail;
        ecc.symmetric.algorithm = TPM2_ALG_NULL;
        ecc.scheme.scheme = TPM2_ALG_ECDSA;
        ecc.scheme.details.ecdsa.hashAlg = TPM2_ALG_SHA256;
        ecc.curveID = TPM2_ECC_NIST_P256;
        ecc.kdf.scheme = TPM2_ALG_NULL;
    }
    return out;
}

/// A certificate of DER's definite long form, without what pads the NV index behind it.
Bytes without_padding(Bytes der) {
    WireReader r(der);
    constexpr std::uint16_t sequence_long_form = 0x3082;
    const bool known = r.be16() == sequence_long_form;
    const std::size_t size = 4U + r.be16();
    if (!known || !r.ok() || size > der.size()) {
        return {}; // none that anybody could use
    }
    der.resize(size);
    return der;
}

/// The values in the order of the selections, as TPM2_Quote hashes them; empty if one is missing.
std::optional<std::vector<PcrValue>> in_order(const std::vector<PcrSelection>& selections,
                                              const std::vector<PcrValue>& values) {
    std::vector<PcrValue> out;
    for (const PcrSelection& s : selections) {
        for (unsigned index : s.pcrs) {
            const auto it = std::find_if(values.begin(), values.end(),
                                         [&](const PcrValue& v) { return v.bank == s.bank && v.index == index; });
            if (it == values.end()) {
                return std::nullopt;
            }
            out.push_back(*it);
        }
    }
    return out;
}

} // namespace

// --- endorsement ---

Result<bool> Tpm20::adopt_endorsement_key(EndorsementKey& out) {
    ESYS_TR key = ESYS_TR_NONE;
    TSS2_RC rc =
        Esys_TR_FromTPMPublic(esys_->get(), endorsement_handle, ESYS_TR_NONE, ESYS_TR_NONE, ESYS_TR_NONE, &key);
    if (base_code(rc) == TPM2_RC_HANDLE || base_code(rc) == TPM2_RC_VALUE) {
        return false;
    }
    if (auto r = esys_->check(rc, "the endorsement key"); !r) {
        return r.error();
    }
    TPM2B_PUBLIC* raw = nullptr;
    rc = Esys_ReadPublic(esys_->get(), key, ESYS_TR_NONE, ESYS_TR_NONE, ESYS_TR_NONE, &raw, nullptr, nullptr);
    EsysPtr<TPM2B_PUBLIC> area(raw);
    if (auto r = esys_->check(rc, "reading the endorsement key"); !r) {
        return r.error();
    }
    if (!is_endorsement_key(area->publicArea)) {
        (void)Esys_TR_Close(esys_->get(), &key);
        return false;
    }
    out.handle = key;
    out.area = *area;
    return true;
}

Result<Tpm20::EndorsementKey> Tpm20::endorsement_key() {
    EndorsementKey out;
    auto adopted = adopt_endorsement_key(out);
    if (!adopted) {
        return adopted.error();
    }
    if (*adopted) {
        return out;
    }
    auto session = bus_session(0);
    if (!session) {
        return session.error();
    }
    const Cleansed<TPM2B_SENSITIVE_CREATE> sensitive;
    const TPM2B_PUBLIC wanted = endorsement_template();
    const TPM2B_DATA no_data{};
    const TPML_PCR_SELECTION no_pcrs{};
    TPM2B_PUBLIC* raw = nullptr;
    TSS2_RC rc =
        Esys_CreatePrimary(esys_->get(), ESYS_TR_RH_ENDORSEMENT, *session, ESYS_TR_NONE, ESYS_TR_NONE, &sensitive.value,
                           &wanted, &no_data, &no_pcrs, &out.handle, &raw, nullptr, nullptr, nullptr);
    EsysPtr<TPM2B_PUBLIC> area(raw);
    auto made = esys_->check(rc, "making the endorsement key");
    if (!made && made.error().code == Errc::permission) {
        return in_context(made.error(), "the endorsement hierarchy has an authorisation value: it must be empty");
    }
    if (!made) {
        return made.error();
    }
    out.transient = Transient(*esys_, out.handle);
    out.area = *area;
    return out;
}

/// Empty if there is none: the index is not there, or not for everybody to read.
Result<Bytes> Tpm20::endorsement_certificate() {
    ESYS_TR index = ESYS_TR_NONE;
    TSS2_RC rc =
        Esys_TR_FromTPMPublic(esys_->get(), certificate_index, ESYS_TR_NONE, ESYS_TR_NONE, ESYS_TR_NONE, &index);
    if (base_code(rc) == TPM2_RC_HANDLE || base_code(rc) == TPM2_RC_VALUE) {
        return Bytes{};
    }
    TPM2B_NV_PUBLIC* raw_area = nullptr;
    if (rc == TSS2_RC_SUCCESS) {
        rc = Esys_NV_ReadPublic(esys_->get(), index, ESYS_TR_NONE, ESYS_TR_NONE, ESYS_TR_NONE, &raw_area, nullptr);
    }
    EsysPtr<TPM2B_NV_PUBLIC> area(raw_area);
    if (auto r = esys_->check(rc, "the endorsement certificate"); !r) {
        return r.error();
    }
    Bytes out;
    Result<void> read;
    while (read && out.size() < area->nvPublic.dataSize) {
        auto session = bus_session(0);
        if (!session) {
            return session.error();
        }
        TPM2B_MAX_NV_BUFFER* raw = nullptr;
        const auto want = static_cast<UINT16>(std::min<std::size_t>(area->nvPublic.dataSize - out.size(), nv_chunk));
        const bool by_itself = (area->nvPublic.attributes & TPMA_NV_AUTHREAD) != 0;
        rc = Esys_NV_Read(esys_->get(), by_itself ? index : ESYS_TR_RH_OWNER, index, *session, ESYS_TR_NONE,
                          ESYS_TR_NONE, want, static_cast<UINT16>(out.size()), &raw);
        EsysPtr<TPM2B_MAX_NV_BUFFER> data(raw);
        read = esys_->check(rc, "the endorsement certificate");
        if (read && data->size != want) {
            read = make_error(Errc::protocol, "the endorsement certificate: {} bytes of {}", data->size, want);
        }
        if (read) {
            const ByteView got = view_of(data->buffer, data->size);
            out.insert(out.end(), got.begin(), got.end());
        }
    }
    (void)Esys_TR_Close(esys_->get(), &index);
    if (!read) {
        return read.error().code == Errc::permission ? Result<Bytes>(Bytes{}) : Result<Bytes>(read.error());
    }
    return without_padding(std::move(out));
}

Result<Endorsement> Tpm20::endorsement() {
    return attempt(Repeat::always, [&]() -> Result<Endorsement> {
        auto key = endorsement_key();
        if (!key) {
            return key.error();
        }
        auto spki = spki_of(key->area.publicArea);
        auto area = marshal_public(key->area);
        if (!spki || !area) {
            return spki ? area.error() : spki.error();
        }
        auto certificate = endorsement_certificate();
        if (!certificate) {
            return certificate.error();
        }
        return Endorsement{
            .key = std::move(*spki), .public_area = std::move(*area), .certificate = std::move(*certificate)};
    });
}

// --- attestation keys ---

Result<AttestationKey> Tpm20::attestation_key_create(const AttestationKeyOptions& options) {
    return attempt(Repeat::always, [&] { return attestation_key_create_once(options); });
}

Result<AttestationKey> Tpm20::attestation_key_create_once(const AttestationKeyOptions& options) {
    auto session = bus_session(TPMA_SESSION_DECRYPT);
    if (!session) {
        return session.error();
    }
    const Cleansed<TPM2B_SENSITIVE_CREATE> sensitive; // no authorisation value: whoever may use the storage key
    const TPM2B_PUBLIC wanted = attestation_template(options.type);
    const TPM2B_DATA no_data{};
    const TPML_PCR_SELECTION no_pcrs{};
    TPM2B_PRIVATE* raw_private = nullptr;
    TPM2B_PUBLIC* raw_public = nullptr;
    TSS2_RC rc = Esys_Create(esys_->get(), storage_key_, *session, ESYS_TR_NONE, ESYS_TR_NONE, &sensitive.value,
                             &wanted, &no_data, &no_pcrs, &raw_private, &raw_public, nullptr, nullptr, nullptr);
    EsysPtr<TPM2B_PRIVATE> private_area(raw_private);
    EsysPtr<TPM2B_PUBLIC> public_area(raw_public);
    if (auto r = esys_->check(rc, "making an attestation key"); !r) {
        return r.error();
    }
    auto blob = marshal_object(*public_area, *private_area);
    auto area = marshal_public(*public_area);
    auto spki = spki_of(public_area->publicArea);
    if (!blob || !area || !spki) {
        return !blob ? blob.error() : !area ? area.error() : spki.error();
    }
    return AttestationKey{
        .blob = std::move(*blob), .key = std::move(*spki), .public_area = std::move(*area), .binding = {}};
}

Result<Quote> Tpm20::quote(const AttestationKey& key, const QuoteRequest& request) {
    if (request.nonce.size() > nonce_limit) {
        return make_error(Errc::too_large, "a nonce of {} bytes: at most {}", request.nonce.size(), nonce_limit);
    }
    for (const PcrSelection& s : request.selections) {
        if (std::find(banks_.begin(), banks_.end(), s.bank) == banks_.end()) {
            return make_error(Errc::pcr_mismatch, "{}: this TPM has no {} bank of PCRs", to_string(s),
                              bank_name(s.bank));
        }
    }
    return attempt(Repeat::always, [&] { return quote_once(key, request); });
}

Result<Quote> Tpm20::quote_once(const AttestationKey& key, const QuoteRequest& request) {
    auto object = load_object(key.blob, "made");
    auto selection = to_tpml(request.selections);
    if (!object || !selection) {
        return object ? selection.error() : object.error();
    }
    const auto nonce = to_tpm2b<TPM2B_DATA>(request.nonce, "nonce");
    const TPMT_SIG_SCHEME as_the_key{.scheme = TPM2_ALG_NULL, .details = {}};
    for (int round = 0; round < consistent_quotes; ++round) {
        auto session = bus_session(0);
        if (!session) {
            return session.error();
        }
        TPM2B_ATTEST* raw_attest = nullptr;
        TPMT_SIGNATURE* raw_signature = nullptr;
        TSS2_RC rc = Esys_Quote(esys_->get(), object->get(), *session, ESYS_TR_NONE, ESYS_TR_NONE, &*nonce, &as_the_key,
                                &*selection, &raw_attest, &raw_signature);
        EsysPtr<TPM2B_ATTEST> attest(raw_attest);
        EsysPtr<TPMT_SIGNATURE> signature(raw_signature);
        if (auto r = esys_->check(rc, "TPM2_Quote"); !r) {
            return r.error();
        }
        auto read = pcr_read_once(request.selections);
        if (!read) {
            return read.error();
        }
        auto values = in_order(request.selections, *read);
        if (!values) {
            return make_error(Errc::pcr_mismatch, "a PCR that this TPM does not have");
        }
        Bytes concatenated;
        for (const PcrValue& v : *values) {
            concatenated.insert(concatenated.end(), v.digest.begin(), v.digest.end());
        }
        auto digest = sha256({concatenated});
        TPMS_ATTEST parsed{};
        size_t at = 0;
        if (!digest ||
            Tss2_MU_TPMS_ATTEST_Unmarshal(attest->attestationData, attest->size, &at, &parsed) != TSS2_RC_SUCCESS) {
            return make_error(Errc::protocol, "TPM2_Quote: malformed answer");
        }
        const TPM2B_DIGEST& quoted = parsed.attested.quote.pcrDigest;
        if (!std::ranges::equal(view_of(quoted.buffer, quoted.size), *digest)) {
            continue; // a PCR changed between the two commands
        }
        Bytes marshalled(sizeof *signature);
        at = 0;
        if (Tss2_MU_TPMT_SIGNATURE_Marshal(signature.get(), reinterpret_cast<std::uint8_t*>(marshalled.data()),
                                           marshalled.size(), &at) != TSS2_RC_SUCCESS) {
            return make_error(Errc::protocol, "TPM2_Quote: a signature of an unknown kind");
        }
        marshalled.resize(at);
        return Quote{.attested = to_bytes(view_of(attest->attestationData, attest->size)),
                     .signature = std::move(marshalled),
                     .values = std::move(*values)};
    }
    return make_error(Errc::unavailable, "the PCRs change faster than they can be quoted");
}

// --- credential activation (TPM 2.0 part 1 section 24) ---

Result<SecretBytes> Tpm20::activate_credential(const AttestationKey& key, ByteView credential) {
    return attempt(Repeat::always, [&] { return activate_once(key, credential); });
}

Result<SecretBytes> Tpm20::activate_once(const AttestationKey& key, ByteView credential) {
    TPM2B_ID_OBJECT id_object{};
    TPM2B_ENCRYPTED_SECRET seed{};
    const auto* buffer = reinterpret_cast<const std::uint8_t*>(credential.data());
    size_t at = 0;
    if (Tss2_MU_TPM2B_ID_OBJECT_Unmarshal(buffer, credential.size(), &at, &id_object) != TSS2_RC_SUCCESS ||
        Tss2_MU_TPM2B_ENCRYPTED_SECRET_Unmarshal(buffer, credential.size(), &at, &seed) != TSS2_RC_SUCCESS ||
        at != credential.size()) {
        return make_error(Errc::protocol,
                          "a credential of {} bytes that is not TPM2B_ID_OBJECT and "
                          "TPM2B_ENCRYPTED_SECRET",
                          credential.size());
    }
    auto endorsement = endorsement_key();
    if (!endorsement) {
        return endorsement.error();
    }
    auto object = load_object(key.blob, "made");
    auto policy = new_session(TPM2_SE_POLICY);
    if (!object || !policy) {
        return object ? policy.error() : object.error();
    }
    auto session = bus_session(0);
    if (!session) {
        return session.error();
    }
    const TPM2B_NONCE no_nonce{};
    const TPM2B_DIGEST no_digest{};
    TSS2_RC rc = Esys_PolicySecret(esys_->get(), ESYS_TR_RH_ENDORSEMENT, policy->get(), *session, ESYS_TR_NONE,
                                   ESYS_TR_NONE, &no_nonce, &no_digest, &no_nonce, 0, nullptr, nullptr);
    auto allowed = esys_->check(rc, "PolicySecret");
    if (!allowed && allowed.error().code == Errc::permission) {
        return in_context(allowed.error(), "the endorsement hierarchy has an authorisation value: it must be empty");
    }
    if (!allowed) {
        return allowed.error();
    }
    session = bus_session(TPMA_SESSION_ENCRYPT);
    if (!session) {
        return session.error();
    }
    rc = Esys_TRSess_SetAttributes(esys_->get(), policy->get(), TPMA_SESSION_CONTINUESESSION, 0xFF);
    if (auto r = esys_->check(rc, "setting up the policy session"); !r) {
        return r.error();
    }
    TPM2B_DIGEST* raw = nullptr;
    rc = Esys_ActivateCredential(esys_->get(), object->get(), endorsement->handle, *session, policy->get(),
                                 ESYS_TR_NONE, &id_object, &seed, &raw);
    std::unique_ptr<TPM2B_DIGEST, EsysCleanse> secret(raw, EsysCleanse{sizeof(TPM2B_DIGEST)});
    switch (base_code(rc)) {
    case TPM2_RC_INTEGRITY:
    case TPM2_RC_VALUE:
    case TPM2_RC_SIZE:
    case TPM2_RC_INSUFFICIENT:
    case TPM2_RC_FAILURE: // what the reference code makes of a seed that was encrypted to another key
        return make_error(Errc::mismatch, "{}: the credential was made for another attestation key or another TPM",
                          device_.description());
    default:
        break;
    }
    if (auto r = esys_->check(rc, "TPM2_ActivateCredential"); !r) {
        return r.error();
    }
    return SecretBytes(view_of(secret->buffer, secret->size));
}

} // namespace vtpmd::hwtpm
