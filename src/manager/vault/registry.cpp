#include "manager/vault/registry.hpp"

#include <algorithm>

namespace vtpmd::manager {

namespace {

SnapshotSize size_of_tombstone(const Registry::Tombstone& t) {
    return size_of(TombstoneFacts{.reason = t.reason, .grouped = !t.group.is_nil()});
}

} // namespace

Result<void> Registry::apply(const Record& record) {
    if (auto may = check(*this, record, Occasion::replay); !may) {
        Error e = may.error();
        e.code = Errc::corrupt;
        return e;
    }
    std::visit([this](const auto& r) { on(r); }, record);
    return {};
}

void Registry::count(SnapshotSize before, SnapshotSize after) {
    size_.now += after.now - before.now;
    size_.most += after.most - before.most;
}

SnapshotSize Registry::vtpm_size(const Uuid& uuid) const {
    const auto facts = vtpm_facts(uuid);
    return facts ? size_of(*facts) : SnapshotSize{};
}

SnapshotSize Registry::group_size(GroupId id) const {
    const auto facts = group_facts(id);
    return facts ? size_of(*facts) : SnapshotSize{};
}

void Registry::on(const GroupRecord& r) {
    groups_.emplace(r.id, Group{.uuid = r.uuid, .created = r.created, .vtpms = 0, .detail = {}, .certifier = {}});
    next_group_ = std::max(next_group_, r.id + 1);
    count({}, group_size(r.id));
}

void Registry::on(const VtpmRecord& r) {
    vtpms_.emplace(r.uuid, Vtpm{.created = r.created, .group = r.group, .version = r.version, .returned = r.returned});
    if (const auto gone = tombstones_.find(r.uuid); gone != tombstones_.end()) {
        drop_tombstone(gone);
    }
    ++groups_.at(r.group).vtpms;
    count({}, vtpm_size(r.uuid));
}

void Registry::on(const KeyRecord& r) {
    const SnapshotSize before = vtpm_size(r.uuid);
    Vtpm& vtpm = vtpms_.at(r.uuid);
    vtpm.sequence = r.sequence;
    vtpm.key = r.key;
    vtpm.returned = false;
    count(before, vtpm_size(r.uuid));
}

void Registry::on(const TombstoneRecord& r) {
    Tombstone made{.reason = r.reason, .when = r.when, .group = r.group, .freshness = freshness_.value_or(0)};
    if (const auto it = vtpms_.find(r.uuid); it != vtpms_.end()) {
        made.stateless = it->second.sequence == 0 && !it->second.returned;
        count(vtpm_size(r.uuid), {});
        --groups_.at(it->second.group).vtpms;
        vtpms_.erase(it);
        names_.erase(r.uuid);
        resets_.erase(r.uuid);
        set_owner(r.uuid, 0);
        if (const auto number = numbers_.extract(r.uuid)) {
            numbered_.erase(number.mapped());
        }
    }
    count({}, size_of_tombstone(made));
    tombstone_bytes_ += size_of_tombstone(made).now;
    tombstones_.emplace(r.uuid, made);
}

void Registry::drop_tombstone(std::unordered_map<Uuid, Tombstone>::iterator it) {
    count(size_of_tombstone(it->second), {});
    tombstone_bytes_ -= size_of_tombstone(it->second).now;
    tombstones_.erase(it);
}

void Registry::on(const NameRecord& r) {
    if (!vtpms_.contains(r.uuid)) { // it is gone
        return;
    }
    const SnapshotSize before = vtpm_size(r.uuid);
    if (r.name.empty()) {
        names_.erase(r.uuid);
    } else {
        names_.insert_or_assign(r.uuid, r.name);
    }
    count(before, vtpm_size(r.uuid));
}

void Registry::on(const ResetRecord& r) {
    const SnapshotSize before = vtpm_size(r.uuid);
    Vtpm& vtpm = vtpms_.at(r.uuid);
    vtpm.sequence = r.sequence;
    vtpm.key = {};
    resets_.insert_or_assign(r.uuid, Reset{.sequence = r.sequence, .when = r.when, .given_up = r.given_up});
    count(before, vtpm_size(r.uuid));
}

void Registry::on(const FreshnessRecord& r) { freshness_ = std::max(freshness_.value_or(0), r.counter); }

void Registry::on(const GroupDetailRecord& r) {
    const SnapshotSize before = group_size(r.id);
    groups_.at(r.id).detail = r.detail;
    count(before, group_size(r.id));
}

void Registry::on(const GroupGoneRecord& r) {
    count(group_size(r.id), {});
    groups_.erase(r.id);
}

void Registry::on(const MovedRecord& r) {
    Vtpm& vtpm = vtpms_.at(r.uuid);
    --groups_.at(vtpm.group).vtpms;
    vtpm.group = r.group;
    ++groups_.at(r.group).vtpms;
}

void Registry::on(const CertifierRecord& r) {
    const SnapshotSize before = group_size(r.id);
    groups_.at(r.id).certifier = r.detail;
    count(before, group_size(r.id));
}

void Registry::on(const NumberRecord& r) {
    const SnapshotSize before = vtpm_size(r.uuid);
    numbered_.emplace(r.number, r.uuid);
    numbers_.emplace(r.uuid, r.number);
    count(before, vtpm_size(r.uuid));
}

void Registry::on(const OwnerRecord& r) {
    const SnapshotSize before = vtpm_size(r.uuid);
    set_owner(r.uuid, r.user);
    count(before, vtpm_size(r.uuid));
}

void Registry::set_owner(const Uuid& uuid, std::uint32_t user) {
    if (const auto was = owners_.extract(uuid); was && --owned_.at(was.mapped()) == 0) {
        owned_.erase(was.mapped());
    }
    if (user != 0) {
        owners_.emplace(uuid, user);
        ++owned_[user];
    }
}

std::uint32_t Registry::owner(const Uuid& uuid) const {
    const auto it = owners_.find(uuid);
    return it == owners_.end() ? 0 : it->second;
}

std::size_t Registry::owned_by(std::uint32_t user) const {
    const auto it = owned_.find(user);
    return it == owned_.end() ? 0 : it->second;
}

std::optional<VtpmFacts> Registry::vtpm_facts(const Uuid& uuid) const {
    const auto* v = find(uuid);
    if (v == nullptr) {
        return std::nullopt;
    }
    const Reset* r = reset(uuid);
    return VtpmFacts{.sequence = v->sequence,
                     .group = v->group,
                     .returned = v->returned,
                     .number = number_of(uuid).value_or(0),
                     .owner = owner(uuid),
                     .name_size = name(uuid).size(),
                     .reset_size = r != nullptr ? r->given_up.size() : 0,
                     .key_size = v->key.size()};
}

std::optional<GroupFacts> Registry::group_facts(GroupId id) const {
    const Group* g = group(id);
    if (g == nullptr) {
        return std::nullopt;
    }
    return GroupFacts{
        .uuid = g->uuid, .vtpms = g->vtpms, .detail_size = g->detail.size(), .certifier_size = g->certifier.size()};
}

std::optional<TombstoneFacts> Registry::tombstone_facts(const Uuid& uuid) const {
    const Tombstone* t = tombstone(uuid);
    return t == nullptr ? std::nullopt
                        : std::optional(TombstoneFacts{.reason = t->reason, .grouped = !t->group.is_nil()});
}

std::unordered_set<Uuid> Registry::retirable(const Retirement& rules) const {
    std::unordered_set<Uuid> out;
    std::vector<std::pair<std::uint64_t, Uuid>> covered;
    std::uint64_t left = tombstone_bytes_;
    for (const auto& [uuid, t] : tombstones_) {
        if (t.reason != TombstoneRecord::Reason::deleted) {
            continue;
        }
        if (t.stateless) {
            out.insert(uuid);
            left -= size_of_tombstone(t).now;
        } else if (t.freshness < rules.hardware) {
            covered.emplace_back(t.when, uuid);
        }
    }
    if (left <= rules.budget) {
        return out;
    }
    std::ranges::sort(covered);
    for (const auto& [when, uuid] : covered) {
        if (left <= rules.budget / 2) {
            break;
        }
        out.insert(uuid);
        left -= size_of_tombstone(tombstones_.at(uuid)).now;
    }
    return out;
}

void Registry::retire(const std::unordered_set<Uuid>& uuids) {
    for (const Uuid& uuid : uuids) {
        if (const auto it = tombstones_.find(uuid); it != tombstones_.end()) {
            drop_tombstone(it);
        }
    }
}

void Registry::replayed() {
    for (auto& [uuid, t] : tombstones_) {
        t.freshness = freshness_.value_or(0);
    }
}

void Registry::snapshot(const std::function<void(const Record&)>& emit, const std::unordered_set<Uuid>& retired) const {
    for (const auto& [id, g] : groups_) {
        emit(GroupRecord{.id = id, .uuid = g.uuid, .created = g.created});
        if (!g.detail.empty()) {
            emit(GroupDetailRecord{.id = id, .detail = g.detail});
        }
        if (!g.certifier.empty()) {
            emit(CertifierRecord{.id = id, .detail = g.certifier});
        }
    }
    for (const auto& [uuid, v] : vtpms_) {
        emit(VtpmRecord{
            .uuid = uuid, .group = v.group, .version = v.version, .created = v.created, .returned = v.returned});
        if (const std::string_view called = name(uuid); !called.empty()) {
            emit(NameRecord{.uuid = uuid, .name = std::string(called)});
        }
        if (const std::uint32_t user = owner(uuid); user != 0) {
            emit(OwnerRecord{.uuid = uuid, .user = user});
        }
        if (const Reset* r = reset(uuid)) {
            emit(ResetRecord{.uuid = uuid, .sequence = r->sequence, .when = r->when, .given_up = r->given_up});
        }
        if (v.has_key()) {
            emit(KeyRecord{.uuid = uuid, .sequence = v.sequence, .key = v.key});
        }
    }
    for (const auto& [number, uuid] : numbered_) {
        emit(NumberRecord{.uuid = uuid, .number = number});
    }
    for (const auto& [uuid, t] : tombstones_) {
        if (!retired.contains(uuid)) {
            emit(TombstoneRecord{.uuid = uuid, .reason = t.reason, .when = t.when, .group = t.group});
        }
    }
    if (freshness_) {
        emit(FreshnessRecord{.counter = *freshness_});
    }
}

const Registry::Vtpm* Registry::find(const Uuid& uuid) const {
    auto it = vtpms_.find(uuid);
    return it == vtpms_.end() ? nullptr : &it->second;
}

const Uuid* Registry::numbered(std::uint32_t number) const {
    auto it = numbered_.find(number);
    return it == numbered_.end() ? nullptr : &it->second;
}

std::optional<std::uint32_t> Registry::number_of(const Uuid& uuid) const {
    auto it = numbers_.find(uuid);
    return it == numbers_.end() ? std::nullopt : std::optional(it->second);
}

const Registry::Tombstone* Registry::tombstone(const Uuid& uuid) const {
    auto it = tombstones_.find(uuid);
    return it == tombstones_.end() ? nullptr : &it->second;
}

std::string_view Registry::name(const Uuid& uuid) const {
    auto it = names_.find(uuid);
    return it == names_.end() ? std::string_view() : std::string_view(it->second);
}

const Registry::Reset* Registry::reset(const Uuid& uuid) const {
    auto it = resets_.find(uuid);
    return it == resets_.end() ? nullptr : &it->second;
}

const Registry::Group* Registry::group(GroupId id) const {
    auto it = groups_.find(id);
    return it == groups_.end() ? nullptr : &it->second;
}

std::optional<GroupId> Registry::find_group(const Uuid& uuid) const {
    const auto it = std::ranges::find_if(groups_, [&uuid](const auto& known) { return known.second.uuid == uuid; });
    return it == groups_.end() ? std::nullopt : std::optional(it->first);
}

} // namespace vtpmd::manager
