// The storage primary key: the parent of everything we seal.
#include "hwtpm/tpm20/tpm20.hpp"

#include "util/text.hpp"

#include <algorithm>
#include <openssl/evp.h>

namespace vtpmd::hwtpm {

namespace {

constexpr TPMA_OBJECT storage_attributes = TPMA_OBJECT_FIXEDTPM | TPMA_OBJECT_FIXEDPARENT |
                                           TPMA_OBJECT_SENSITIVEDATAORIGIN | TPMA_OBJECT_USERWITHAUTH |
                                           TPMA_OBJECT_NODA | TPMA_OBJECT_RESTRICTED | TPMA_OBJECT_DECRYPT;

/// TCG TPM v2.0 Provisioning Guidance, section 7.5.1: the templates of the EK Credential Profile (B.3.3, B.3.4) with
/// the attributes of a storage key and no policy. The unique fields are zeros of the key's size.
TPM2B_PUBLIC storage_template(TPM2_ALG_ID type) {
    TPM2B_PUBLIC out{};
    TPMT_PUBLIC& p = out.publicArea;
    p.type = type;
    p.nameAlg = TPM2_ALG_SHA256;
    p.objectAttributes = storage_attributes;
    const TPMT_SYM_DEF_OBJECT aes{.algorithm = TPM2_ALG_AES, .keyBits = {.aes = 128}, .mode = {.aes = TPM2_ALG_CFB}};
    if (type == TPM2_ALG_ECC) {
        TPMS_ECC_PARMS& ecc = p.parameters.eccDetail;
        ecc.symmetric = aes;
        ecc.scheme.scheme = TPM2_ALG_NULL;
        ecc.curveID = TPM2_ECC_NIST_P256;
        ecc.kdf.scheme = TPM2_ALG_NULL;
        p.unique.ecc.x.size = 32;
        p.unique.ecc.y.size = 32;
    } else {
        TPMS_RSA_PARMS& rsa = p.parameters.rsaDetail;
        rsa.symmetric = aes;
        rsa.scheme.scheme = TPM2_ALG_NULL;
        rsa.keyBits = 2048;
        p.unique.rsa.size = 256;
    }
    return out;
}

/// Why a key that sits at the handle is no parent for us, or nothing.
std::string_view unfit(const TPMT_PUBLIC& p) {
    constexpr TPMA_OBJECT needed = TPMA_OBJECT_FIXEDTPM | TPMA_OBJECT_FIXEDPARENT | TPMA_OBJECT_SENSITIVEDATAORIGIN |
                                   TPMA_OBJECT_RESTRICTED | TPMA_OBJECT_DECRYPT;
    if (p.type != TPM2_ALG_ECC && p.type != TPM2_ALG_RSA) {
        return "neither RSA nor ECC";
    }
    if ((p.objectAttributes & needed) != needed || (p.objectAttributes & TPMA_OBJECT_SIGN_ENCRYPT) != 0) {
        return "not a storage key made in this TPM";
    }
    return {};
}

} // namespace

Result<void> Tpm20::open_storage_key() {
    auto adopted = adopt_persistent_key();
    if (!adopted) {
        return adopted.error();
    }
    if (!*adopted) {
        if (auto r = create_storage_key(); !r) {
            return r;
        }
    }
    if (auto r = note_storage_key_name(); !r) {
        return r;
    }
    if (auto r = set_auth(*esys_, storage_key_, config_.srk_auth.view()); !r) {
        return r;
    }
    if (auto r = set_auth(*esys_, ESYS_TR_RH_OWNER, config_.owner_auth.view()); !r) {
        return r;
    }
    if (transient_storage_key_) {
        if (auto r = persist_storage_key(transient_storage_key_); !r) {
            log_.info("{}: the storage key stays transient, made anew at each start: {}", device_.description(),
                      r.error().message);
        }
        if (auto r = set_auth(*esys_, storage_key_, config_.srk_auth.view()); !r) {
            return r;
        }
    }
    return {};
}

Result<bool> Tpm20::adopt_persistent_key() {
    ESYS_TR key = ESYS_TR_NONE;
    TSS2_RC rc =
        Esys_TR_FromTPMPublic(esys_->get(), config_.srk_handle, ESYS_TR_NONE, ESYS_TR_NONE, ESYS_TR_NONE, &key);
    if (base_code(rc) == TPM2_RC_HANDLE || base_code(rc) == TPM2_RC_VALUE) {
        return false;
    }
    if (auto r = esys_->check(rc, fmt::format("storage key at {:#010x}", config_.srk_handle)); !r) {
        return r.error();
    }
    TPM2B_PUBLIC* raw = nullptr;
    rc = Esys_ReadPublic(esys_->get(), key, ESYS_TR_NONE, ESYS_TR_NONE, ESYS_TR_NONE, &raw, nullptr, nullptr);
    EsysPtr<TPM2B_PUBLIC> area(raw);
    if (auto r = esys_->check(rc, "reading the storage key"); !r) {
        return r.error();
    }
    if (std::string_view why = unfit(area->publicArea); !why.empty()) {
        log_.warning(
            "{}: the object at {:#010x} is {}; a transient storage key is used instead (--srk-handle names another)",
            device_.description(), config_.srk_handle, why);
        (void)Esys_TR_Close(esys_->get(), &key);
        return false;
    }
    storage_key_ = key;
    return true;
}

Result<void> Tpm20::create_storage_key() {
    if (auto r = set_auth(*esys_, ESYS_TR_RH_OWNER, config_.owner_auth.view()); !r) {
        return r;
    }
    // There is no key yet to salt a session with. An HMAC session at least keeps the owner's value itself off the bus.
    Transient session;
    if (!config_.owner_auth.empty()) {
        auto made = new_session(TPM2_SE_HMAC);
        if (!made) {
            return made.error();
        }
        session = std::move(*made);
    }
    Cleansed<TPM2B_SENSITIVE_CREATE> sensitive;
    TPM2B_AUTH& auth = sensitive.value.sensitive.userAuth;
    auth.size = static_cast<UINT16>(config_.srk_auth.size());
    std::copy(config_.srk_auth.view().begin(), config_.srk_auth.view().end(),
              reinterpret_cast<std::byte*>(auth.buffer));
    const TPM2B_DATA no_data{};
    const TPML_PCR_SELECTION no_pcrs{};
    TSS2_RC rc = TSS2_RC_SUCCESS;
    ESYS_TR key = ESYS_TR_NONE;
    for (TPM2_ALG_ID type : {TPM2_ALG_ECC, TPM2_ALG_RSA}) {
        const TPM2B_PUBLIC wanted = storage_template(type);
        if (session) {
            (void)Esys_TRSess_SetAttributes(esys_->get(), session.get(), TPMA_SESSION_CONTINUESESSION, 0xFF);
        }
        rc = Esys_CreatePrimary(esys_->get(), ESYS_TR_RH_OWNER, session ? session.get() : ESYS_TR_PASSWORD,
                                ESYS_TR_NONE, ESYS_TR_NONE, &sensitive.value, &wanted, &no_data, &no_pcrs, &key,
                                nullptr, nullptr, nullptr, nullptr);
        const TSS2_RC base = base_code(rc);
        if (base != TPM2_RC_CURVE && base != TPM2_RC_ASYMMETRIC && base != TPM2_RC_TYPE && base != TPM2_RC_VALUE) {
            break; // made, or refused for a reason that RSA does not change
        }
    }
    auto made = esys_->check(rc, "making the storage key");
    if (!made && made.error().code == Errc::permission) {
        return make_error(Errc::permission, "{}: the owner's authorisation is refused: give the right --owner-auth",
                          device_.description());
    }
    if (!made) {
        return made;
    }
    storage_key_ = key;
    transient_storage_key_ = Transient(*esys_, key);
    return {};
}

Result<void> Tpm20::persist_storage_key(Transient& key) {
    auto session = bus_session(0);
    if (!session) {
        return session.error();
    }
    ESYS_TR persistent = ESYS_TR_NONE;
    TSS2_RC rc = Esys_EvictControl(esys_->get(), ESYS_TR_RH_OWNER, key.get(), *session, ESYS_TR_NONE, ESYS_TR_NONE,
                                   config_.srk_handle, &persistent);
    if (auto r = esys_->check(rc, fmt::format("making it persistent at {:#010x}", config_.srk_handle)); !r) {
        return r;
    }
    storage_key_ = persistent;
    key.flush();
    log_.info("{}: the storage key is persistent at {:#010x} now", device_.description(), config_.srk_handle);
    return {};
}

/// SHA-256 of the key's name. A TPM that comes back as another one (cleared, exchanged) is refused at once.
Result<void> Tpm20::note_storage_key_name() {
    TPM2B_NAME* raw = nullptr;
    if (auto r = esys_->check(Esys_TR_GetName(esys_->get(), storage_key_, &raw), "the storage key's name"); !r) {
        return r;
    }
    EsysPtr<TPM2B_NAME> name(raw);
    Bytes digest(32);
    if (EVP_Digest(name->name, name->size, uchar_ptr(MutByteView(digest)), nullptr, EVP_sha256(), nullptr) != 1) {
        return make_error(Errc::unsupported, "OpenSSL refuses SHA-256");
    }
    if (!storage_key_name_.empty() && storage_key_name_ != digest) {
        return make_error(Errc::mismatch,
                          "{}: this is not the TPM that was here before (storage key {}, now {}): cleared or exchanged",
                          device_.description(), to_hex(storage_key_name_), to_hex(digest));
    }
    storage_key_name_ = std::move(digest);
    return {};
}

} // namespace vtpmd::hwtpm
