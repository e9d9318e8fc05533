// What the guests of all vTPMs asked of their TPMs, as their instances report it (proto/link/ask_messages.hpp). Sums only grow: what an
// instance reported stays when it ends, and what it reports again on another connection is not counted twice. It is an instance's word.
#pragma once

#include "proto/link/ask_messages.hpp"
#include "tpm/version.hpp"
#include "util/clock.hpp"
#include "util/log.hpp"
#include "util/result.hpp"

#include <map>
#include <optional>
#include <string_view>
#include <unordered_map>

namespace vtpmd::manager {

/// One loop thread.
class GuestTotals {
  public:
    /// A vTPM's, since this manager or its instance was started, whichever came last.
    struct Activity {
        std::uint64_t commands = 0;
        std::uint64_t failures = 0; ///< of them: all but success
        std::uint64_t commits = 0;
        double commands_per_second = 0; ///< as of the last report
        Clock::time_point reported;
    };
    struct Sums {
        std::map<std::string_view, proto::CommandTotals> commands; ///< by name; "other" for those without
        std::array<std::uint64_t, proto::latency_bounds.size() + 1> latency{};
        std::uint64_t latency_ns = 0;
        std::uint64_t commits = 0;
        std::uint64_t commit_failures = 0;
    };
    /// After so long without a report a guest is idle.
    static constexpr Clock::duration idle_after = std::chrono::seconds(6);

    /// Outlives this.
    explicit GuestTotals(Clock& clock)
        : clock_(clock) {}

    /// Errc::protocol: a figure went back, or there are too many reports.
    Result<void> take(const Uuid& vtpm, TpmVersion version, const proto::Report& report);
    /// A vTPM that is gone: its instance may have been killed, and said no last word. The sums stay.
    void forget(const Uuid& vtpm) { known_.erase(vtpm); }

    [[nodiscard]] const Sums& sums() const noexcept { return sums_; }
    /// nullopt: it reported nothing to this manager, its instance has ended in good order, or it is gone.
    [[nodiscard]] std::optional<Activity> activity(const Uuid& vtpm) const;

  private:
    /// What an instance said last.
    struct Known {
        proto::Report totals; ///< `commands` are all that it ever named
        bool adopting =
            false; ///< it counted before this manager was there: what is new in its reports is not what happened since
        Activity activity;
        RateLimit reports{
            {.burst = 100, .interval = std::chrono::seconds{50}}}; ///< more often than an instance reports
    };
    static Result<void> check(const Known& known, const proto::Report& report);

    Clock& clock_;
    std::unordered_map<Uuid, Known> known_;
    Sums sums_;
};

} // namespace vtpmd::manager
