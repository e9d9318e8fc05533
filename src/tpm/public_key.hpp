// Public keys of others, as OpenSSL writes them (DER SubjectPublicKeyInfo) and as a TPM does (numbers of fixed size):
// RSA-2048 with exponent 65537, and ECDSA on P-256. Pure.
#pragma once

#include "util/bytes.hpp"
#include "util/free_by.hpp"
#include "util/result.hpp"

#include <memory>
#include <openssl/evp.h>
#include <string>
#include <string_view>

namespace vtpmd::hwtpm {

using Pkey = std::unique_ptr<EVP_PKEY, FreeBy<EVP_PKEY_free>>;

enum class KeyType { rsa_2048, ecdsa_p256 };

struct PublicKey {
    KeyType type = KeyType::rsa_2048;
    Bytes modulus; ///< RSA: 256 bytes
    Bytes x, y;    ///< P-256: 32 bytes each
};

/// Errc::usage for anything but the two kinds.
[[nodiscard]] Result<PublicKey> parse_public_key(ByteView spki);
/// DER SubjectPublicKeyInfo. Errc::protocol if it is no such key (a point that is not on the curve).
[[nodiscard]] Result<Bytes> to_spki(const PublicKey& key);
/// DER SubjectPublicKeyInfo of the first "PUBLIC KEY" in a PEM text, of any kind. Errc::usage: there is none.
[[nodiscard]] Result<Bytes> spki_of_pem(std::string_view pem);
/// The other way round; empty for an empty one.
[[nodiscard]] std::string pem_of_spki(ByteView spki);
/// The key for OpenSSL. An RSA modulus may have any size here.
[[nodiscard]] Result<Pkey> to_pkey(const PublicKey& key);

/// A signature with SHA-256: PKCS #1 v1.5 by an RSA key, DER (ECDSA-Sig-Value) by an ECDSA key. Errc::permission if it
/// is not of this key over this message.
[[nodiscard]] Result<void> verify_sha256(ByteView spki, ByteView message, ByteView signature);

/// An RSA signature as of 1.2 days: PKCS #1 v1.5 with SHA-1. Errc::permission, as above.
[[nodiscard]] Result<void> verify_sha1(ByteView spki, ByteView message, ByteView signature);

/// r and s of an ECDSA-Sig-Value, 32 bytes each. Errc::protocol.
struct EcdsaSignature {
    Bytes r, s;
};
[[nodiscard]] Result<EcdsaSignature> parse_ecdsa_signature(ByteView der);

/// DER SubjectPublicKeyInfo of a TPM_PUBKEY (RSA), part 2 section 10.5. Errc::protocol.
[[nodiscard]] Result<Bytes> spki_of_pubkey(ByteView pubkey);
/// TPM_PUBKEY of an endorsement key (RSA-2048, OAEP, the usual exponent) with this DER SubjectPublicKeyInfo.
/// Errc::usage.
[[nodiscard]] Result<Bytes> endorsement_pubkey(ByteView spki);

[[nodiscard]] Result<Bytes> sha256(std::initializer_list<ByteView> parts);

} // namespace vtpmd::hwtpm
