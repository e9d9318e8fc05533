#include "hwtpm/tpm20/objects.hpp"

#include "hwtpm/tpm20/tpm20.hpp"

#include <tss2/tss2_mu.h>

namespace vtpmd::hwtpm {

Result<Bytes> marshal_object(const TPM2B_PUBLIC& pub, const TPM2B_PRIVATE& priv) {
    Bytes out(sizeof pub + sizeof priv);
    auto* buffer = reinterpret_cast<std::uint8_t*>(out.data());
    size_t at = 0;
    if (Tss2_MU_TPM2B_PUBLIC_Marshal(&pub, buffer, out.size(), &at) != TSS2_RC_SUCCESS ||
        Tss2_MU_TPM2B_PRIVATE_Marshal(&priv, buffer, out.size(), &at) != TSS2_RC_SUCCESS) {
        return make_error(Errc::too_large, "an object that cannot be marshalled");
    }
    out.resize(at);
    return out;
}

Result<StoredObject> unmarshal_object(ByteView blob) {
    StoredObject out;
    const auto* buffer = reinterpret_cast<const std::uint8_t*>(blob.data());
    size_t at = 0;
    if (Tss2_MU_TPM2B_PUBLIC_Unmarshal(buffer, blob.size(), &at, &out.public_area) != TSS2_RC_SUCCESS ||
        Tss2_MU_TPM2B_PRIVATE_Unmarshal(buffer, blob.size(), &at, &out.private_area) != TSS2_RC_SUCCESS ||
        at != blob.size()) {
        return make_error(Errc::corrupt, "an object of {} bytes that is not TPM2B_PUBLIC and TPM2B_PRIVATE",
                          blob.size());
    }
    return out;
}

Result<Bytes> marshal_public(const TPM2B_PUBLIC& area) {
    Bytes out(sizeof area);
    size_t at = 0;
    if (Tss2_MU_TPM2B_PUBLIC_Marshal(&area, reinterpret_cast<std::uint8_t*>(out.data()), out.size(), &at) !=
        TSS2_RC_SUCCESS) {
        return make_error(Errc::protocol, "a public area that cannot be marshalled");
    }
    out.resize(at);
    return out;
}

Result<Bytes> object_name(const TPMT_PUBLIC& area) {
    Bytes marshalled(sizeof area);
    size_t at = 0;
    if (area.nameAlg != TPM2_ALG_SHA256 ||
        Tss2_MU_TPMT_PUBLIC_Marshal(&area, reinterpret_cast<std::uint8_t*>(marshalled.data()), marshalled.size(),
                                    &at) != TSS2_RC_SUCCESS) {
        return make_error(Errc::protocol, "a public area without a name by SHA-256");
    }
    auto digest = sha256({ByteView(marshalled).first(at)});
    if (!digest) {
        return digest;
    }
    Bytes name{std::byte{TPM2_ALG_SHA256 >> 8}, std::byte{TPM2_ALG_SHA256 & 0xFF}};
    name.insert(name.end(), digest->begin(), digest->end());
    return name;
}

Result<Bytes> spki_of(const TPMT_PUBLIC& area) {
    PublicKey key;
    if (area.type == TPM2_ALG_RSA && area.parameters.rsaDetail.exponent == 0) {
        key.modulus = to_bytes(view_of(area.unique.rsa.buffer, area.unique.rsa.size));
    } else if (area.type == TPM2_ALG_ECC && area.parameters.eccDetail.curveID == TPM2_ECC_NIST_P256) {
        const TPMS_ECC_POINT& point = area.unique.ecc;
        key.type = KeyType::ecdsa_p256;
        key.x = to_bytes(view_of(point.x.buffer, point.x.size));
        key.y = to_bytes(view_of(point.y.buffer, point.y.size));
    } else {
        return make_error(Errc::unsupported, "a key that is neither RSA with exponent 65537 nor on P-256");
    }
    return to_spki(key);
}

Result<Transient> Tpm20::load_object(ByteView blob, std::string_view made) {
    auto object = unmarshal_object(blob);
    if (!object) {
        return object.error();
    }
    auto session = bus_session(0);
    if (!session) {
        return session.error();
    }
    ESYS_TR handle = ESYS_TR_NONE;
    TSS2_RC rc = Esys_Load(esys_->get(), storage_key_, *session, ESYS_TR_NONE, ESYS_TR_NONE, &object->private_area,
                           &object->public_area, &handle);
    switch (base_code(rc)) {
    case TPM2_RC_INTEGRITY:
    case TPM2_RC_BINDING:
    case TPM2_RC_SIZE:
    case TPM2_RC_HASH:
        return make_error(Errc::mismatch,
                          "{}: this was not {} by this TPM, or the TPM was cleared since (the storage key is another)",
                          device_.description(), made);
    default:
        break;
    }
    if (auto r = esys_->check(rc, fmt::format("loading what was {}", made)); !r) {
        return r.error();
    }
    return Transient(*esys_, handle);
}

} // namespace vtpmd::hwtpm
