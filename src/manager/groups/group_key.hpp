// A group's key, kept by the hardware TPM for the group's approver: what of it is stored, and when it is given out.
//
// TPM 2.0: one seal for the approver in an epoch (PolicyAuthorize). A platform that is approved later opens it, without anybody
// having had the key in hand. TPM 1.2: one seal for each approved platform; a platform is approved while the group is open.
#pragma once

#include "hwtpm/root_of_trust.hpp"
#include "manager/groups/approval_list.hpp"

namespace vtpmd::manager {

/// Stored with the group. Nothing in it is secret.
struct GroupProtection {
    Bytes approver; ///< DER SubjectPublicKeyInfo
    ApprovalList approved;
    std::vector<hwtpm::SealedSecret> seals; ///< 2.0: one; 1.2: one for each platform, in the list's order
};

/// A new group's key (32 bytes) under its first list. Errc::permission, mismatch and usage as of verify(); 1.2: Errc::usage for a
/// list without platforms, under which the key could never be had.
Task<Result<GroupProtection>> protect_group_key(hwtpm::RootOfTrust& root, SecretBytes key, Bytes approver,
                                                ApprovalList approved);

/// Errc::pcr_mismatch: closed, with what differs from each approved platform; mismatch: another TPM.
Task<Result<SecretBytes>> open_group_key(hwtpm::RootOfTrust& root, GroupProtection protection);

/// The protection under a newer list; nothing has changed if it fails, and what was stored stays right until the result is. To
/// revoke a platform (a new epoch), and on a TPM 1.2 always, the group must be open: `key` is its key. Errc::pcr_mismatch
/// if it is not, rollback for a list that is not newer.
Task<Result<GroupProtection>> update_group(hwtpm::RootOfTrust& root, GroupProtection protection, ApprovalList approved,
                                           std::optional<SecretBytes> key);

} // namespace vtpmd::manager
