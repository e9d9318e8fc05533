// Whether a hardware TPM's quote is what somebody was to be shown: from the bytes alone, without the TPM, the host or
// its manager.
//
//   TPM 2.0  the key's signature (TPMT_SIGNATURE: RSASSA or ECDSA, SHA-256) is over TPMS_ATTEST, which a TPM made
//            (magic) as a
//            quote, with the nonce in extraData, and SHA-256 of the PCR values as pcrDigest (part 2 section 10.12.8)
//   TPM 1.2  the signature (PKCS #1 v1.5, SHA-1) is over TPM_QUOTE_INFO: "QUOT", SHA-1 of TPM_PCR_COMPOSITE, the nonce
//            (part 2
//            section 11.3)
#pragma once

#include "tpm/attestation.hpp"
#include "tpm/version.hpp"

namespace vtpmd::quote {

struct HardwareQuoteCheck {
    TpmVersion version = TpmVersion::tpm20;
    Bytes key;   ///< the attestation key that is trusted, DER SubjectPublicKeyInfo
    Bytes nonce; ///< that the quote was asked for with
    /// What these PCRs have to be; others may be quoted beside them. Empty: whatever was quoted.
    std::vector<hwtpm::PcrValue> pcrs;
};

/// Errc::protocol: malformed; permission: the signature is not this key's; mismatch: another nonce; pcr_mismatch: the
/// values are not those that were signed, or a PCR is not what it has to be (named), or was not quoted.
[[nodiscard]] Result<void> verify_hardware_quote(const hwtpm::Quote& quote, const HardwareQuoteCheck& check);

/// Errc::pcr_mismatch names the first of the wanted ones that is not what it has to be, or was not quoted.
[[nodiscard]] Result<void> compare_pcrs(const std::vector<hwtpm::PcrValue>& quoted,
                                        const std::vector<hwtpm::PcrValue>& wanted);

} // namespace vtpmd::quote
