#include "manager/management/control_service.hpp"

#include "tpm/pcr.hpp"
#include "util/text.hpp"

#include <algorithm>
#include <csignal>
#include <sys/stat.h>

namespace vtpmd::manager {

namespace {
/// For an instance to save and end; it is not killed then.
constexpr auto stop_patience = std::chrono::seconds(20);
constexpr auto process_look = std::chrono::milliseconds(20);

std::string process_text(pid_t pid) { return pid == 0 ? std::string() : fmt::format(" (process {})", pid); }
} // namespace

ControlService::ControlService(Parts parts)
    : parts_(std::move(parts)) {}

HostInfo ControlService::host() const {
    const Registry& registry = parts_.vault.registry();
    const Vault::Fill fill = parts_.vault.fill();
    return {.version = VTPMD_VERSION,
            .store = parts_.store_path,
            .store_uuid = parts_.vault.uuid(),
            .tpm = parts_.root.description(),
            .vtpms = registry.vtpm_count(),
            .open = parts_.service.open_count(),
            .tombstones = registry.tombstone_count(),
            .store_bytes = fill.limit,
            .store_bytes_used = fill.used,
            .store_bytes_reserved = fill.reserved,
            .trouble = std::string(parts_.vault.trouble())};
}

VtpmState ControlService::state_of(const Uuid& uuid, const Registry::Vtpm& vtpm) const {
    const bool kept = parts_.supervisor.pid_of(uuid) != 0;
    if (parts_.service.is_open(uuid)) {
        return kept ? VtpmState::running : VtpmState::open;
    }
    if (parts_.supervisor.in_charge(uuid)) {
        return parts_.supervisor.is_unknown(uuid) ? VtpmState::unknown : VtpmState::starting;
    }
    if (parts_.processes.in_use(uuid)) {
        return VtpmState::unknown;
    }
    return vtpm.has_key() ? VtpmState::stopped : VtpmState::fresh;
}

VtpmInfo ControlService::info_of(const Uuid& uuid, const Registry::Vtpm& vtpm) const {
    const auto* group = parts_.vault.registry().group(vtpm.group);
    const auto* reset = parts_.vault.registry().reset(uuid);
    const pid_t kept = parts_.supervisor.pid_of(uuid);
    return {.uuid = uuid,
            .name = std::string(parts_.vault.registry().name(uuid)),
            .version = vtpm.version,
            .group = group != nullptr ? group->uuid : Uuid{},
            .state = state_of(uuid, vtpm),
            .created = vtpm.created,
            .saves = vtpm.sequence,
            .reset = reset != nullptr ? reset->when : 0,
            .pid = kept != 0 ? kept : parts_.processes.find(uuid).pid,
            .user = parts_.vault.registry().owner(uuid),
            .autostart = parts_.wanted.has(uuid)};
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
    if (auto use = parts_.processes.in_use_now(uuid)) {
        return make_error(Errc::busy, "vTPM {} is in use, or may be: {}", uuid, use->why);
    }
    return {};
}

/// As this manager saw it; of a save before it began, when the image was written.
std::uint64_t ControlService::last_save(const Uuid& uuid, std::uint64_t saves, const std::string& image) const {
    if (const std::uint64_t seen = parts_.service.last_save(uuid); seen != 0) {
        return seen;
    }
    struct stat st {};
    if (saves == 0 || ::stat(image.c_str(), &st) != 0 || !S_ISREG(st.st_mode)) {
        return 0;
    }
    const auto written = static_cast<std::uint64_t>(st.st_mtim.tv_sec);
    const auto* reset = parts_.vault.registry().reset(uuid);
    return reset != nullptr && reset->when > written ? 0 : written;
}

Result<VtpmDetail> ControlService::detail(const Uuid& uuid) const {
    auto found = find(uuid);
    if (!found) {
        return found.error();
    }
    VtpmDetail out{.image = parts_.supervisor.image_of(uuid)};
    out.last_save = last_save(uuid, (*found)->sequence, out.image);
    const bool another_keeps_it = !parts_.supervisor.in_charge(uuid) && parts_.service.is_open(uuid);
    if (struct stat st{}; another_keeps_it && ::stat(out.image.c_str(), &st) != 0) {
        out.image.clear();
    }
    if (auto charge = parts_.supervisor.kept(uuid)) {
        out.socket = charge->guest;
        constexpr std::string_view scheme = "socket:unix:";
        out.socket.erase(0, out.socket.starts_with(scheme) ? scheme.size() : 0);
    }
    if (const LastFailure* failure = parts_.supervisor.last_failure(uuid)) {
        out.last_error = failure->why;
        out.last_error_time = failure->when;
    }
    if (const ProcessHandle process = parts_.processes.find(uuid); process.known()) {
        out.sandbox = rights_of(process);
    }
    const VtpmState state = state_of(uuid, **found);
    const auto use = parts_.processes.in_use_now(uuid);
    if (parts_.service.is_open(uuid)) {
        return out;
    }
    if (use) {
        out.why = use->why;
    } else if (state == VtpmState::starting) {
        out.why = out.last_error.empty() ? "its instance is being started" : "its instance ended; it is started again";
    } else if (!out.last_error.empty()) {
        out.why = "its instance ended, and starting it again would not help";
    } else {
        out.why = parts_.wanted.has(uuid) ? "it was not started by this manager" : "nobody started it";
    }
    return out;
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
    auto registered =
        co_await parts_.service.enrol(uuid, request.version, *into, std::move(request.name), request.user);
    if (!registered) {
        co_return registered.error();
    }
    co_return vtpm(uuid);
}

Task<Result<VtpmInfo>> ControlService::give_to(Uuid uuid, std::uint32_t user) {
    if (auto found = find(uuid); !found) {
        co_return found.error();
    }
    if (auto given = co_await parts_.vault.give_to(uuid, user); !given) {
        co_return given.error();
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
    auto removed = co_await parts_.service.remove(uuid, TombstoneRecord::Reason::deleted);
    if (removed) {
        (void)co_await parts_.wanted.set(uuid, false); // one that stays names nothing
    }
    co_return removed;
}

Task<Result<void>> ControlService::reset(Uuid uuid) {
    if (auto rests = check_at_rest(uuid); !rests) {
        co_return rests;
    }
    co_return co_await parts_.service.reset(uuid);
}

Task<Result<void>> ControlService::start(Uuid uuid, StartOrder order) {
    auto found = find(uuid);
    if (!found) {
        co_return found.error();
    }
    const bool wanted_before = parts_.wanted.has(uuid);
    const bool in_charge = parts_.supervisor.in_charge(uuid);
    if (!in_charge) {
        if (parts_.service.is_open(uuid)) {
            co_return make_error(Errc::busy, "vTPM {} is open, in an instance that this manager did not start{}", uuid,
                                 process_text(parts_.processes.find(uuid).pid));
        }
        if (auto use = parts_.processes.in_use_now(uuid); use && use->pid != 0) {
            co_return make_error(Errc::busy, "vTPM {} is in use: {}", uuid, use->why);
        }
    }
    if (!order.once && (!in_charge || parts_.supervisor.kept(uuid))) {
        auto marked = co_await parts_.wanted.set(uuid, true);
        if (!marked) {
            co_return marked;
        }
    }
    if (!parts_.supervisor.in_charge(uuid)) { // it may be by now
        found = find(uuid);
        if (!found) {
            co_return found.error();
        }
        const bool fresh = !(*found)->has_key();
        parts_.supervisor.keep(uuid, fresh ? std::optional((*found)->version) : std::nullopt);
    }
    if (!order.wait) {
        co_return Result<void>{};
    }
    auto serving = co_await wait_serving(uuid, parts_.supervisor.kept(uuid), *order.wait);
    if (!serving && !in_charge && !wanted_before && !parts_.supervisor.in_charge(uuid)) {
        (void)co_await parts_.wanted.set(uuid, false); // whoever was told that it failed starts it anew
    }
    co_return serving;
}

Task<Result<void>> ControlService::wait_serving(Uuid uuid, std::shared_ptr<Charge> charge, Clock::duration patience) {
    const auto deadline = parts_.clock.now() + patience;
    const std::size_t failures = charge ? charge->failures : 0;
    for (;;) {
        if (parts_.service.is_ready(uuid)) {
            co_return Result<void>{};
        }
        const LastFailure* failure = parts_.supervisor.last_failure(uuid);
        const bool failed = !charge || charge->ended.requested() || charge->failures != failures;
        if (failed && failure != nullptr) {
            co_return make_error(Errc::unavailable, "vTPM {}: {}{}", uuid, failure->why,
                                 failure->final ? "" : " (it is tried again)");
        }
        if (failed || parts_.clock.now() >= deadline) {
            co_return make_error(Errc::timed_out, "vTPM {} does not serve yet", uuid);
        }
        if (auto stopped = co_await parts_.clock.sleep_for(process_look)) {
            co_return make_error(Errc::canceled, "vTPM {}: the manager stops", uuid);
        }
    }
}

Task<Result<void>> ControlService::stop(Uuid uuid, bool keep_autostart) {
    if (auto found = find(uuid); !found) {
        co_return found.error();
    }
    if (!keep_autostart) {
        auto marked = co_await parts_.wanted.set(uuid, false);
        if (!marked) {
            co_return marked;
        }
    }
    auto charge = parts_.supervisor.kept(uuid);
    const bool kept = charge != nullptr;
    if (kept) {
        parts_.supervisor.release(*charge);
        auto ended = co_await parts_.supervisor.wait_ended(std::move(charge), stop_patience);
        if (!ended) {
            co_return ended;
        }
    }
    if (parts_.supervisor.in_charge(uuid)) {
        co_return make_error(Errc::busy, "vTPM {} is open, in an instance that belongs to a guest's device", uuid);
    }
    co_return co_await end_process(uuid, kept);
}

/// Until nothing has it. The process that has one which this manager does not keep, as its link told, is asked to end.
Task<Result<void>> ControlService::end_process(Uuid uuid, bool asked) {
    const auto deadline = parts_.clock.now() + stop_patience;
    for (;;) {
        const ProcessHandle process = parts_.processes.find(uuid);
        const auto use = parts_.processes.in_use_now(uuid);
        if (!parts_.service.is_open(uuid) && !use) {
            co_return Result<void>{};
        }
        if (process.known() && !asked) {
            asked = true;
            process.signal(SIGTERM);
        }
        if (parts_.service.is_open(uuid) && !process.known() && !asked) {
            co_return make_error(Errc::busy,
                                 "vTPM {} is open, in an instance that belongs to another domain or PID namespace: end "
                                 "it there",
                                 uuid);
        }
        if (parts_.clock.now() >= deadline) {
            co_return make_error(asked ? Errc::timed_out : Errc::busy, "vTPM {} runs still: {}{}", uuid,
                                 use ? use->why : "its link stands",
                                 asked ? "; it was asked to end"
                                       : fmt::format("; `fuser {}` tells which", parts_.supervisor.image_of(uuid)));
        }
        if (auto stopped = co_await parts_.clock.sleep_for(process_look)) {
            co_return make_error(Errc::canceled, "vTPM {}: the manager stops", uuid);
        }
    }
}

Task<Result<VtpmInfo>> ControlService::autostart(Uuid uuid, bool on) {
    if (auto found = find(uuid); !found) {
        co_return found.error();
    }
    auto marked = co_await parts_.wanted.set(uuid, on);
    if (!marked) {
        co_return marked.error();
    }
    co_return vtpm(uuid);
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
            .beyond = freshness.counters().beyond,
            .owed = freshness.owed()};
}

std::vector<Metric> ControlService::metrics() const { return collect_metrics(*this, parts_); }

} // namespace vtpmd::manager
