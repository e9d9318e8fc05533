// Seals of a TPM 2.0 that an approver opens: TPM2_PolicyAuthorize (TPM 2.0 part 3 section 23.16) over TPM2_PolicyPCR.
// The approver's key is not in the TPM; its public part is loaded to check an approval, which gives a ticket.
#include "hwtpm/tpm20/objects.hpp"
#include "hwtpm/tpm20/tpm20.hpp"
#include "tpm/pcr.hpp"
#include "util/wire.hpp"

#include <algorithm>

namespace vtpmd::hwtpm {

namespace {

/// The approver's key as an external object. Its name depends on every field: they are part of the format of our seals.
Result<TPM2B_PUBLIC> external_public(ByteView spki) {
    auto key = parse_public_key(spki);
    if (!key) {
        return in_context(key.error(), "the approver's key");
    }
    TPM2B_PUBLIC out{};
    TPMT_PUBLIC& p = out.publicArea;
    p.nameAlg = TPM2_ALG_SHA256;
    p.objectAttributes = TPMA_OBJECT_USERWITHAUTH | TPMA_OBJECT_SIGN_ENCRYPT;
    const auto put = [](auto& tpm2b, const Bytes& bytes) {
        tpm2b.size = static_cast<UINT16>(bytes.size());
        std::copy(bytes.begin(), bytes.end(), reinterpret_cast<std::byte*>(tpm2b.buffer));
    };
    if (key->type == KeyType::rsa_2048) {
        p.type = TPM2_ALG_RSA;
        p.parameters.rsaDetail.symmetric.algorithm = TPM2_ALG_NULL;
        p.parameters.rsaDetail.scheme.scheme = TPM2_ALG_NULL;
        p.parameters.rsaDetail.keyBits = 2048;
        put(p.unique.rsa, key->modulus);
    } else {
        p.type = TPM2_ALG_ECC;
        p.parameters.eccDetail.symmetric.algorithm = TPM2_ALG_NULL;
        p.parameters.eccDetail.scheme.scheme = TPM2_ALG_NULL;
        p.parameters.eccDetail.curveID = TPM2_ECC_NIST_P256;
        p.parameters.eccDetail.kdf.scheme = TPM2_ALG_NULL;
        put(p.unique.ecc.x, key->x);
        put(p.unique.ecc.y, key->y);
    }
    return out;
}

Result<TPMT_SIGNATURE> to_tpmt(TPM2_ALG_ID key_type, ByteView signature) {
    TPMT_SIGNATURE out{};
    const auto put = [](auto& tpm2b, ByteView bytes) {
        tpm2b.size = static_cast<UINT16>(bytes.size());
        std::copy(bytes.begin(), bytes.end(), reinterpret_cast<std::byte*>(tpm2b.buffer));
    };
    if (key_type == TPM2_ALG_RSA) {
        TPMS_SIGNATURE_RSA& rsa = out.signature.rsassa;
        if (signature.size() > sizeof rsa.sig.buffer) {
            return make_error(Errc::permission, "a signature of {} bytes", signature.size());
        }
        out.sigAlg = TPM2_ALG_RSASSA;
        rsa.hash = TPM2_ALG_SHA256;
        put(rsa.sig, signature);
        return out;
    }
    auto parts = parse_ecdsa_signature(signature);
    if (!parts) {
        return parts.error();
    }
    out.sigAlg = TPM2_ALG_ECDSA;
    out.signature.ecdsa.hash = TPM2_ALG_SHA256;
    put(out.signature.ecdsa.signatureR, parts->r);
    put(out.signature.ecdsa.signatureS, parts->s);
    return out;
}

/// The digest of a session after TPM2_PolicyAuthorize: PolicyUpdate of a fresh digest (part 3 section 23.2.3).
Result<Bytes> authorize_policy_digest(const Approver& approver) {
    auto area = external_public(approver.key);
    auto name = area ? object_name(area->publicArea) : Result<Bytes>(area.error());
    if (!name) {
        return name;
    }
    WireWriter command;
    command.zeros(32).be32(TPM2_CC_PolicyAuthorize);
    auto first = sha256({command.view(), *name});
    return first ? sha256({*first, approver.reference}) : first;
}

} // namespace

Result<SealedSecret> Tpm20::seal_for(const SecretBytes& secret, const Approver& approver) {
    if (secret.empty() || secret.size() > sealed_secret_limit || approver.reference.size() > reference_limit) {
        return make_error(Errc::too_large, "a secret of {} bytes (a TPM seals 1 to {}), a reference of {} (at most {})",
                          secret.size(), sealed_secret_limit, approver.reference.size(), reference_limit);
    }
    auto policy = authorize_policy_digest(approver);
    if (!policy) {
        return policy.error();
    }
    return attempt(Repeat::always, [&]() -> Result<SealedSecret> {
        auto blob = create_sealed(secret, *policy);
        if (!blob) {
            return blob.error();
        }
        return SealedSecret{.blob = std::move(*blob), .selection = {}, .values = {}};
    });
}

Result<SecretBytes> Tpm20::unseal_for(const SealedSecret& sealed, const Approver& approver, const Approval& approval) {
    if (auto verified = verify_approval(approver, approval); !verified) {
        return verified.error(); // the TPM would say the same, in fewer words
    }
    auto secret = attempt(Repeat::always, [&] { return unseal_for_once(sealed, approver, approval); });
    if (secret || secret.error().code != Errc::tpm) {
        return secret;
    }
    const TSS2_RC base = base_code(secret.error().detail);
    if (base == TPM2_RC_POLICY_FAIL) {
        return make_error(Errc::mismatch, "{}: this was sealed for another approver, or for another reference",
                          device_.description());
    }
    if (base == TPM2_RC_VALUE || base == TPM2_RC_PCR_CHANGED) {
        return explain_policy_failure({.blob = {}, .selection = approval.selection, .values = approval.values},
                                      secret.error());
    }
    return secret;
}

Result<SecretBytes> Tpm20::unseal_for_once(const SealedSecret& sealed, const Approver& approver,
                                           const Approval& approval) {
    auto session = new_session(TPM2_SE_POLICY);
    if (!session) {
        return session.error();
    }
    if (auto r = policy_pcr(session->get(), approval.selection); !r) {
        return r.error();
    }
    if (auto r = policy_authorize(session->get(), approver, approval); !r) {
        return r.error();
    }
    if (auto r = use_policy_session(session->get()); !r) {
        return r.error();
    }
    auto object = load_object(sealed.blob, "sealed"); // after the approver's key is gone: a part has room for three
    if (!object) {
        return object.error();
    }
    return unseal_object(object->get(), session->get());
}

/// Replaces the session's PCR policy by the approver's word for it.
Result<void> Tpm20::policy_authorize(ESYS_TR session, const Approver& approver, const Approval& approval) {
    auto area = external_public(approver.key);
    auto message = approval_message(approval.selection, approval.values, approver.reference);
    if (!area || !message) {
        return area ? message.error() : area.error();
    }
    auto signature = to_tpmt(area->publicArea.type, approval.signature);
    auto digest = sha256({*message});
    if (!signature || !digest) {
        return signature ? digest.error() : signature.error();
    }
    ESYS_TR handle = ESYS_TR_NONE;
    TSS2_RC rc = Esys_LoadExternal(esys_->get(), ESYS_TR_NONE, ESYS_TR_NONE, ESYS_TR_NONE, nullptr, &*area,
                                   ESYS_TR_RH_OWNER, &handle);
    if (auto r = esys_->check(rc, "loading the approver's key"); !r) {
        return r;
    }
    const Transient key(*esys_, handle);
    const auto a_hash = to_tpm2b<TPM2B_DIGEST>(*digest, "digest");
    TPMT_TK_VERIFIED* raw_ticket = nullptr;
    rc = Esys_VerifySignature(esys_->get(), handle, ESYS_TR_NONE, ESYS_TR_NONE, ESYS_TR_NONE, &*a_hash, &*signature,
                              &raw_ticket);
    EsysPtr<TPMT_TK_VERIFIED> ticket(raw_ticket);
    if (auto r = esys_->check(rc, "checking the approval"); !r) {
        return r;
    }
    TPM2B_NAME* raw_name = nullptr;
    if (auto r = esys_->check(Esys_TR_GetName(esys_->get(), handle, &raw_name), "the approver's key"); !r) {
        return r;
    }
    EsysPtr<TPM2B_NAME> name(raw_name);
    const auto approved = to_tpm2b<TPM2B_DIGEST>(ByteView(*message).first(32), "policy");
    const auto reference = to_tpm2b<TPM2B_NONCE>(approver.reference, "reference");
    rc = Esys_PolicyAuthorize(esys_->get(), session, ESYS_TR_NONE, ESYS_TR_NONE, ESYS_TR_NONE, &*approved, &*reference,
                              name.get(), ticket.get());
    return esys_->check(rc, "PolicyAuthorize");
}

} // namespace vtpmd::hwtpm
