#include "instance/guest_figures.hpp"

#include "tpm/command_names.hpp"
#include "util/uuid.hpp"
#include "util/wire.hpp"

#include <algorithm>

namespace vtpmd::instance {

namespace {

std::uint64_t random_number() {
    const Uuid u = random_uuid();
    return WireReader(u.bytes).be64();
}

std::uint64_t& total_of(proto::CommandTotals& totals, Outcome outcome) {
    switch (outcome) {
    case Outcome::success:
        return totals.success;
    case Outcome::tpm_error:
        return totals.tpm_error;
    case Outcome::refused:
        return totals.refused;
    case Outcome::not_durable:
        break;
    }
    return totals.not_durable;
}

} // namespace

GuestFigures::GuestFigures(const asio::any_io_executor& executor, TpmVersion version, const InstanceCounters& counters)
    : version_(version)
    , counters_(counters)
    , incarnation_(random_number())
    , woken_(executor, asio::steady_timer::time_point::max()) {}

GuestFigures::Entry& GuestFigures::entry_of(std::uint32_t code) {
    auto it = std::ranges::lower_bound(entries_, code, {}, [](const Entry& e) { return e.command.code; });
    if (it != entries_.end() && it->command.code == code) {
        return *it;
    }
    if (code != 0 && tpm::command_name(version_, code).empty()) {
        return entry_of(0);
    }
    Entry fresh;
    fresh.command.code = code;
    return *entries_.insert(it, fresh);
}

void GuestFigures::note(std::uint32_t code, Outcome outcome, Clock::duration took) {
    Entry& entry = entry_of(code);
    ++total_of(entry.command.totals, outcome);
    entry.news = true;
    const auto& bounds = proto::latency_bounds;
    const auto bound = std::ranges::lower_bound(bounds, took);
    ++latency_[static_cast<std::size_t>(bound - bounds.begin())];
    latency_ns_ += static_cast<std::uint64_t>(std::chrono::duration_cast<std::chrono::nanoseconds>(took).count());
    if (!news_) {
        news_ = true;
        woken_.cancel();
    }
}

Task<> GuestFigures::wait_for_news() {
    if (!news_) {
        (void)co_await woken_.async_wait(use_tuple);
    }
}

proto::Report GuestFigures::summary() const {
    proto::Report out;
    out.incarnation = incarnation_;
    out.continued = continued_;
    out.commits = counters_.commits;
    out.commit_failures = counters_.commit_failures;
    out.latency_ns = latency_ns_;
    out.latency = latency_;
    return out;
}

std::optional<proto::Report> GuestFigures::next_report() {
    if (!news_) {
        return std::nullopt;
    }
    proto::Report out = summary();
    news_ = false;
    for (Entry& e : entries_) {
        if (!e.news) {
            continue;
        }
        if (out.commands.size() == proto::report_command_limit) {
            news_ = true; // comes with the next
            break;
        }
        e.news = false;
        out.commands.push_back(e.command);
    }
    reported_ = true;
    return out;
}

void GuestFigures::report_anew() {
    continued_ = reported_;
    for (Entry& e : entries_) {
        e.news = true;
    }
    news_ = true;
}

} // namespace vtpmd::instance
