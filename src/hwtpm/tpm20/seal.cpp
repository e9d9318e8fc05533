// Sealed objects of a TPM 2.0: a keyed-hash object under the storage key that opens under PolicyPCR.
#include "hwtpm/tpm20/objects.hpp"
#include "hwtpm/tpm20/tpm20.hpp"

#include <algorithm>

namespace vtpmd::hwtpm {

namespace {

/// Without a policy the empty authorisation value opens it.
TPM2B_PUBLIC sealed_template(ByteView policy) {
    TPM2B_PUBLIC out{};
    TPMT_PUBLIC& p = out.publicArea;
    p.type = TPM2_ALG_KEYEDHASH;
    p.nameAlg = TPM2_ALG_SHA256;
    p.objectAttributes = TPMA_OBJECT_FIXEDTPM | TPMA_OBJECT_FIXEDPARENT | TPMA_OBJECT_NODA;
    p.objectAttributes |= policy.empty() ? TPMA_OBJECT_USERWITHAUTH : TPMA_OBJECT_ADMINWITHPOLICY;
    p.authPolicy.size = static_cast<UINT16>(policy.size());
    std::copy(policy.begin(), policy.end(), reinterpret_cast<std::byte*>(p.authPolicy.buffer));
    p.parameters.keyedHashDetail.scheme.scheme = TPM2_ALG_NULL;
    return out;
}

} // namespace

Result<SealedSecret> Tpm20::seal(const SecretBytes& secret, const RootOfTrust::SealOptions& options) {
    if (secret.empty() || secret.size() > sealed_secret_limit) {
        return make_error(Errc::too_large, "a secret of {} bytes: a TPM seals 1 to {}", secret.size(),
                          sealed_secret_limit);
    }
    return attempt(Repeat::always, [&] { return seal_once(secret, options); });
}

Result<std::vector<PcrValue>> Tpm20::checked_values(const RootOfTrust::SealOptions& options) {
    const PcrSelection& selection = options.selection;
    if (selection.pcrs.empty()) {
        return std::vector<PcrValue>{};
    }
    if (std::find(banks_.begin(), banks_.end(), selection.bank) == banks_.end()) {
        return make_error(Errc::pcr_mismatch, "{}: this TPM has no {} bank of PCRs", to_string(selection),
                          bank_name(selection.bank));
    }
    auto values = options.values.empty() ? pcr_read_once({selection}) : Result<std::vector<PcrValue>>(options.values);
    if (values && !options.values.empty() && !fits(*values, selection)) {
        return make_error(Errc::usage, "the PCR values given for a seal are not those of {}", to_string(selection));
    }
    if (!values) {
        return values.error();
    }
    std::vector<std::string> wrong;
    for (unsigned index : selection.pcrs) {
        auto it = std::find_if(values->begin(), values->end(), [&](const PcrValue& v) { return v.index == index; });
        if (it == values->end()) {
            wrong.push_back(fmt::format("{}:{} (not there)", bank_name(selection.bank), index));
        } else if (!options.allow_zero_pcrs && untouched(it->digest)) {
            wrong.push_back(fmt::format("{}:{}", bank_name(selection.bank), index));
        }
    }
    if (!wrong.empty()) {
        return make_error(
            Errc::pcr_mismatch,
            "nothing was measured into {}: a seal to it would protect nothing; choose other PCRs, or allow "
            "it knowingly with --allow-zero-pcrs, or seal to none with --seal-pcrs=none",
            fmt::join(wrong, ", "));
    }
    return values;
}

/// A keyed-hash object under the storage key, as TPM2B_PUBLIC || TPM2B_PRIVATE.
Result<Bytes> Tpm20::create_sealed(const SecretBytes& secret, ByteView policy) {
    const TPM2B_PUBLIC wanted = sealed_template(policy);
    Cleansed<TPM2B_SENSITIVE_CREATE> sensitive;
    TPM2B_SENSITIVE_DATA& data = sensitive.value.sensitive.data;
    data.size = static_cast<UINT16>(secret.size());
    std::copy(secret.view().begin(), secret.view().end(), reinterpret_cast<std::byte*>(data.buffer));
    const TPM2B_DATA no_data{};
    const TPML_PCR_SELECTION no_pcrs{};
    auto session = bus_session(TPMA_SESSION_DECRYPT);
    if (!session) {
        return session.error();
    }
    TPM2B_PRIVATE* raw_private = nullptr;
    TPM2B_PUBLIC* raw_public = nullptr;
    TSS2_RC rc = Esys_Create(esys_->get(), storage_key_, *session, ESYS_TR_NONE, ESYS_TR_NONE, &sensitive.value,
                             &wanted, &no_data, &no_pcrs, &raw_private, &raw_public, nullptr, nullptr, nullptr);
    EsysPtr<TPM2B_PRIVATE> private_area(raw_private);
    EsysPtr<TPM2B_PUBLIC> public_area(raw_public);
    auto created = esys_->check(rc, "sealing");
    if (!created && created.error().code == Errc::permission) {
        return in_context(created.error(), "the storage key's authorisation is refused: give the right --srk-auth");
    }
    if (!created) {
        return created.error();
    }
    return marshal_object(*public_area, *private_area);
}

Result<SealedSecret> Tpm20::seal_once(const SecretBytes& secret, const RootOfTrust::SealOptions& options) {
    SealedSecret out;
    out.selection = options.selection;
    auto values = checked_values(options);
    if (!values) {
        return values.error();
    }
    out.values = std::move(*values);
    Bytes policy;
    if (!out.selection.pcrs.empty()) {
        auto digest = pcr_policy_digest(out.selection, out.values);
        if (!digest) {
            return digest.error();
        }
        policy = std::move(*digest);
    }
    auto blob = create_sealed(secret, policy);
    if (!blob) {
        return blob.error();
    }
    out.blob = std::move(*blob);
    if (!options.values.empty()) {
        return out; // it is not to open now
    }
    if (auto proven = check_opens(unseal_once(out), secret); !proven) {
        return proven.error();
    }
    return out;
}

Result<SecretBytes> Tpm20::unseal(const SealedSecret& sealed) {
    auto secret = attempt(Repeat::always, [&] { return unseal_once(sealed); });
    if (!secret && secret.error().code == Errc::tpm) {
        const TSS2_RC base = base_code(secret.error().detail);
        if (base == TPM2_RC_POLICY_FAIL || base == TPM2_RC_PCR_CHANGED || base == TPM2_RC_VALUE) {
            return explain_policy_failure(sealed, secret.error());
        }
    }
    return secret;
}

Result<SecretBytes> Tpm20::unseal_once(const SealedSecret& sealed) {
    auto object = load_object(sealed.blob, "sealed");
    if (!object) {
        return object.error();
    }
    Transient policy;
    ESYS_TR session = ESYS_TR_NONE;
    if (sealed.selection.pcrs.empty()) {
        auto bus = bus_session(TPMA_SESSION_ENCRYPT);
        if (!bus) {
            return bus.error();
        }
        session = *bus;
    } else {
        auto made = new_session(TPM2_SE_POLICY);
        if (!made) {
            return made.error();
        }
        policy = std::move(*made);
        session = policy.get();
        if (auto r = policy_pcr(session, sealed.selection); !r) {
            return r.error();
        }
        if (auto r = use_policy_session(session); !r) {
            return r.error();
        }
    }
    return unseal_object(object->get(), session);
}

/// TPM2_PolicyPCR with the present values.
Result<void> Tpm20::policy_pcr(ESYS_TR session, const PcrSelection& pcrs) {
    auto selection = to_tpml({pcrs});
    if (!selection) {
        return selection.error();
    }
    const TPM2B_DIGEST any_value{};
    TSS2_RC rc =
        Esys_PolicyPCR(esys_->get(), session, ESYS_TR_NONE, ESYS_TR_NONE, ESYS_TR_NONE, &any_value, &*selection);
    return esys_->check(rc, "PolicyPCR");
}

/// The answer's secret is encrypted by it, and it is always ours to flush.
Result<void> Tpm20::use_policy_session(ESYS_TR session) {
    TSS2_RC rc =
        Esys_TRSess_SetAttributes(esys_->get(), session, TPMA_SESSION_ENCRYPT | TPMA_SESSION_CONTINUESESSION, 0xFF);
    return esys_->check(rc, "setting up the policy session");
}

Result<SecretBytes> Tpm20::unseal_object(ESYS_TR object, ESYS_TR session) {
    TPM2B_SENSITIVE_DATA* raw = nullptr;
    TSS2_RC rc = Esys_Unseal(esys_->get(), object, session, ESYS_TR_NONE, ESYS_TR_NONE, &raw);
    std::unique_ptr<TPM2B_SENSITIVE_DATA, EsysCleanse> data(raw, EsysCleanse{sizeof(TPM2B_SENSITIVE_DATA)});
    if (auto r = esys_->check(rc, "unsealing"); !r) {
        return r.error();
    }
    return SecretBytes(view_of(data->buffer, data->size));
}

Error Tpm20::explain_policy_failure(const SealedSecret& sealed, const Error& cause) {
    if (std::find(banks_.begin(), banks_.end(), sealed.selection.bank) == banks_.end()) {
        return make_error(Errc::pcr_mismatch, "sealed to {}, but this TPM has no {} bank of PCRs now",
                          to_string(sealed.selection), bank_name(sealed.selection.bank));
    }
    auto present = pcr_read({sealed.selection});
    if (!present) {
        return in_context(present.error(), "the seal does not open, and the PCRs cannot be read");
    }
    auto differences = pcr_differences(sealed.values, *present);
    if (differences.empty()) {
        return in_context(
            Error{Errc::pcr_mismatch, cause.message, cause.detail},
            fmt::format("the seal to {} does not open although its PCRs are as recorded: the record of the "
                        "values was altered",
                        to_string(sealed.selection)));
    }
    return make_error(Errc::pcr_mismatch, "the platform is not the one that was sealed to: {}",
                      fmt::join(differences, "; "));
}

} // namespace vtpmd::hwtpm
