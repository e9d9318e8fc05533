#include "manager/registry.hpp"

#include <algorithm>

namespace vtpmd::manager {

Result<void> Registry::apply(const Record& record) {
    return std::visit([this](const auto& r) { return on(r); }, record);
}

Result<void> Registry::on(const GroupRecord& r) {
    if (!groups_
             .try_emplace(r.id, Group{.uuid = r.uuid, .created = r.created, .vtpms = 0, .detail = {}, .certifier = {}})
             .second) {
        return make_error(Errc::corrupt, "group {} is there twice", r.id);
    }
    return {};
}

Result<void> Registry::on(const VtpmRecord& r) {
    auto group = groups_.find(r.group);
    if (group == groups_.end()) {
        return make_error(Errc::corrupt, "vTPM {} belongs to group {}, which is not there", r.uuid, r.group);
    }
    const auto gone = tombstones_.find(r.uuid);
    const bool back =
        r.returned && gone != tombstones_.end() && gone->second.reason == TombstoneRecord::Reason::migrated;
    if (gone != tombstones_.end() && !back) {
        return make_error(Errc::corrupt, "vTPM {} is registered after its tombstone", r.uuid);
    }
    if (!vtpms_
             .try_emplace(r.uuid,
                          Vtpm{.created = r.created, .group = r.group, .version = r.version, .returned = r.returned})
             .second) {
        return make_error(Errc::corrupt, "vTPM {} is registered twice", r.uuid);
    }
    if (back) {
        tombstones_.erase(gone);
    }
    ++group->second.vtpms;
    return {};
}

Result<void> Registry::on(const KeyRecord& r) {
    auto it = vtpms_.find(r.uuid);
    if (it == vtpms_.end()) {
        return make_error(Errc::corrupt, "a key for vTPM {}, which is not registered", r.uuid);
    }
    if (r.sequence <= it->second.sequence) {
        return make_error(Errc::corrupt, "vTPM {}: key {} comes after key {}", r.uuid, r.sequence, it->second.sequence);
    }
    it->second.sequence = r.sequence;
    it->second.key = r.key;
    it->second.returned = false;
    return {};
}

Result<void> Registry::on(const TombstoneRecord& r) {
    // A snapshot says of a vTPM that is gone only that it is gone, so there need not be a registration.
    if (!tombstones_.try_emplace(r.uuid, Tombstone{.reason = r.reason, .when = r.when, .group = r.group}).second) {
        return make_error(Errc::corrupt, "vTPM {} has two tombstones", r.uuid);
    }
    if (auto it = vtpms_.find(r.uuid); it != vtpms_.end()) {
        --groups_.at(it->second.group).vtpms;
        vtpms_.erase(it);
        names_.erase(r.uuid);
        resets_.erase(r.uuid);
        if (const auto number = numbers_.extract(r.uuid)) {
            numbered_.erase(number.mapped());
        }
    }
    return {};
}

Result<void> Registry::on(const NameRecord& r) {
    if (!vtpms_.contains(r.uuid)) {
        return tombstones_.contains(r.uuid)
                   ? Result<void>{}
                   : make_error(Errc::corrupt, "a name for vTPM {}, which was never registered", r.uuid);
    }
    if (r.name.empty()) {
        names_.erase(r.uuid);
    } else {
        names_.insert_or_assign(r.uuid, r.name);
    }
    return {};
}

Result<void> Registry::on(const ResetRecord& r) {
    auto it = vtpms_.find(r.uuid);
    if (it == vtpms_.end() || r.sequence <= it->second.sequence) {
        return make_error(Errc::corrupt, "vTPM {} is reset by number {}, but it is not there or further", r.uuid,
                          r.sequence);
    }
    it->second.sequence = r.sequence;
    it->second.key = {};
    resets_.insert_or_assign(r.uuid, Reset{.sequence = r.sequence, .when = r.when, .given_up = r.given_up});
    return {};
}

Result<void> Registry::on(const FreshnessRecord& r) {
    freshness_ = std::max(freshness_.value_or(0), r.counter);
    return {};
}

Result<void> Registry::on(const GroupDetailRecord& r) {
    auto group = groups_.find(r.id);
    if (group == groups_.end()) {
        return make_error(Errc::corrupt, "a detail of group {}, which is not there", r.id);
    }
    group->second.detail = r.detail;
    return {};
}

Result<void> Registry::on(const GroupGoneRecord& r) {
    auto group = groups_.find(r.id);
    if (group == groups_.end() || group->second.vtpms != 0 || r.id == 0) {
        return make_error(Errc::corrupt, "group {} is gone, but it has vTPMs, is the store's own, or was never there",
                          r.id);
    }
    groups_.erase(group);
    return {};
}

Result<void> Registry::on(const MovedRecord& r) {
    auto vtpm = vtpms_.find(r.uuid);
    auto group = groups_.find(r.group);
    if (vtpm == vtpms_.end() || vtpm->second.sequence != 0 || group == groups_.end()) {
        return make_error(Errc::corrupt,
                          "vTPM {} moves to group {}, but one of them is not there or the vTPM has a key already",
                          r.uuid, r.group);
    }
    --groups_.at(vtpm->second.group).vtpms;
    vtpm->second.group = r.group;
    ++group->second.vtpms;
    return {};
}

Result<void> Registry::on(const CertifierRecord& r) {
    auto group = groups_.find(r.id);
    if (group == groups_.end()) {
        return make_error(Errc::corrupt, "a CA of group {}, which is not there", r.id);
    }
    group->second.certifier = r.detail;
    return {};
}

Result<void> Registry::on(const NumberRecord& r) {
    if (!vtpms_.contains(r.uuid) || number_of(r.uuid) || !numbered_.try_emplace(r.number, r.uuid).second) {
        return make_error(Errc::corrupt,
                          "number {} for vTPM {}, which is not registered, or one of them has another already",
                          r.number, r.uuid);
    }
    numbers_.emplace(r.uuid, r.number);
    return {};
}

void Registry::snapshot(const std::function<void(const Record&)>& emit) const {
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
        emit(TombstoneRecord{.uuid = uuid, .reason = t.reason, .when = t.when, .group = t.group});
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
