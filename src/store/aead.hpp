// The one place that encrypts what is kept on disk: AES-256-GCM (NIST SP 800-38D, 96-bit nonces, 128-bit tags), SHA-256 and
// HMAC-SHA-256, through OpenSSL's EVP. A nonce must never be used twice under one key: callers use a fresh key for each
// message, or a random nonce under a key that sees few messages.
#pragma once

#include "util/bytes.hpp"
#include "util/result.hpp"
#include "util/secret_bytes.hpp"

#include <array>
#include <initializer_list>
#include <memory>

struct evp_md_ctx_st;

namespace vtpmd::store {

inline constexpr std::size_t aead_key_size = 32;
inline constexpr std::size_t aead_nonce_size = 12;
inline constexpr std::size_t aead_tag_size = 16;
inline constexpr std::size_t digest_size = 32;

using Nonce = std::array<std::byte, aead_nonce_size>;
using Digest = std::array<std::byte, digest_size>;

/// ciphertext || tag, plaintext.size() + aead_tag_size bytes, into `out` of exactly that size. `key` is aead_key_size
/// bytes. Throws std::runtime_error if OpenSSL fails (it lacks memory or the algorithm).
void aead_seal(ByteView key, const Nonce& nonce, ByteView aad, ByteView plaintext, MutByteView out);
[[nodiscard]] Bytes aead_seal(ByteView key, const Nonce& nonce, ByteView aad, ByteView plaintext);

/// The plaintext of ciphertext || tag; Errc::corrupt if it does not authenticate.
[[nodiscard]] Result<SecretBytes> aead_open(ByteView key, const Nonce& nonce, ByteView aad, ByteView sealed);

/// SHA-256 over pieces as they come.
class Sha256 {
  public:
    Sha256();
    ~Sha256();
    Sha256(const Sha256&) = delete;
    Sha256& operator=(const Sha256&) = delete;
    Sha256& update(ByteView piece);
    [[nodiscard]] Digest finish();

  private:
    evp_md_ctx_st* context_;
};
[[nodiscard]] Digest sha256(std::initializer_list<ByteView> pieces);

/// HMAC-SHA-256 over the pieces, to derive one key from another.
[[nodiscard]] SecretBytes hmac_sha256(ByteView key, std::initializer_list<ByteView> pieces);

/// From OpenSSL's private generator, which the kernel seeds. Throws std::runtime_error if it cannot.
void fill_random(MutByteView out);
[[nodiscard]] SecretBytes random_key();
[[nodiscard]] Nonce random_nonce();

[[nodiscard]] bool all_zero(ByteView bytes) noexcept;

} // namespace vtpmd::store
