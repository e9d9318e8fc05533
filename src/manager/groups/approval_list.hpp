// What a group's approver has approved: the platforms on which the group opens, and the labels of the vTPMs that it admits. Pure.
//
// A list is signed as a whole; each of its platforms is signed by itself too, in the form that a TPM 2.0 checks
// (hwtpm::approval_message), with a reference to the group and its epoch. Sequence numbers only rise, so an old list is not
// taken again. To take a platform away the epoch rises: the group's key is then sealed for the new epoch, and no TPM honours
// what was signed for an earlier one. Within an epoch platforms are only added.
#pragma once

#include "tpm/attestation.hpp"
#include "util/uuid.hpp"

#include <array>
#include <optional>

namespace vtpmd::manager {

using LabelHash = std::array<std::byte, 20>; ///< SHA-1 of a vTPM's label (WIRE: "kernel hash")

struct ApprovalList {
    Uuid group;
    std::uint64_t epoch = 1;
    std::uint64_t sequence = 1;
    std::vector<hwtpm::Approval> platforms;
    std::vector<LabelHash> labels; ///< empty: any vTPM
    Bytes signature;               ///< over encode_for_signing(), as hwtpm::Approval::signature
};
inline constexpr std::size_t platform_limit = 64;
inline constexpr std::size_t label_limit = 1024;

/// The approver's reference for a group in an epoch: 24 bytes.
[[nodiscard]] Bytes reference_of(const Uuid& group, std::uint64_t epoch);
/// Everything but the signature.
[[nodiscard]] Bytes encode_for_signing(const ApprovalList& list);
[[nodiscard]] Bytes encode(const ApprovalList& list);
/// Errc::version, Errc::corrupt, Errc::too_large.
[[nodiscard]] Result<ApprovalList> decode_approval_list(ByteView bytes);

/// The list is this approver's (DER SubjectPublicKeyInfo) for this group, with every platform in it. Errc::mismatch: another
/// group's; Errc::permission: a signature.
[[nodiscard]] Result<void> verify(const ApprovalList& list, const Uuid& group, ByteView approver);
/// Whether `proposed`, verified, may take the place of `current`. Errc::rollback: it is not newer; Errc::usage: a platform is
/// gone, or signed for another epoch.
[[nodiscard]] Result<void> may_replace(const ApprovalList& current, const ApprovalList& proposed);

/// The approved platform that the present PCRs are, by its place in the list.
[[nodiscard]] std::optional<std::size_t> find_platform(const ApprovalList& list,
                                                       const std::vector<hwtpm::PcrValue>& present);
/// Why none is: for each platform what differs. For people.
[[nodiscard]] std::string explain_closed(const ApprovalList& list, const std::vector<hwtpm::PcrValue>& present);
/// The selections whose values find_platform() needs.
[[nodiscard]] std::vector<hwtpm::PcrSelection> selections_of(const ApprovalList& list);

/// What the approver signs (as an approval list) to name a recovery key: "vtpmd recovery key" || group[16] || DER
/// SubjectPublicKeyInfo.
[[nodiscard]] Bytes recovery_message(const Uuid& group, ByteView recovery_key);

[[nodiscard]] bool admits(const ApprovalList& list, const LabelHash& label);

} // namespace vtpmd::manager
