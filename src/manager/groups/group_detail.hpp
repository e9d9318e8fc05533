// What the journal keeps of a group beside its UUID. Nothing in it is secret: the key is in seals, and in a box for recovery.
//
// Recovery: the manager made an ephemeral P-256 key, took ECDH with the approver's recovery key, and forgot the private part.
// The challenge is the ephemeral public key. Who has the recovery key finds the same shared secret again, with plain OpenSSL:
//   openssl pkeyutl -derive -inkey recovery.pem -peerkey challenge.pem -out shared
// A secret opens one box only, and recovery makes the next one at once.
#pragma once

#include "manager/groups/group_key.hpp"
#include "proto/vtpmmgr/management.hpp"

namespace vtpmd::manager {

struct GroupRecovery {
    Bytes key;       ///< the approver's, DER SubjectPublicKeyInfo; empty: none
    Bytes challenge; ///< DER SubjectPublicKeyInfo
    Bytes box;       ///< the group's key
};

/// What GROUP_REGISTER gave an approver (vtpmmgr_recovery.hpp).
struct OldRegistration {
    proto::management::Number approver_half{};
    proto::management::Number manager_half{};
    proto::management::Blob blob{};
    std::array<std::byte, 32> check{}; ///< a MAC by the group's key: whether what comes back is that key
    friend bool operator==(const OldRegistration&, const OldRegistration&) = default;
};

/// Of a group in the form of Xen's old manager (vtpmmgr_group.hpp).
struct OldForm {
    std::optional<proto::management::GroupUpdate>
        update; ///< its list as it was signed; none yet: open wherever the store is
    Bytes box;  ///< the group's key, under one of the store's; empty: it is in the protection's seals
    std::optional<OldRegistration> registration;
    bool sealed_box = false; ///< registered: the protection's one seal is of the box
};

struct GroupDetail {
    GroupProtection protection;
    hwtpm::AttestationKey attestation; ///< no blob: none
    GroupRecovery recovery;
    std::optional<OldForm> old; ///< then the protection's list has no platforms and no signature
};

/// Layout beside the codec.
[[nodiscard]] Bytes encode(const GroupDetail& detail);
/// Errc::version, Errc::corrupt.
[[nodiscard]] Result<GroupDetail> decode_group_detail(ByteView bytes);

/// A new challenge and box for the holder of `recovery_key`. Errc::usage: it is no P-256 key.
[[nodiscard]] Result<GroupRecovery> keep_for_recovery(const Uuid& group, ByteView recovery_key,
                                                      const SecretBytes& group_key);
/// Errc::permission: not the secret shared with this challenge; usage: no recovery key was ever given.
[[nodiscard]] Result<SecretBytes> recover_key(const Uuid& group, const GroupRecovery& recovery,
                                              const SecretBytes& shared);

} // namespace vtpmd::manager
