#include "manager/vault/registry_rules.hpp"

#include <algorithm>

namespace vtpmd::manager {

namespace {

// Sizes of records (records.cpp), with the 4 bytes that a frame adds.
constexpr std::size_t vtpm_bytes = 4 + 2 + 16 + 4 + 1 + 8;
constexpr std::size_t name_bytes = 4 + 2 + 16 + 1;
constexpr std::size_t reset_bytes = 4 + 2 + 16 + 8 + 8 + 1;
constexpr std::size_t key_bytes = 4 + 2 + 16 + 8 + 1;
constexpr std::size_t number_bytes = 4 + 2 + 16 + 4;
constexpr std::size_t owner_bytes = 4 + 2 + 16 + 4;
constexpr std::size_t group_bytes = 4 + 2 + 4 + 16 + 8;
constexpr std::size_t detail_bytes = 4 + 2 + 4 + 4;
constexpr std::size_t tombstone_bytes = 4 + 2 + 16 + 1 + 8;
constexpr std::size_t away_bytes = 4 + 2 + 16 + 16 + 8;
constexpr std::size_t freshness_bytes = 4 + 2 + 8;
constexpr std::size_t longest_hash = 32;

constexpr std::size_t if_any(std::size_t size, std::size_t with) { return size == 0 ? 0 : with + size; }

struct Rules {
    const RegistryView& there;
    bool writes;

    /// Of a vTPM that is not registered.
    [[nodiscard]] Error missing(const Uuid& uuid, std::string_view what) const {
        if (const auto gone = there.tombstone_facts(uuid)) {
            return make_error(Errc::tombstone, "{} vTPM {}, which was {}", what, uuid,
                              gone->reason == TombstoneRecord::Reason::migrated ? "migrated away" : "deleted");
        }
        return make_error(Errc::not_found, "{} vTPM {}, which is not registered", what, uuid);
    }
    [[nodiscard]] Result<void> group(GroupId id, std::string_view what) const {
        return there.group_facts(id) ? Result<void>{}
                                     : make_error(Errc::not_found, "{} group {}, which is not there", what, id);
    }

