// Which record may follow what is there, and what everything takes in a snapshot. Pure.
//
// The rules stand once. Replay asks them for each record before it is applied (Occasion::replay); the journal asks them for
// each record of a batch before it is encoded (Occasion::write), on the registry with the batch so far, which is a Draft.
// So what is written can be replayed, whoever asked for it and however many at once.
//
// Some things are taken at replay and never written: a snapshot says of a vTPM that is gone only that it is gone, and older
// programs wrote a name for a vTPM that had just been deleted.
#pragma once

#include "manager/vault/records.hpp"

#include <map>
#include <optional>
#include <unordered_map>

namespace vtpmd::manager {

struct VtpmFacts {
    std::uint64_t sequence = 0;
    GroupId group = 0;
    bool returned = false;
    std::uint32_t number = 0;   ///< 0: none
    std::uint32_t owner = 0;    ///< 0: none
    std::size_t name_size = 0;  ///< 0: none
    std::size_t reset_size = 0; ///< of the hash that was given up; 0: never reset
    std::size_t key_size = 0;   ///< 0: none
};
struct GroupFacts {
    Uuid uuid;
    std::size_t vtpms = 0;
    std::size_t detail_size = 0;
    std::size_t certifier_size = 0;
};
struct TombstoneFacts {
    TombstoneRecord::Reason reason = TombstoneRecord::Reason::deleted;
    bool grouped = false; ///< it names a group
};

/// Bytes of the records of a snapshot, each counted with 4 bytes more (as a frame has it).
struct SnapshotSize {
    std::uint64_t now = 0;
    /// When every vTPM that is registered has a name, a number, a key and was reset, and every group has a CA. An owner is
    /// counted once there is one: few have any.
    std::uint64_t most = 0;
    friend bool operator==(const SnapshotSize&, const SnapshotSize&) = default;
};
[[nodiscard]] SnapshotSize size_of(const VtpmFacts& v);
[[nodiscard]] SnapshotSize size_of(const GroupFacts& g);
[[nodiscard]] SnapshotSize size_of(const TombstoneFacts& t);
/// What every snapshot has: how fresh it is.
[[nodiscard]] SnapshotSize size_of_nothing();
/// Bytes that are kept for the CA of a group that has none yet.
inline constexpr std::size_t certifier_reserve = 2048;

/// What the rules look at.
class RegistryView {
  public:
    virtual ~RegistryView() = default;
    [[nodiscard]] virtual std::optional<VtpmFacts> vtpm_facts(const Uuid& uuid) const = 0;
    [[nodiscard]] virtual std::optional<GroupFacts> group_facts(GroupId id) const = 0;
    [[nodiscard]] virtual std::optional<TombstoneFacts> tombstone_facts(const Uuid& uuid) const = 0;
    [[nodiscard]] virtual bool number_taken(std::uint32_t number) const = 0;
    [[nodiscard]] virtual bool group_named(const Uuid& uuid) const = 0;
    [[nodiscard]] virtual SnapshotSize snapshot_size() const = 0;

  protected:
    RegistryView() = default;
    RegistryView(const RegistryView&) = default;
    RegistryView(RegistryView&&) = default;
    RegistryView& operator=(const RegistryView&) = default;
    RegistryView& operator=(RegistryView&&) = default;
};

enum class Occasion { replay, write };
/// Errc::not_found, exists, tombstone, busy (somebody else was quicker), usage: why the record cannot follow.
[[nodiscard]] Result<void> check(const RegistryView& there, const Record& record, Occasion occasion);

/// Which snapshots a store takes. Of the `room` that a checkpoint has for records (store::JournalCounters), an eighth is kept
/// free, so that there is space for batches behind it: a new vTPM or group that could make the store come to more than the
/// rest is not let in. So every vTPM that was let in can be saved, named, numbered and reset. A group's keys and CA may
/// become larger up to 31/32. A store that an older program let come to more still saves what was saved before, and
/// deletes; what would make it larger is refused from 31/32 of the room on.
struct Admission {
    enum class Kind { registers, changes };
    std::uint64_t room = 0;
    [[nodiscard]] constexpr std::uint64_t limit() const { return room / 8 * 7; }
    [[nodiscard]] constexpr std::uint64_t last() const { return room - room / 32; }
    [[nodiscard]] constexpr bool admits(SnapshotSize before, SnapshotSize after, Kind kind) const {
        if (after.most > before.most) {
            return after.most <= (kind == Kind::registers ? limit() : last());
        }
        return after.most < before.most || after.now <= before.now || after.now <= last();
    }
};

/// A registry as it will be when some more records are applied. The registry below outlives it and does not change.
class Draft final : public RegistryView {
  public:
    explicit Draft(const RegistryView* below)
        : below_(below) {}
    Draft(const Draft&) = delete;
    Draft& operator=(const Draft&) = delete;
    Draft(Draft&&) = default;
    Draft& operator=(Draft&&) = default;
    ~Draft() override = default;
    /// check(), then it counts. Nothing has changed after an error.
    Result<void> add(const Record& record);
    /// All of `later`, which was made on this one.
    void absorb(Draft later);

    [[nodiscard]] std::optional<VtpmFacts> vtpm_facts(const Uuid& uuid) const override;
    [[nodiscard]] std::optional<GroupFacts> group_facts(GroupId id) const override;
    [[nodiscard]] std::optional<TombstoneFacts> tombstone_facts(const Uuid& uuid) const override;
    [[nodiscard]] bool number_taken(std::uint32_t number) const override;
    [[nodiscard]] bool group_named(const Uuid& uuid) const override;
    [[nodiscard]] SnapshotSize snapshot_size() const override;

  private:
    template <typename T>
    void count(const std::optional<T>& before, const std::optional<T>& after);
    void put(const Uuid& uuid, std::optional<VtpmFacts> after);
    void put(GroupId id, std::optional<GroupFacts> after);
    void put(const Uuid& uuid, std::optional<TombstoneFacts> after);
    void count_members(GroupId id, int by);

    void take(const GroupRecord& r);
    void take(const VtpmRecord& r);
    void take(const KeyRecord& r);
    void take(const TombstoneRecord& r);
    void take(const FreshnessRecord& r);
    void take(const GroupDetailRecord& r);
    void take(const GroupGoneRecord& r);
    void take(const MovedRecord& r);
    void take(const NameRecord& r);
    void take(const ResetRecord& r);
    void take(const CertifierRecord& r);
    void take(const NumberRecord& r);
    void take(const OwnerRecord& r);

    const RegistryView* below_;
    // nullopt: it is not there any more.
    std::unordered_map<Uuid, std::optional<VtpmFacts>> vtpms_;
    std::unordered_map<Uuid, std::optional<TombstoneFacts>> tombstones_;
    std::map<GroupId, std::optional<GroupFacts>> groups_;
    std::map<std::uint32_t, bool> numbers_;
    // Differences to below_; they wrap.
    std::uint64_t now_ = 0;
    std::uint64_t most_ = 0;
};

} // namespace vtpmd::manager
