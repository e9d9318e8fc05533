// What the manager knows: groups, vTPMs with their wrapped hash keys, tombstones, and how fresh all of it is. Pure: the
// journal's records are the only way it changes (apply), and it can say itself again in records (snapshot). Which record may
// follow is in registry_rules.hpp.
//
// Tombstones retire, so that what was deleted does not fill the store for ever: a snapshot leaves them out, and with the
// checkpoint that holds it they are gone (retire). One of a vTPM that never had a state protects nothing and retires with
// the next checkpoint. One of a vTPM that was deleted keeps its UUID from being used again; it may retire once the hardware
// counter has moved past the value that the store had when it was written, since then no copy of the store in which the
// vTPM is there is accepted (freshness.hpp), and the key of its images is destroyed. One of a vTPM that was migrated away
// stays: it is what keeps a second, fresh TPM from being made here.
//
// About 180 bytes a vTPM; it, and what belongs to it, is looked up by hash.
#pragma once

#include "manager/vault/registry_rules.hpp"

#include <functional>
#include <map>
#include <optional>
#include <unordered_map>
#include <unordered_set>

namespace vtpmd::manager {

class Registry final : public RegistryView {
  public:
    struct Vtpm {
        std::uint64_t created = 0;
        std::uint64_t sequence = 0; ///< of the key, or of the reset that took it away; 0: nothing was ever saved
        GroupId group = 0;
        TpmVersion version = TpmVersion::tpm20;
        bool returned = false; ///< records.hpp
        WrappedKey key;        ///< empty: nothing was saved since it was made, or since it was last reset
        [[nodiscard]] bool has_key() const noexcept { return !key.empty(); }
    };
    struct Group {
        Uuid uuid;
        std::uint64_t created = 0;
        std::size_t vtpms = 0;
        Bytes detail;    ///< group_detail.hpp; empty: no approver
        Bytes certifier; ///< certifier_detail.hpp; empty: no certificate was asked for yet
    };
    /// The last reset to factory.
    struct Reset {
        std::uint64_t sequence = 0;
        std::uint64_t when = 0;
        Bytes given_up; ///< records.hpp
    };
    struct Tombstone {
        TombstoneRecord::Reason reason = TombstoneRecord::Reason::deleted;
        std::uint64_t when = 0;
        Uuid group{}; ///< records.hpp
        // Not in the record:
        bool stateless = false;      ///< its vTPM never saved anything
        std::uint64_t freshness = 0; ///< of the store when it was written, at most
    };

    /// Errc::corrupt for a record that cannot follow what was applied before (an unknown vTPM or group, a second
    /// registration, a sequence that goes back); nothing has changed then.
    Result<void> apply(const Record& record);
    /// Records that rebuild this registry in an empty one, groups first.
    void snapshot(const std::function<void(const Record&)>& emit) const { snapshot(emit, {}); }
    /// Without the tombstones of those that are `retired`.
    void snapshot(const std::function<void(const Record&)>& emit, const std::unordered_set<Uuid>& retired) const;

    /// Which tombstones may retire.
    struct Retirement {
        /// The hardware counter as the store counts it; 0: there is none, so that old copies are not noticed.
        std::uint64_t hardware = 0;
        /// Bytes that tombstones may take (SnapshotSize). The oldest go first, until they take half of it.
        std::uint64_t budget = 0;
    };
    [[nodiscard]] std::unordered_set<Uuid> retirable(const Retirement& rules) const;
    /// A snapshot without these is durable.
    void retire(const std::unordered_set<Uuid>& uuids);
    /// All records of the store have been applied: what is known of its tombstones is that they are as old as it.
    void replayed();

