// What groups ask of a root of trust beyond sealing: seals that an approver opens, attestation keys, quotes,
// certification.
#pragma once

#include "tpm/pcr_selection.hpp"
#include "tpm/public_key.hpp"
#include "util/bytes.hpp"
#include "util/result.hpp"

#include <vector>

namespace vtpmd::hwtpm {

/// Who says which platform configurations are good. A secret sealed for an approver opens on a platform that the
/// approver has approved, also on one that was approved after it was sealed.
struct Approver {
    Bytes key;       ///< RSA-2048 or ECDSA P-256, DER SubjectPublicKeyInfo
    Bytes reference; ///< what the approvals must be for (a group and its epoch), at most 64 bytes
};
inline constexpr std::size_t reference_limit = 64; ///< TPM2B_NONCE, TPM 2.0 part 2 section 10.4.4

/// An approver's signature over approval_message().
struct Approval {
    PcrSelection selection; ///< not empty
    std::vector<PcrValue> values;
    Bytes signature; ///< SHA-256 with PKCS #1 v1.5, or ECDSA as DER
};

/// TPM2_PolicyPCR's digest from a fresh session (TPM 2.0 part 3 section 23.7), SHA-256.
[[nodiscard]] Result<Bytes> pcr_policy_digest(const PcrSelection& selection, const std::vector<PcrValue>& values);

/// What an approver signs: TPM2_PolicyPCR's digest for these values (32 bytes, TPM 2.0 part 3 section 23.7) ||
/// reference. A TPM
/// 2.0 checks the signature itself (aHash of TPM2_PolicyAuthorize, section 23.16); on a TPM 1.2 the manager does.
[[nodiscard]] Result<Bytes> approval_message(const PcrSelection& selection, const std::vector<PcrValue>& values,
                                             ByteView reference);
/// Errc::permission: not this approver's word for this configuration.
[[nodiscard]] Result<void> verify_approval(const Approver& approver, const Approval& approval);

/// The TPM's endorsement key (RSA-2048), to which a privacy CA encrypts.
struct Endorsement {
    Bytes key;         ///< DER SubjectPublicKeyInfo
    Bytes public_area; ///< TPM2B_PUBLIC (2.0), TPM_PUBKEY (1.2)
    Bytes certificate; ///< DER, by the manufacturer; empty if the TPM has none where the profiles say
};

/// A key that signs only what the TPM itself says. Usable by whoever has the blob and this TPM.
struct AttestationKey {
    Bytes blob;        ///< TPM2B_PUBLIC || TPM2B_PRIVATE (2.0), TPM_KEY (1.2)
    Bytes key;         ///< DER SubjectPublicKeyInfo
    Bytes public_area; ///< TPM2B_PUBLIC (2.0), TPM_PUBKEY (1.2)
    /// 1.2: the identity binding, the key's signature over TPM_IDENTITY_CONTENTS, RSA with SHA-1. 2.0: empty,
    /// credential activation proves more.
    Bytes binding;
};
struct AttestationKeyOptions {
    KeyType type = KeyType::rsa_2048; ///< a TPM 1.2 has RSA only
    /// 1.2: SHA-1 of the identity's label and the privacy CA's key (TPM_CHOSENID_HASH), 20 bytes. 2.0: not used.
    Bytes chosen_id = Bytes(20);
};

struct QuoteRequest {
    Bytes nonce; ///< at most 32 bytes (2.0), exactly 20 (1.2)
    std::vector<PcrSelection> selections;
    /// 1.2: bytes of the TPM_PCR_SELECTION, which are in what is signed; 8 PCRs each.
    std::uint16_t selection_size = 3;
};
struct Quote {
    Bytes attested;               ///< TPMS_ATTEST (2.0), TPM_QUOTE_INFO (1.2): what is signed
    Bytes signature;              ///< TPMT_SIGNATURE (2.0), PKCS #1 v1.5 with SHA-1 (1.2)
    std::vector<PcrValue> values; ///< those that were quoted, by selection and index
};

} // namespace vtpmd::hwtpm
