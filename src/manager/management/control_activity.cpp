// A live view: the vTPMs that are open, the busiest first, and the queues of what they share.
#include "manager/management/control_service.hpp"

#include <algorithm>

namespace vtpmd::manager {

namespace {

std::uint64_t all_commands(const GuestTotals::Sums& sums) {
    std::uint64_t out = 0;
    for (const auto& [name, t] : sums.commands) {
        out += t.all();
    }
    return out;
}

bool is_busier(const Activity& a, const Activity& b) {
    if (a.commands_per_second > b.commands_per_second || b.commands_per_second > a.commands_per_second) {
        return a.commands_per_second > b.commands_per_second;
    }
    return a.commands != b.commands ? a.commands > b.commands : a.uuid < b.uuid;
}

} // namespace

ActivityInfo ControlService::activity(std::size_t limit) const {
    const hwtpm::HardwareMetrics hardware = parts_.root.metrics();
    const FreshnessInfo fresh = freshness();
    ActivityInfo out{.vtpms = parts_.vault.registry().vtpm_count(),
                     .open = parts_.service.open_count(),
                     .guest_commands = all_commands(parts_.guests.sums()),
                     .guest_commits = parts_.guests.sums().commits,
                     .hardware_commands = hardware.commands,
                     .urgent_waiting = hardware.urgent_waiting,
                     .routine_waiting = hardware.routine_waiting,
                     .journal_waiting = parts_.vault.journal_counters().waiting,
                     .freshness_counter = fresh.counter,
                     .freshness_steps = fresh.steps};
    for (const Uuid& uuid : parts_.service.open_vtpms()) {
        const auto* vtpm = parts_.vault.registry().find(uuid);
        if (vtpm == nullptr) {
            continue;
        }
        Activity a{.uuid = uuid, .state = state_of(uuid, *vtpm)};
        if (auto told = parts_.guests.activity(uuid)) {
            a.commands_per_second = told->commands_per_second;
            a.commands = told->commands;
            a.failures = told->failures;
            a.commits = told->commits;
        }
        out.busiest.push_back(a);
    }
    const std::size_t kept = std::min(limit, out.busiest.size());
    std::ranges::partial_sort(out.busiest, out.busiest.begin() + static_cast<std::ptrdiff_t>(kept), is_busier);
    out.busiest.resize(kept);
    return out;
}

} // namespace vtpmd::manager
