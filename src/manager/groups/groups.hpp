// The groups that this manager keeps: each has an approver, who says on which platforms it opens, an attestation key in the
// hardware TPM, and its vTPMs. Group 0 is the store's own: it has no approver, opens with the store, and cannot be deleted.
//
// A group whose platforms are not the present one stays closed: its vTPMs are refused, with what differs, and nothing of it is
// changed or made again. All that is durable goes through the vault; the keys of open groups are held there.
#pragma once

#include "manager/groups/group_detail.hpp"
#include "manager/groups/vtpmmgr_recovery.hpp"
#include "manager/vault/vault.hpp"
#include "util/fifo_lock.hpp"

#include <optional>

namespace vtpmd::manager {

struct GroupInfo {
    GroupId id = 0;
    Uuid uuid;
    std::uint64_t created = 0;
    std::size_t vtpms = 0;
    bool open = false;
    std::string why_closed; ///< one line, for people
    Bytes approver;         ///< DER SubjectPublicKeyInfo; empty: group 0
    std::uint64_t epoch = 0;
    std::uint64_t sequence = 0;
    std::vector<hwtpm::Approval> platforms;
    std::vector<LabelHash> labels; ///< empty: any vTPM
    Bytes attestation_key;         ///< DER SubjectPublicKeyInfo; empty: none
    Bytes attestation_public;      ///< TPM2B_PUBLIC (2.0), TPM_PUBKEY (1.2)
    Bytes identity_binding;        ///< 1.2, see hwtpm::AttestationKey
    /// DER SubjectPublicKeyInfo: what recover() wants the shared secret with; empty: no recovery.
    Bytes recovery_challenge;
    std::optional<OldForm> old; ///< a group of the old form: its platforms are here
};

class Groups {
  public:
    /// All of it outlives the groups.
    struct Parts {
        asio::any_io_executor executor;
        Vault& vault;
        hwtpm::RootOfTrust& root;
        const Log& log;
    };
    explicit Groups(Parts parts);

    /// At start, and when PCRs may have changed: opens what can be opened. A group that does not is logged, and harms no other.
    Task<> open_all();
    /// Errc::not_found; else why it stays closed (pcr_mismatch, mismatch).
    Task<Result<void>> open(GroupId id);

    [[nodiscard]] std::vector<GroupInfo> list() const;
    [[nodiscard]] Result<GroupInfo> show(GroupId id) const;
    [[nodiscard]] std::optional<GroupId> find(const Uuid& uuid) const;

    /// Whether a vTPM may be opened by a peer of this label (LinkInfo::boot_hash). Errc::pcr_mismatch: its group is closed;
    /// permission: the approver does not admit that label.
    [[nodiscard]] Result<void> admit(const Uuid& vtpm, const LabelHash& label) const;

    /// The first list names the group's UUID, which the approver has chosen: it must be new here.
    struct Create {
        Bytes approver; ///< DER SubjectPublicKeyInfo, RSA-2048 or ECDSA P-256
        ApprovalList approved;
        /// P-256, DER SubjectPublicKeyInfo: the group's key is kept for its holder too. Empty: no recovery.
        Bytes recovery_key;
        /// The approver's signature over recovery_message().
        Bytes recovery_signature;
        Bytes chosen_id = Bytes(20); ///< hwtpm::AttestationKeyOptions
    };
    Task<Result<GroupId>> create(Create request);
    /// A group of the old form, with a UUID of its own. `modulus`: the approver's, RSA-2048. Errc::usage.
    Task<Result<GroupId>> create_old(Bytes modulus, Bytes chosen_id);
    /// As update(), for such a group. Errors of update_old_group().
    Task<Result<void>> update_old(GroupId id, proto::management::GroupUpdate update);
    /// GROUP_REGISTER of a group of the old form, while it is open. Errors of register_old_group(); pcr_mismatch: closed.
    Task<Result<OldRegistration>> register_old(GroupId id, proto::management::GroupRegister request);
    /// GROUP_RECOVER1 of such a group that is closed: our half of the exchange in which its key comes back. It is good for one
    /// recover_old(), until the next begin_recovery(). Errc::exists: the group is open; usage: never registered.
    Task<Result<proto::management::Number>> begin_recovery(GroupId id);
    /// GROUP_RECOVER2. The group's key is sealed to this TPM, and it gets a new attestation key. It is open then, also on a platform
    /// that its list does not name, until the manager starts again: so long its approver can send a list. Errc::usage: no
    /// begin_recovery() before; permission: not the group's key.
    Task<Result<void>> recover_old(GroupId id, proto::management::GroupRecover2 answer);
    /// Errc::busy while it has vTPMs; usage for group 0.
    Task<Result<void>> remove(GroupId id);
    /// A newer list in place of the present one. To revoke a platform is a list of a new epoch without it. Opens the group if the
    /// present platform is now approved, closes it if it is not any more.
    Task<Result<void>> update(GroupId id, ApprovalList approved);

    /// By the group's attestation key.
    Task<Result<hwtpm::Quote>> quote(GroupId id, hwtpm::QuoteRequest request);
    Task<Result<SecretBytes>> activate(GroupId id, Bytes credential);

    /// After the TPM was replaced. `shared` is ECDH between the recovery key and the challenge (the x coordinate, 32 bytes: openssl
    /// pkeyutl -derive). The group's key is sealed to this TPM under the present list, and gets a new challenge and a new
    /// attestation key. Errc::permission: not that secret.
    Task<Result<void>> recover(GroupId id, SecretBytes shared);

  private:
    [[nodiscard]] Result<GroupDetail> detail(GroupId id) const;
    /// Of a group of the old form that can be recovered.
    [[nodiscard]] Result<GroupDetail> lost(GroupId id) const;
    Task<Result<void>> store(GroupId id, GroupDetail detail);
    Task<Result<void>> try_open(GroupId id);
    Task<Result<SecretBytes>> new_key();
    /// Stores a new group, with an attestation key, and opens it.
    Task<Result<GroupId>> add(GroupDetail made, Bytes chosen_id);
    [[nodiscard]] Result<void> room_for(const Uuid& uuid) const;

    Parts parts_;
    FifoLock lock_;                    ///< one change at a time
    std::map<Uuid, DhHalf> exchanges_; ///< begun recoveries, by group
};

} // namespace vtpmd::manager
