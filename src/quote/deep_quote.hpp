// A deep quote: a hardware TPM says which vTPM this is, of which group, with which endorsement key and which PCRs. It
// is a hardware quote by the group's attestation key, and its nonce is a digest that binds the rest:
//
//   H("vtpmd quote 1" || vTPM's uuid[16] || group's uuid[16] || u16 n, endorsement[n] || u16 n, pcrs[n] || u16 n,
//   nonce[n])
//
// big-endian; H is SHA-256 on a hardware TPM 2.0, SHA-1 on a TPM 1.2. endorsement is SHA-256 of the vTPM's endorsement
// key (DER SubjectPublicKeyInfo); pcrs is SHA-256 of its PCRs, each u16 TPM_ALG_ID, u8 index, u8 n, value[n].
//
// What it proves: the hardware's PCRs, by the hardware; the UUIDs, by the host's manager, which alone can use the
// group's key and only on a platform that the group's approver approved; the endorsement key and the vTPM's PCRs, by
// the vTPM's own process on that host.
#pragma once

#include "tpm/attestation.hpp"
#include "tpm/version.hpp"
#include "util/uuid.hpp"

#include <optional>

namespace vtpmd::quote {

struct DeepQuoteClaims {
    Uuid vtpm;
    Uuid group;
    Bytes endorsement; ///< digests, see above
    Bytes pcrs;
    Bytes nonce; ///< whoever is to be shown something chose it
};

/// The hardware quote's nonce. Errc::too_large: a part of more than 65535 bytes.
[[nodiscard]] Result<Bytes> deep_quote_digest(TpmVersion hardware, const DeepQuoteClaims& claims);
/// Of the vTPM's endorsement key, DER SubjectPublicKeyInfo.
[[nodiscard]] Result<Bytes> endorsement_digest(ByteView spki);
/// The same, of a TPM 1.2's TPM_PUBKEY. Errc::protocol.
[[nodiscard]] Result<Bytes> endorsement_digest_12(ByteView pubkey);
/// The same, of a TPM 2.0's RSA key by its modulus.
[[nodiscard]] Result<Bytes> endorsement_digest_rsa(ByteView modulus);
/// Of the vTPM's PCRs, in the order given.
[[nodiscard]] Result<Bytes> pcrs_digest(const std::vector<hwtpm::PcrValue>& pcrs);

struct DeepQuote {
    TpmVersion hardware = TpmVersion::tpm20;
    DeepQuoteClaims claims;
    std::vector<hwtpm::PcrValue> pcrs; ///< the vTPM's, whose digest the claims have
    hwtpm::Quote quote;
};

/// As a file, and as a guest's TPM gives it, big-endian:
///   magic[8] "vtpmdDQ1" | u8 hardware family (1: 1.2, 2: 2.0) | vTPM's uuid[16] | group's uuid[16] | u16 n,
///   endorsement[n] | u16 n, nonce[n] | PCRs of the vTPM | u16 n, attested[n] | u16 n, signature[n] | PCRs of the
///   hardware
/// PCRs are u8 n, n * (u16 TPM_ALG_ID, u8 PCR, u8 n, value[n]). claims.pcrs is not in it: the PCRs are.
/// Errc::too_large: a part of more than 65535 bytes, or too many PCRs.
[[nodiscard]] Result<Bytes> encode(const DeepQuote& deep);
/// Errc::not_ours: it does not begin as one; protocol: malformed.
[[nodiscard]] Result<DeepQuote> decode_deep_quote(ByteView bytes);

struct DeepQuoteCheck {
    Bytes key; ///< the group's attestation key, which is trusted, DER SubjectPublicKeyInfo
    Uuid vtpm;
    std::optional<Uuid> group; ///< none: whichever it is that has this key
    Bytes endorsement_key;     ///< the vTPM's, DER SubjectPublicKeyInfo
    Bytes nonce;
    /// What these have to be; others may be quoted beside them.
    std::vector<hwtpm::PcrValue> pcrs;      ///< the vTPM's
    std::vector<hwtpm::PcrValue> host_pcrs; ///< the hardware's
};

/// Errc::protocol, permission, pcr_mismatch as verify_hardware_quote(); mismatch: what stands beside the quote is not
/// what was signed; or it is, and is another vTPM's, group's, endorsement key's or nonce's (each by its name).
[[nodiscard]] Result<void> verify_deep_quote(const DeepQuote& deep, const DeepQuoteCheck& check);

} // namespace vtpmd::quote