    [[nodiscard]] const Vtpm* find(const Uuid& uuid) const;
    [[nodiscard]] const Tombstone* tombstone(const Uuid& uuid) const;
    [[nodiscard]] const Group* group(GroupId id) const;
    /// Looks at each; there are few.
    [[nodiscard]] std::optional<GroupId> find_group(const Uuid& uuid) const;
    /// Empty: it has none, or is not registered.
    [[nodiscard]] std::string_view name(const Uuid& uuid) const;
    /// nullptr: it is not registered, or was never reset.
    [[nodiscard]] const Reset* reset(const Uuid& uuid) const;
    /// The vTPM that has this number (NumberRecord); nullptr: none.
    [[nodiscard]] const Uuid* numbered(std::uint32_t number) const;
    [[nodiscard]] std::optional<std::uint32_t> number_of(const Uuid& uuid) const;
    /// OwnerRecord; 0: none.
    [[nodiscard]] std::uint32_t owner(const Uuid& uuid) const;
    /// How many vTPMs the user has.
    [[nodiscard]] std::size_t owned_by(std::uint32_t user) const;
    /// The highest freshness record; nullopt: there was none.
    [[nodiscard]] std::optional<std::uint64_t> freshness() const noexcept { return freshness_; }

    /// No group had it since this registry was made, so that what is under way for a group that is deleted meanwhile cannot come
    /// to another.
    [[nodiscard]] GroupId next_group_id() const noexcept { return next_group_; }
    /// Bytes of all tombstones in a snapshot.
    [[nodiscard]] std::uint64_t tombstone_bytes() const noexcept { return tombstone_bytes_; }

    // RegistryView
    [[nodiscard]] std::optional<VtpmFacts> vtpm_facts(const Uuid& uuid) const override;
    [[nodiscard]] std::optional<GroupFacts> group_facts(GroupId id) const override;
    [[nodiscard]] std::optional<TombstoneFacts> tombstone_facts(const Uuid& uuid) const override;
    [[nodiscard]] bool number_taken(std::uint32_t number) const override { return numbered_.contains(number); }
    [[nodiscard]] bool group_named(const Uuid& uuid) const override { return find_group(uuid).has_value(); }
    [[nodiscard]] SnapshotSize snapshot_size() const override { return size_; }

    [[nodiscard]] std::size_t vtpm_count() const noexcept { return vtpms_.size(); }
    [[nodiscard]] std::size_t tombstone_count() const noexcept { return tombstones_.size(); }
    [[nodiscard]] const std::unordered_map<Uuid, Vtpm>& vtpms() const noexcept { return vtpms_; }
    [[nodiscard]] const std::map<GroupId, Group>& groups() const noexcept { return groups_; }

  private:
    void on(const GroupRecord& r);
    void on(const VtpmRecord& r);
    void on(const KeyRecord& r);
    void on(const TombstoneRecord& r);
    void on(const FreshnessRecord& r);
    void on(const GroupDetailRecord& r);
    void on(const GroupGoneRecord& r);
    void on(const MovedRecord& r);
    void on(const NameRecord& r);
    void on(const ResetRecord& r);
    void on(const CertifierRecord& r);
    void on(const NumberRecord& r);
    void on(const OwnerRecord& r);
    void count(SnapshotSize before, SnapshotSize after);
    void set_owner(const Uuid& uuid, std::uint32_t user);
    [[nodiscard]] SnapshotSize vtpm_size(const Uuid& uuid) const;
    [[nodiscard]] SnapshotSize group_size(GroupId id) const;
    void drop_tombstone(std::unordered_map<Uuid, Tombstone>::iterator it);

    std::map<GroupId, Group> groups_;
    std::unordered_map<Uuid, Vtpm> vtpms_;
    std::unordered_map<Uuid, Tombstone> tombstones_;
    // Of vTPMs that are there; beside them, since few have one.
    std::unordered_map<Uuid, std::string> names_;
    std::unordered_map<Uuid, Reset> resets_;
    std::unordered_map<Uuid, std::uint32_t> numbers_; ///< few hosts have any
    std::map<std::uint32_t, Uuid> numbered_;          ///< the same, the other way round
    std::unordered_map<Uuid, std::uint32_t> owners_;
    std::unordered_map<std::uint32_t, std::size_t> owned_; ///< the same, counted
    std::optional<std::uint64_t> freshness_;
    GroupId next_group_ = 0;
    SnapshotSize size_ = size_of_nothing();
    std::uint64_t tombstone_bytes_ = 0; ///< in size_
};

} // namespace vtpmd::manager
