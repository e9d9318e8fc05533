#include "manager/control_service.hpp"

#include "hwtpm/pcr.hpp"
#include "util/text.hpp"

#include <algorithm>

namespace vtpmd::manager {

namespace {
/// For an instance to save and end; it is not killed then.
constexpr auto stop_patience = std::chrono::seconds(20);
} // namespace

ControlService::ControlService(Parts parts)
    : parts_(std::move(parts)) {}

HostInfo ControlService::host() const {
    const Registry& registry = parts_.vault.registry();
    const store::JournalCounters& journal = parts_.vault.journal_counters();
    return {.version = VTPMD_VERSION,
            .store = parts_.store_path,
            .store_uuid = parts_.vault.uuid(),
            .tpm = parts_.root.description(),
            .vtpms = registry.vtpm_count(),
            .open = parts_.service.open_count(),
            .tombstones = registry.tombstone_count(),
            .store_bytes = journal.half_bytes,
            .store_bytes_used = journal.checkpoint_bytes};
}

VtpmState ControlService::state_of(const Uuid& uuid, const Registry::Vtpm& vtpm) const {
    if (parts_.service.is_open(uuid)) {
        return parts_.supervisor.pid_of(uuid) != 0 ? VtpmState::running : VtpmState::open;
    }
    if (parts_.supervisor.in_charge(uuid)) {
        return VtpmState::starting;
    }
    return vtpm.has_key() ? VtpmState::stopped : VtpmState::fresh;
}

VtpmInfo ControlService::info_of(const Uuid& uuid, const Registry::Vtpm& vtpm) const {
    const auto* group = parts_.vault.registry().group(vtpm.group);
    const auto* reset = parts_.vault.registry().reset(uuid);
    return {.uuid = uuid,
            .name = std::string(parts_.vault.registry().name(uuid)),
            .version = vtpm.version,
            .group = group != nullptr ? group->uuid : Uuid{},
            .state = state_of(uuid, vtpm),
            .created = vtpm.created,
            .saves = vtpm.sequence,
            .reset = reset != nullptr ? reset->when : 0,
            .pid = parts_.supervisor.pid_of(uuid)};
}

std::vector<Uuid> ControlService::vtpms() const {
    std::vector<Uuid> all;
    all.reserve(parts_.vault.registry().vtpm_count());
    for (const auto& [uuid, vtpm] : parts_.vault.registry().vtpms()) {
        all.push_back(uuid);
    }
    std::ranges::sort(all);
    return all;
}

std::map<VtpmState, std::size_t> ControlService::count_states() const {
    std::map<VtpmState, std::size_t> out;
    for (const auto& [uuid, vtpm] : parts_.vault.registry().vtpms()) {
        ++out[state_of(uuid, vtpm)];
    }
    return out;
}

Result<const Registry::Vtpm*> ControlService::find(const Uuid& uuid) const {
    if (const auto* vtpm = parts_.vault.registry().find(uuid)) {
        return vtpm;
    }
    if (const auto* gone = parts_.vault.registry().tombstone(uuid)) {
        return make_error(Errc::tombstone, "vTPM {} was {}", uuid,
                          gone->reason == TombstoneRecord::Reason::migrated ? "migrated away" : "deleted");
    }
    return make_error(Errc::not_found, "vTPM {} is not registered with this manager", uuid);
}

Result<void> ControlService::check_at_rest(const Uuid& uuid) const {
    if (auto found = find(uuid); !found) {
        return found.error();
    }
    if (parts_.supervisor.in_charge(uuid)) {
        return make_error(Errc::busy, "vTPM {} is in use: its instance is kept running", uuid);
    }
    return {};
}

Result<VtpmInfo> ControlService::vtpm(const Uuid& uuid) const {
    auto found = find(uuid);
    if (!found) {
        return found.error();
    }
    return info_of(uuid, **found);
}

Task<Result<VtpmInfo>> ControlService::create(NewVtpm request) {
    const Uuid uuid = request.uuid;
    auto found = find(uuid);
    if (found) {
        co_return make_error(Errc::exists, "vTPM {} is registered already", uuid);
    }
    if (found.error().code == Errc::tombstone) {
        co_return found.error();
    }
    Result<GroupId> into = GroupId{0};
    if (request.group) {
        into = find_group(*request.group);
    }
    if (!into) {
        co_return into.error();
    }
    auto registered = co_await parts_.service.enrol(uuid, request.version, *into, std::move(request.name));
    if (!registered) {
        co_return registered.error();
    }
    co_return vtpm(uuid);
}

Task<Result<VtpmInfo>> ControlService::rename(Uuid uuid, std::string name) {
    if (auto found = find(uuid); !found) {
        co_return found.error();
    }
    auto renamed = co_await parts_.vault.rename(uuid, std::move(name));
    if (!renamed) {
        co_return renamed.error();
    }
    co_return vtpm(uuid);
}

Task<Result<VtpmInfo>> ControlService::move(Uuid uuid, Uuid group) {
    if (auto found = find(uuid); !found) {
        co_return found.error();
    }
    auto into = find_group(group);
    if (!into) {
        co_return into.error();
    }
    if (auto rests = check_at_rest(uuid); !rests) {
        co_return rests.error();
    }
    auto moved = co_await parts_.service.move(uuid, *into);
    if (!moved) {
        co_return moved.error();
    }
    co_return vtpm(uuid);
}

Task<Result<void>> ControlService::remove(Uuid uuid) {
    if (auto rests = check_at_rest(uuid); !rests) {
        co_return rests;
    }
    co_return co_await parts_.service.remove(uuid, TombstoneRecord::Reason::deleted);
}

Task<Result<void>> ControlService::reset(Uuid uuid) {
    if (auto rests = check_at_rest(uuid); !rests) {
        co_return rests;
    }
    co_return co_await parts_.service.reset(uuid);
}

Task<Result<void>> ControlService::start(Uuid uuid) {
    auto found = find(uuid);
    if (!found) {
        co_return found.error();
    }
    if (parts_.supervisor.in_charge(uuid)) {
        co_return Result<void>{}; // as it was asked for
    }
    if (parts_.service.is_open(uuid)) {
        co_return make_error(Errc::busy, "vTPM {} is open, in an instance that this manager did not start", uuid);
    }
    const bool fresh = !(*found)->has_key();
    parts_.supervisor.keep(uuid, fresh ? std::optional((*found)->version) : std::nullopt);
    co_return Result<void>{};
}

Task<Result<void>> ControlService::stop(Uuid uuid) {
    if (auto found = find(uuid); !found) {
        co_return found.error();
    }
    auto charge = parts_.supervisor.kept(uuid);
    if (!charge) {
        if (parts_.service.is_open(uuid) || parts_.supervisor.in_charge(uuid)) {
            co_return make_error(Errc::busy,
                                 "vTPM {} is open, in an instance that belongs to a guest's device or was "
                                 "started by somebody else",
                                 uuid);
        }
        co_return Result<void>{};
    }
    parts_.supervisor.release(*charge);
    co_return co_await parts_.supervisor.wait_ended(std::move(charge), stop_patience);
}

Task<Result<SealInfo>> ControlService::seal() {
    SealInfo info{.selection = hwtpm::to_string(parts_.vault.sealed_to())};
    std::vector<hwtpm::PcrSelection> selections{parts_.vault.sealed_to()};
    auto values = co_await parts_.root.pcr_read(std::move(selections));
    if (!values) {
        co_return values.error();
    }
    for (const hwtpm::PcrValue& v : *values) {
        info.pcrs.push_back(
            {.bank = std::string(hwtpm::bank_name(v.bank)), .index = v.index, .value = to_hex(v.digest)});
    }
    co_return info;
}

FreshnessInfo ControlService::freshness() const {
    const Freshness& freshness = parts_.vault.freshness();
    return {.policy = to_string(freshness.policy()),
            .counter = freshness.counters().hardware,
            .steps = freshness.counters().steps,
            .failures = freshness.counters().failures,
            .owed = freshness.owed()};
}

std::vector<Metric> ControlService::metrics() const { return collect_metrics(*this, parts_); }

} // namespace vtpmd::manager
