// SHA-1, which everything of a TPM 1.2 is made with: digests, and the HMAC of its authorisations (Main part 1 section
// 13).
#pragma once

#include "util/bytes.hpp"
#include "util/result.hpp"
#include "util/secret_bytes.hpp"

#include <array>
#include <initializer_list>

namespace vtpmd::tpm {

inline constexpr std::size_t sha1_size = 20;
using Sha1Digest = std::array<std::byte, sha1_size>;

/// Over all parts, one behind the other. Errc::unsupported: OpenSSL refuses it here.
[[nodiscard]] Result<Sha1Digest> sha1(std::initializer_list<ByteView> parts);
[[nodiscard]] Result<Sha1Digest> hmac_sha1(const SecretBytes& key, std::initializer_list<ByteView> parts);

} // namespace vtpmd::tpm
