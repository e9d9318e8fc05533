// Objects of a TPM 2.0 outside of it: as they are stored, and their public keys.
#pragma once

#include "tpm/public_key.hpp"
#include "util/bytes.hpp"
#include "util/result.hpp"

#include <algorithm>
#include <tss2/tss2_tpm2_types.h>

namespace vtpmd::hwtpm {

struct StoredObject {
    TPM2B_PUBLIC public_area{};
    TPM2B_PRIVATE private_area{};
};
/// TPM2B_PUBLIC || TPM2B_PRIVATE.
[[nodiscard]] Result<Bytes> marshal_object(const TPM2B_PUBLIC& pub, const TPM2B_PRIVATE& priv);
/// Errc::corrupt.
[[nodiscard]] Result<StoredObject> unmarshal_object(ByteView blob);

[[nodiscard]] Result<Bytes> marshal_public(const TPM2B_PUBLIC& area);
/// TPM 2.0 part 1 section 16: the name algorithm (SHA-256 here) and the digest of the public area.
[[nodiscard]] Result<Bytes> object_name(const TPMT_PUBLIC& area);
/// DER SubjectPublicKeyInfo of an RSA or P-256 key.
[[nodiscard]] Result<Bytes> spki_of(const TPMT_PUBLIC& area);

/// A TPM2B_ of bytes; Errc::too_large if they do not fit.
template <typename T>
[[nodiscard]] Result<T> to_tpm2b(ByteView bytes, std::string_view what) {
    T out{};
    if (bytes.size() > sizeof out.buffer) {
        return make_error(Errc::too_large, "{}: {} bytes, at most {}", what, bytes.size(), sizeof out.buffer);
    }
    out.size = static_cast<UINT16>(bytes.size());
    std::copy(bytes.begin(), bytes.end(), reinterpret_cast<std::byte*>(out.buffer));
    return out;
}

} // namespace vtpmd::hwtpm
