// The cryptography that the manager itself asks for: boxes (AES-256-GCM with a fresh random nonce) for hash keys and for the
// recovery copy of the keys, and new keys. All of it is store/aead.hpp's; exceptions are its (OpenSSL out of memory).
#pragma once

#include "store/aead.hpp"

#include <string_view>

namespace vtpmd::manager {

inline constexpr std::size_t key_size = store::aead_key_size;
inline constexpr std::size_t box_overhead = store::aead_nonce_size + store::aead_tag_size;

/// nonce[12] || ciphertext || tag[16]. At most 2^32 boxes a key (NIST SP 800-38D, section 8.3: random nonces).
[[nodiscard]] Bytes close_box(const SecretBytes& key, ByteView aad, ByteView plaintext);
/// Errc::corrupt if it was not closed with this key and `aad`.
[[nodiscard]] Result<SecretBytes> open_box(const SecretBytes& key, ByteView aad, ByteView box);

/// HMAC-SHA-256 of `label || context` under `key`: a key for one purpose.
[[nodiscard]] SecretBytes derive_key(const SecretBytes& key, std::string_view label, ByteView context);

/// A new key from the kernel's randomness and the TPM's (32 bytes): as good as the better of the two.
[[nodiscard]] SecretBytes mix_key(ByteView from_tpm);

} // namespace vtpmd::manager
