// Deep quotes in the form of Xen's vTPM and its manager: a hardware TPM 1.2 signs a TPM_QUOTE_INFO (TPM Main part 2
// section 11.3) over the hardware's PCRs and, as external data,
//
//   SHA1(u32 flags, little-endian || data[20] || SHA1[20] of what each flag names)
//
// flags are tpm::old_quote; what they name: the vTPM's uuid[16]; the hash[20] of its label; the approver's modulus[256]
// and the group's list (proto/vtpmmgr/management.hpp); the approver's modulus[256]. They are hashed in the byte order
// of the machine that the manager ran on, which was always x86. data is what the vTPM has given:
//
//   TPM_ORD_DeepQuote     SHA1(00000000 "DQUT" || nonce[20] || TPM_PCR_INFO_SHORT of the vTPM's PCRs (part 2 section
//                         8.5))
//   TPM_ORD_ParentSignEK  SHA1(TPM_PUBKEY of its endorsement key || nonce[20]), without flags
//
// A guest gets signature[256], the hashes of the flags, the values of the hardware's PCRs. The vTPM's own PCRs and what
// was asked are not in it: who checks it knows them.
//
// What it proves: the hardware's PCRs, by the hardware. With flag 1 the vTPM's UUID, by the host's manager; without it,
// that one of the group's vTPMs was shown. The vTPM's PCRs or endorsement key, by the vTPM's own process on that host.
#pragma once

#include "tpm/attestation.hpp"
#include "tpm/sha1.hpp"
#include "util/uuid.hpp"

#include <optional>

namespace vtpmd::quote {

/// TPM_PCR_SELECTION and what stands in these PCRs. Pure bytes: a selection of two bytes is not the same as one of
/// three.
struct OldPcrs {
    Bytes selection; ///< bit i is PCR i; 1 to 3 bytes
    Bytes values;    ///< 20 bytes each, ascending
};
/// Indices, ascending.
[[nodiscard]] std::vector<unsigned> selected(ByteView selection);
/// SHA-1 of TPM_PCR_COMPOSITE (part 2 section 8.2); zeros if nothing is selected.
[[nodiscard]] Result<tpm::Sha1Digest> old_composite(const OldPcrs& pcrs);

/// What TPM_ORD_DeepQuote has signed: `pcrs` are the vTPM's, as a guest sees them at `locality` (0 to 4).
[[nodiscard]] Result<tpm::Sha1Digest> old_vtpm_digest(ByteView nonce, const OldPcrs& pcrs, unsigned locality);
/// What TPM_ORD_ParentSignEK has signed.
[[nodiscard]] Result<tpm::Sha1Digest> old_endorsement_digest(ByteView pubkey, ByteView nonce);
/// The hardware quote's external data. `hashes`: 20 bytes a flag.
[[nodiscard]] Result<tpm::Sha1Digest> old_external_data(std::uint32_t flags, ByteView data, ByteView hashes);

enum class OldCommand { deep_quote, parent_sign_ek };

/// What the verifier knows before it looks at an answer.
struct OldQuoteCheck {
    OldCommand command = OldCommand::deep_quote;
    /// The command's parameters, as the guest sent them, without authorisation:
    /// DeepQuote nonce[20], selection of the vTPM, selection of the hardware, u32 flags; ParentSignEK nonce[20],
    /// selection of the hardware.
    Bytes parameters;
    Bytes key;             ///< the group's attestation key, DER SubjectPublicKeyInfo
    Bytes nonce;           ///< 20 bytes
    unsigned locality = 0; ///< at which the guest asked
    /// DeepQuote: needs flag 1.
    std::optional<Uuid> vtpm;
    /// DeepQuote: the group's approver, DER SubjectPublicKeyInfo; needs flag 8. Empty: whoever it is.
    Bytes approver;
    Bytes endorsement_key; ///< ParentSignEK: DER SubjectPublicKeyInfo, RSA-2048
    /// DeepQuote: the vTPM's. All that were asked for have to be there.
    std::vector<hwtpm::PcrValue> pcrs;
    /// What these of the hardware have to be; others may be quoted beside them.
    std::vector<hwtpm::PcrValue> host_pcrs;
};

/// The TPM_QUOTE_INFO, its signature, and the values of the hardware's PCRs, as they follow from `answer` and from what
/// the verifier knows; nothing of it is verified. Errc::usage: an expected PCR is missing, or a flag for what is
/// expected; protocol: malformed.
[[nodiscard]] Result<hwtpm::Quote> old_hardware_quote(ByteView answer, const OldQuoteCheck& check);

/// `answer`: what the command was answered with, without authorisation. Errc::usage, protocol as old_hardware_quote();
/// permission: the signature is not this key's; mismatch: another nonce, UUID, approver (each by its name), or the TPM
/// signed something else, for which what remains is named; pcr_mismatch: a PCR of the hardware is not what it has to
/// be.
[[nodiscard]] Result<hwtpm::Quote> verify_old_quote(ByteView answer, const OldQuoteCheck& check);

} // namespace vtpmd::quote
