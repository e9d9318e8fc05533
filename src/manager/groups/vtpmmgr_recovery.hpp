// How the key of a group of the old form gets to its approver, and back to a manager that lost it (GROUP_REGISTER, GROUP_RECOVER1
// and 2 of proto/vtpmmgr/management.hpp): Diffie-Hellman in the 2048-bit group of RFC 3526, section 3 (OpenSSL's modp_2048). Pure.
//
// Xen's manager designed the messages and never built them. What it left open is decided here so that OpenSSL's command line is
// enough for an approver (vtpmd(8), RECOVERY BY THE OLD PROTOCOL). Numbers are big-endian, 256 bytes, padded with zeros:
//   shared  dhkx_1 ^ y = dhkx_2 ^ x mod p
//   key     SHA-256(exchange[4] || group UUID[16] || dhkx_1[256] || dhkx_2[256] || shared[256])
//           exchange: "REGR" for GROUP_REGISTER (dhkx_1 is the approver's), "RCVR" for recovery (dhkx_1 is the manager's)
//   blob    AES-256-CTR(key, counter from 0) of the group's key[32]; a key encrypts one blob
//   proof   the approver's RSA signature, SHA-1, over "REGR" || group UUID[16] || dhkx_1[256]
// The blob has no room for a tag: what it holds is checked against a MAC by the group's key that the manager keeps.
#pragma once

#include "proto/vtpmmgr/management.hpp"
#include "tpm/public_key.hpp"
#include "util/secret_bytes.hpp"

namespace vtpmd::manager {

/// One side's part of an exchange. Its private number does not leave OpenSSL.
class DhHalf {
  public:
    static Result<DhHalf> make();
    [[nodiscard]] const proto::management::Number& value() const noexcept { return value_; }
    /// Errc::usage: `peer` is 0, 1, p-1 or more, or not in the subgroup of prime order.
    [[nodiscard]] Result<SecretBytes> share(const proto::management::Number& peer) const;

  private:
    DhHalf() = default;
    hwtpm::Pkey key_;
    proto::management::Number value_{};
};

struct DhExchange {
    std::string_view name; ///< exchange_register, exchange_recover
    Uuid group;
    proto::management::Number first{};  ///< dhkx_1
    proto::management::Number second{}; ///< dhkx_2
};
inline constexpr std::string_view exchange_register = "REGR";
inline constexpr std::string_view exchange_recover = "RCVR";

/// What the approver signs to register.
[[nodiscard]] Bytes register_message(const Uuid& group, const proto::management::Number& approver_half);

/// key: 32 bytes.
[[nodiscard]] Result<proto::management::Blob> close_blob(const DhExchange& exchange, const SecretBytes& shared,
                                                         const SecretBytes& key);
/// Whatever comes out: the caller checks it.
[[nodiscard]] Result<SecretBytes> open_blob(const DhExchange& exchange, const SecretBytes& shared,
                                            const proto::management::Blob& blob);

} // namespace vtpmd::manager
