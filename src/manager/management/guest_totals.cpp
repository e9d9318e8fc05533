#include "manager/management/guest_totals.hpp"

#include "tpm/command_names.hpp"

#include <algorithm>

namespace vtpmd::manager {

namespace {

std::string_view family_name(TpmVersion version, std::uint32_t code) {
    const std::string_view name = tpm::command_name(version, code);
    return name.empty() ? "other" : name;
}

bool is_behind(const proto::CommandTotals& a, const proto::CommandTotals& b) {
    return a.success < b.success || a.tpm_error < b.tpm_error || a.refused < b.refused || a.not_durable < b.not_durable;
}

void add_difference(proto::CommandTotals& to, const proto::CommandTotals& now, const proto::CommandTotals& before) {
    to.success += now.success - before.success;
    to.tpm_error += now.tpm_error - before.tpm_error;
    to.refused += now.refused - before.refused;
    to.not_durable += now.not_durable - before.not_durable;
}

const proto::CommandReport* command_in(const proto::Report& report, std::uint32_t code) {
    const auto it = std::ranges::lower_bound(report.commands, code, {}, &proto::CommandReport::code);
    return it != report.commands.end() && it->code == code ? &*it : nullptr;
}

/// An instance counts what it does not know as code 0. What has no name here, of an instance that is newer or lies, is not
/// counted: what is kept of each has a bound.
bool is_counted(TpmVersion version, std::uint32_t code) {
    return code == 0 || !tpm::command_name(version, code).empty();
}

void put_command(proto::Report& report, const proto::CommandReport& command) {
    const auto it = std::ranges::lower_bound(report.commands, command.code, {}, &proto::CommandReport::code);
    if (it != report.commands.end() && it->code == command.code) {
        *it = command;
    } else {
        report.commands.insert(it, command);
    }
}

/// All but the commands.
void put_sums(proto::Report& to, const proto::Report& from) {
    to.commits = from.commits;
    to.commit_failures = from.commit_failures;
    to.latency = from.latency;
    to.latency_ns = from.latency_ns;
}

} // namespace

Result<void> GuestTotals::check(const Known& known, const proto::Report& report) {
    const proto::Report& before = known.totals;
    bool back = report.commits < before.commits || report.commit_failures < before.commit_failures ||
                report.latency_ns < before.latency_ns;
    for (std::size_t i = 0; i < report.latency.size(); ++i) {
        back = back || report.latency[i] < before.latency[i];
    }
    for (const proto::CommandReport& c : report.commands) {
        const proto::CommandReport* last = command_in(before, c.code);
        back = back || (last != nullptr && is_behind(c.totals, last->totals));
    }
    if (back) {
        return make_error(Errc::protocol, "an instance reports less than it did before");
    }
    return {};
}

Result<void> GuestTotals::take(const Uuid& vtpm, TpmVersion version, const proto::Report& report) {
    Known& known = known_[vtpm];
    const auto now = clock_.now();
    const bool first = known.totals.incarnation != report.incarnation || known.activity.reported == Clock::time_point{};
    if (first) {
        known = Known{.reports = known.reports};
        known.totals.incarnation = report.incarnation;
        known.adopting = report.continued;
        known.activity.reported = now;
    }
    if (!known.reports.allow(now).allowed) {
        return make_error(Errc::protocol, "an instance reports more often than any needs to");
    }
    if (auto good = check(known, report); !good) {
        return good;
    }
    if (first && known.adopting) {
        put_sums(known.totals, report);
    }
    std::uint64_t commands = 0;
    for (const proto::CommandReport& c : report.commands) {
        if (!is_counted(version, c.code)) {
            continue;
        }
        const proto::CommandReport* last = command_in(known.totals, c.code);
        const proto::CommandTotals before = last != nullptr  ? last->totals
                                            : known.adopting ? c.totals
                                                             : proto::CommandTotals{};
        proto::CommandTotals difference;
        add_difference(difference, c.totals, before);
        add_difference(sums_.commands[family_name(version, c.code)], c.totals, before);
        commands += difference.all();
        known.activity.failures += difference.failures();
        put_command(known.totals, c);
    }
    // An instance that was there before says all that it counted in its first reports, as many as that takes.
    known.adopting = known.adopting && report.commands.size() == proto::report_command_limit;
    for (std::size_t i = 0; i < report.latency.size(); ++i) {
        sums_.latency[i] += report.latency[i] - known.totals.latency[i];
    }
    sums_.latency_ns += report.latency_ns - known.totals.latency_ns;
    sums_.commits += report.commits - known.totals.commits;
    sums_.commit_failures += report.commit_failures - known.totals.commit_failures;
    Activity& a = known.activity;
    a.commands += commands;
    a.commits += report.commits - known.totals.commits;
    if (const std::chrono::duration<double> window = now - a.reported; window.count() > 0) {
        // A guest that was idle began to be busy a report's pause ago at most.
        const double seconds = std::min(window.count(), std::chrono::duration<double>(idle_after).count());
        a.commands_per_second = static_cast<double>(commands) / seconds;
    }
    a.reported = now;
    put_sums(known.totals, report);
    if (report.last) {
        known = Known{.reports = known.reports};
    }
    return {};
}

std::optional<GuestTotals::Activity> GuestTotals::activity(const Uuid& vtpm) const {
    const auto it = known_.find(vtpm);
    if (it == known_.end() || it->second.activity.reported == Clock::time_point{}) {
        return std::nullopt;
    }
    Activity out = it->second.activity;
    if (clock_.now() - out.reported > idle_after) {
        out.commands_per_second = 0;
    }
    return out;
}

} // namespace vtpmd::manager
