// What a guest's commands came to, by their code: counted where they are answered, told to the manager in reports
// (proto/link/ask_messages.hpp). Grows by what the guest uses, at most by what has a name; the rest is one entry, 0.
#pragma once

#include "instance/counters.hpp"
#include "proto/link/ask_messages.hpp"
#include "tpm/version.hpp"
#include "util/asio.hpp"
#include "util/clock.hpp"

#include <optional>

namespace vtpmd::instance {

enum class Outcome : std::uint8_t { success, tpm_error, refused, not_durable };

/// One loop thread.
class GuestFigures {
  public:
    /// `counters` has the commits; outlives this.
    GuestFigures(const asio::any_io_executor& executor, TpmVersion version, const InstanceCounters& counters);

    void note(std::uint32_t code, Outcome outcome, Clock::duration took);

    /// As proto::Questioned has them.
    Task<> wait_for_news();
    std::optional<proto::Report> next_report();
    [[nodiscard]] proto::Report summary() const;
    void report_anew();

  private:
    struct Entry {
        proto::CommandReport command;
        bool news = false;
    };
    Entry& entry_of(std::uint32_t code);

    const TpmVersion version_;
    const InstanceCounters& counters_;
    const std::uint64_t incarnation_;

    std::vector<Entry> entries_; ///< by code, ascending
    std::uint64_t latency_ns_ = 0;
    std::array<std::uint64_t, proto::latency_bounds.size() + 1> latency_{};
    bool news_ = false;
    bool reported_ = false;    ///< something was, ever
    bool continued_ = false;   ///< and before this connection
    asio::steady_timer woken_; ///< never expires; cancelled when there is news
};

} // namespace vtpmd::instance
