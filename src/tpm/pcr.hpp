// PCR values and how they differ. Pure.
#pragma once

#include "tpm/pcr_selection.hpp"

namespace vtpmd::hwtpm {

inline constexpr unsigned pcr_count = 24; ///< PC Client Platform TPM Profile: PCR 0-23

[[nodiscard]] std::string_view bank_name(HashAlg bank);
/// Bytes.
[[nodiscard]] std::size_t digest_size(HashAlg bank);

/// A PCR that nothing has measured into: all zeros, or all ones (17-22 before a dynamic launch). A seal to it would
/// open on any machine state that was never measured.
[[nodiscard]] bool untouched(ByteView digest);

/// True if the values are those of the selection: bank, indices in order, sizes.
[[nodiscard]] bool fits(const std::vector<PcrValue>& values, const PcrSelection& selection);

/// SHA-1 of the TPM_PCR_COMPOSITE (TPM Main part 2 section 8.2) of these values: 24 PCRs selectable, the selection's in
/// order. With values of another bank it is a digest in the same form, which no TPM 1.2 makes.
[[nodiscard]] Result<Bytes> pcr_composite(const PcrSelection& selection, const std::vector<PcrValue>& values);

/// One text a PCR that is not what it was: "sha256:4 sealed=... now=...".
[[nodiscard]] std::vector<std::string> pcr_differences(const std::vector<PcrValue>& sealed,
                                                       const std::vector<PcrValue>& present);

} // namespace vtpmd::hwtpm
