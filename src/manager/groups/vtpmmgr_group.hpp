// A group in the form of Xen's old manager (proto/vtpmmgr/management.hpp): its approver has an RSA-2048 key, and names platforms by the
// SHA-1 of their TPM_PCR_COMPOSITE, in a list signed with SHA-1.
//
// Where the group's key is:
//   until the first list, both families: in a box under a key of the store's, so the group opens where the store does;
//   TPM 1.2: sealed by the TPM, once to each composite of the list;
//   TPM 2.0: in that box still. A TPM 2.0 cannot be made to open at a composite of which the values are not known, so there the
//   manager compares the composite, and what the TPM itself enforces is the store's seal. A group of our own form
//   (group_key.hpp) has its seal by PolicyAuthorize.
// Once its approver has registered (GROUP_REGISTER), no other TPM opens the group, whoever has the store: a box is itself sealed by
// the TPM, to no PCR. After the TPM was replaced it comes back by recovery alone (vtpmmgr_recovery.hpp).
// A composite is one of the SHA-1 bank; of a TPM without that bank it is made of the SHA-256 bank's values.
#pragma once

#include "manager/groups/group_detail.hpp"
#include "manager/groups/vtpmmgr_recovery.hpp"

namespace vtpmd::manager {

/// DER SubjectPublicKeyInfo. Errc::usage: no RSA-2048 modulus.
[[nodiscard]] Result<Bytes> old_approver(ByteView modulus);

/// A new group, with no list yet. `escrow` is the store's key for this group (Vault::escrow_key).
[[nodiscard]] GroupDetail new_old_group(const Uuid& group, Bytes approver, const SecretBytes& escrow,
                                        const SecretBytes& key);

/// Errc::pcr_mismatch: closed, no composite of the list is the present one; mismatch: another TPM.
Task<Result<SecretBytes>> open_old_group(hwtpm::RootOfTrust& root, GroupDetail detail, SecretBytes escrow);

/// The group under a newer list; nothing has changed if it fails. On a TPM 1.2 the group must be open: `key` is its key.
/// Errc::permission: not this approver's signature; rollback: not newer; pcr_mismatch: closed; usage: another form of group, no
/// platforms, or one without PCRs; too_large.
Task<Result<GroupDetail>> update_old_group(hwtpm::RootOfTrust& root, GroupDetail detail,
                                           proto::management::GroupUpdate update, std::optional<SecretBytes> key);

/// The approver's registration of an open group, `key`. Asked for again with the same half it is the one that was made. Errc::
/// permission: not the approver's proof for this group; usage: no such half, another form of group; exists: there is one, with
/// another half.
Task<Result<GroupDetail>> register_old_group(hwtpm::RootOfTrust& root, GroupDetail detail,
                                             proto::management::GroupRegister request, SecretBytes escrow,
                                             SecretBytes key);

/// The group's key, as its approver sends it in answer to `own`. Errc::permission: it is not; usage: no such half, or nobody has
/// registered.
[[nodiscard]] Result<SecretBytes> recovered_key(const GroupDetail& detail, const DhHalf& own,
                                                const proto::management::GroupRecover2& answer);
/// The group with its key under the present TPM, as its list and registration want it.
Task<Result<GroupDetail>> protect_old_group(hwtpm::RootOfTrust& root, GroupDetail detail, SecretBytes escrow,
                                            SecretBytes key);

} // namespace vtpmd::manager
