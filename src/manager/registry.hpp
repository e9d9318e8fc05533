// What the manager knows: groups, vTPMs with their wrapped hash keys, tombstones, and how fresh all of it is. Pure: the
// journal's records are the only way it changes (apply), and it can say itself again in records (snapshot).
//
// About 180 bytes a vTPM; it, and what belongs to it, is looked up by hash.
#pragma once

#include "manager/records.hpp"

#include <functional>
#include <map>
#include <optional>
#include <unordered_map>

namespace vtpmd::manager {

class Registry {
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
    };

    /// Errc::corrupt for a record that cannot follow what was applied before (an unknown vTPM or group, a second
    /// registration, a sequence that goes back); nothing has changed then.
    Result<void> apply(const Record& record);
    /// Records that rebuild this registry in an empty one, groups first.
    void snapshot(const std::function<void(const Record&)>& emit) const;

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
    /// The highest freshness record; nullopt: there was none.
    [[nodiscard]] std::optional<std::uint64_t> freshness() const noexcept { return freshness_; }

    [[nodiscard]] std::size_t vtpm_count() const noexcept { return vtpms_.size(); }
    [[nodiscard]] std::size_t tombstone_count() const noexcept { return tombstones_.size(); }
    [[nodiscard]] const std::unordered_map<Uuid, Vtpm>& vtpms() const noexcept { return vtpms_; }
    [[nodiscard]] const std::map<GroupId, Group>& groups() const noexcept { return groups_; }

  private:
    Result<void> on(const GroupRecord& r);
    Result<void> on(const VtpmRecord& r);
    Result<void> on(const KeyRecord& r);
    Result<void> on(const TombstoneRecord& r);
    Result<void> on(const FreshnessRecord& r);
    Result<void> on(const GroupDetailRecord& r);
    Result<void> on(const GroupGoneRecord& r);
    Result<void> on(const MovedRecord& r);
    Result<void> on(const NameRecord& r);
    Result<void> on(const ResetRecord& r);
    Result<void> on(const CertifierRecord& r);
    Result<void> on(const NumberRecord& r);

    std::map<GroupId, Group> groups_;
    std::unordered_map<Uuid, Vtpm> vtpms_;
    std::unordered_map<Uuid, Tombstone> tombstones_;
    // Of vTPMs that are there; beside them, since few have one.
    std::unordered_map<Uuid, std::string> names_;
    std::unordered_map<Uuid, Reset> resets_;
    std::unordered_map<Uuid, std::uint32_t> numbers_; ///< few hosts have any
    std::map<std::uint32_t, Uuid> numbered_;          ///< the same, the other way round
    std::optional<std::uint64_t> freshness_;
};

} // namespace vtpmd::manager