    Result<void> operator()(const GroupRecord& r) const {
        if (there.group_facts(r.id) || (writes && there.group_named(r.uuid))) {
            return make_error(Errc::exists, "group {} ({}) is there already", r.id, r.uuid);
        }
        return {};
    }
    Result<void> operator()(const VtpmRecord& r) const {
        if (auto into = group(r.group, fmt::format("vTPM {} belongs to", r.uuid)); !into) {
            return into;
        }
        if (there.vtpm_facts(r.uuid)) {
            return make_error(Errc::exists, "vTPM {} is registered already", r.uuid);
        }
        const auto gone = there.tombstone_facts(r.uuid);
        const bool away = gone && gone->reason == TombstoneRecord::Reason::migrated;
        if (gone && !(r.returned && away)) {
            return missing(r.uuid, "registering");
        }
        if (writes && r.returned && !away) {
            return make_error(Errc::tombstone, "vTPM {} was not migrated away from here", r.uuid);
        }
        return {};
    }
    Result<void> operator()(const KeyRecord& r) const {
        const auto vtpm = there.vtpm_facts(r.uuid);
        if (!vtpm) {
            return missing(r.uuid, "a key for");
        }
        if (r.sequence <= vtpm->sequence) {
            return make_error(Errc::busy, "vTPM {}: key {} comes after key {}", r.uuid, r.sequence, vtpm->sequence);
        }
        return {};
    }
    Result<void> operator()(const TombstoneRecord& r) const {
        if (there.tombstone_facts(r.uuid) || (writes && !there.vtpm_facts(r.uuid))) {
            return missing(r.uuid, "deleting");
        }
        return {};
    }
    Result<void> operator()(const FreshnessRecord& /*r*/) const { return {}; }
    Result<void> operator()(const GroupDetailRecord& r) const { return group(r.id, "a detail of"); }
    Result<void> operator()(const CertifierRecord& r) const { return group(r.id, "a CA of"); }
    Result<void> operator()(const GroupGoneRecord& r) const {
        if (r.id == 0) {
            return make_error(Errc::usage, "group 0 is the store's own, and goes with the store only");
        }
        const auto known = there.group_facts(r.id);
        if (!known) {
            return make_error(Errc::not_found, "there is no group {}", r.id);
        }
        if (known->vtpms != 0) {
            return make_error(Errc::busy, "group {} has {} vTPMs; delete them first", r.id, known->vtpms);
        }
        return {};
    }
    Result<void> operator()(const MovedRecord& r) const {
        const auto vtpm = there.vtpm_facts(r.uuid);
        if (!vtpm) {
            return missing(r.uuid, "moving");
        }
        if (vtpm->sequence != 0 || (writes && vtpm->returned)) {
            return make_error(Errc::usage, "vTPM {} has a state already: it stays in its group", r.uuid);
        }
        return group(r.group, fmt::format("vTPM {} moves to", r.uuid));
    }
    Result<void> operator()(const NameRecord& r) const {
        if (!there.vtpm_facts(r.uuid) && (writes || !there.tombstone_facts(r.uuid))) {
            return missing(r.uuid, "a name for");
        }
        return {};
    }
    Result<void> operator()(const ResetRecord& r) const {
        const auto vtpm = there.vtpm_facts(r.uuid);
        if (!vtpm) {
            return missing(r.uuid, "resetting");
        }
        if (r.sequence <= vtpm->sequence) {
            return make_error(Errc::busy, "vTPM {}: reset {} comes after key {}", r.uuid, r.sequence, vtpm->sequence);
        }
        return {};
    }
    Result<void> operator()(const OwnerRecord& r) const {
        return there.vtpm_facts(r.uuid) ? Result<void>{} : missing(r.uuid, "an owner for");
    }
    Result<void> operator()(const NumberRecord& r) const {
        const auto vtpm = there.vtpm_facts(r.uuid);
        if (!vtpm) {
            return missing(r.uuid, "a number for");
        }
        if (vtpm->number != 0 || there.number_taken(r.number)) {
            return make_error(Errc::exists, "vTPM {} has a number already, or {} is another's", r.uuid, r.number);
        }
        return {};
    }
};

} // namespace

SnapshotSize size_of(const VtpmFacts& v) {
    const std::size_t now = vtpm_bytes + if_any(v.name_size, name_bytes) + if_any(v.reset_size, reset_bytes) +
                            if_any(v.key_size, key_bytes) + (v.number == 0 ? 0 : number_bytes) +
                            (v.owner == 0 ? 0 : owner_bytes);
    const std::size_t most = vtpm_bytes + name_bytes + vtpm_name_limit + reset_bytes + longest_hash + key_bytes +
                             WrappedKey::capacity + number_bytes + (v.owner == 0 ? 0 : owner_bytes);
    return {.now = now, .most = most};
}

SnapshotSize size_of(const GroupFacts& g) {
    const std::size_t fixed = group_bytes + if_any(g.detail_size, detail_bytes);
    return {.now = fixed + if_any(g.certifier_size, detail_bytes),
            .most = fixed + detail_bytes + std::max(g.certifier_size, certifier_reserve)};
}

SnapshotSize size_of(const TombstoneFacts& t) {
    const std::size_t bytes = t.grouped ? away_bytes : tombstone_bytes;
    return {.now = bytes, .most = bytes};
}

SnapshotSize size_of_nothing() { return {.now = freshness_bytes, .most = freshness_bytes}; }

Result<void> check(const RegistryView& there, const Record& record, Occasion occasion) {
    return std::visit(Rules{there, occasion == Occasion::write}, record);
}

// ---- Draft

Result<void> Draft::add(const Record& record) {
    if (auto may = check(*this, record, Occasion::write); !may) {
        return may;
    }
    std::visit([this](const auto& r) { take(r); }, record);
    return {};
}

void Draft::absorb(Draft later) {
    for (auto& [uuid, v] : later.vtpms_) {
        vtpms_.insert_or_assign(uuid, v);
    }
    for (auto& [uuid, t] : later.tombstones_) {
        tombstones_.insert_or_assign(uuid, t);
    }
    for (auto& [id, g] : later.groups_) {
        groups_.insert_or_assign(id, g);
    }
    for (auto& [number, taken] : later.numbers_) {
        numbers_.insert_or_assign(number, taken);
    }
    now_ += later.now_;
    most_ += later.most_;
}

std::optional<VtpmFacts> Draft::vtpm_facts(const Uuid& uuid) const {
    const auto it = vtpms_.find(uuid);
    return it != vtpms_.end() ? it->second : below_->vtpm_facts(uuid);
}

std::optional<GroupFacts> Draft::group_facts(GroupId id) const {
    const auto it = groups_.find(id);
    return it != groups_.end() ? it->second : below_->group_facts(id);
}

std::optional<TombstoneFacts> Draft::tombstone_facts(const Uuid& uuid) const {
    const auto it = tombstones_.find(uuid);
    return it != tombstones_.end() ? it->second : below_->tombstone_facts(uuid);
}

bool Draft::number_taken(std::uint32_t number) const {
    const auto it = numbers_.find(number);
    return it != numbers_.end() ? it->second : below_->number_taken(number);
}

bool Draft::group_named(const Uuid& uuid) const {
    for (const auto& [id, g] : groups_) {
        if (g && g->uuid == uuid) {
            return true;
        }
        if (const auto before = below_->group_facts(id); !g && before && before->uuid == uuid) {
            return false; // it has just gone
        }
    }
    return below_->group_named(uuid);
}

SnapshotSize Draft::snapshot_size() const {
    SnapshotSize size = below_->snapshot_size();
    size.now += now_;
    size.most += most_;
    return size;
}

template <typename T>
void Draft::count(const std::optional<T>& before, const std::optional<T>& after) {
    const SnapshotSize was = before ? size_of(*before) : SnapshotSize{};
    const SnapshotSize is = after ? size_of(*after) : SnapshotSize{};
    now_ += is.now - was.now;
    most_ += is.most - was.most;
}

void Draft::put(const Uuid& uuid, std::optional<VtpmFacts> after) {
    count(vtpm_facts(uuid), after);
    vtpms_.insert_or_assign(uuid, after);
}

void Draft::put(GroupId id, std::optional<GroupFacts> after) {
    count(group_facts(id), after);
    groups_.insert_or_assign(id, after);
}

void Draft::put(const Uuid& uuid, std::optional<TombstoneFacts> after) {
    count(tombstone_facts(uuid), after);
    tombstones_.insert_or_assign(uuid, after);
}

void Draft::count_members(GroupId id, int by) {
    auto group = group_facts(id);
    group->vtpms += static_cast<std::size_t>(by);
    put(id, group);
}

void Draft::take(const GroupRecord& r) { put(r.id, GroupFacts{.uuid = r.uuid}); }

void Draft::take(const VtpmRecord& r) {
    if (tombstone_facts(r.uuid)) {
        put(r.uuid, std::optional<TombstoneFacts>());
    }
    put(r.uuid, VtpmFacts{.group = r.group, .returned = r.returned});
    count_members(r.group, 1);
}

void Draft::take(const KeyRecord& r) {
    auto vtpm = vtpm_facts(r.uuid);
    vtpm->sequence = r.sequence;
    vtpm->key_size = r.key.size();
    vtpm->returned = false;
    put(r.uuid, vtpm);
}

void Draft::take(const TombstoneRecord& r) {
    if (const auto vtpm = vtpm_facts(r.uuid)) {
        count_members(vtpm->group, -1);
        if (vtpm->number != 0) {
            numbers_.insert_or_assign(vtpm->number, false);
        }
        put(r.uuid, std::optional<VtpmFacts>());
    }
    put(r.uuid, TombstoneFacts{.reason = r.reason, .grouped = !r.group.is_nil()});
}

void Draft::take(const FreshnessRecord& /*r*/) {} // its place is always counted

void Draft::take(const GroupDetailRecord& r) {
    auto group = group_facts(r.id);
    group->detail_size = r.detail.size();
    put(r.id, group);
}

void Draft::take(const GroupGoneRecord& r) { put(r.id, std::optional<GroupFacts>()); }

void Draft::take(const MovedRecord& r) {
    auto vtpm = vtpm_facts(r.uuid);
    count_members(vtpm->group, -1);
    vtpm->group = r.group;
    put(r.uuid, vtpm);
    count_members(r.group, 1);
}

void Draft::take(const NameRecord& r) {
    auto vtpm = vtpm_facts(r.uuid);
    vtpm->name_size = r.name.size();
    put(r.uuid, vtpm);
}

void Draft::take(const ResetRecord& r) {
    auto vtpm = vtpm_facts(r.uuid);
    vtpm->sequence = r.sequence;
    vtpm->key_size = 0;
    vtpm->reset_size = r.given_up.size();
    put(r.uuid, vtpm);
}

void Draft::take(const CertifierRecord& r) {
    auto group = group_facts(r.id);
    group->certifier_size = r.detail.size();
    put(r.id, group);
}

void Draft::take(const NumberRecord& r) {
    auto vtpm = vtpm_facts(r.uuid);
    vtpm->number = r.number;
    put(r.uuid, vtpm);
    numbers_.insert_or_assign(r.number, true);
}

void Draft::take(const OwnerRecord& r) {
    auto vtpm = vtpm_facts(r.uuid);
    vtpm->owner = r.user;
    put(r.uuid, vtpm);
}

} // namespace vtpmd::manager
