// What main hands to the root coroutine of either mode.
#pragma once

#include "util/asio.hpp"
#include "util/clock.hpp"
#include "util/log.hpp"

namespace vtpmd {

/// Asked once to stop (SIGTERM, SIGINT, CMD_SHUTDOWN); any number of tasks may wait for it.
class StopSignal {
  public:
    explicit StopSignal(const asio::any_io_executor& executor)
        : requested_timer_(executor, asio::steady_timer::time_point::max()) {}

    void request() {
        requested_ = true;
        requested_timer_.cancel();
    }
    [[nodiscard]] bool requested() const noexcept { return requested_; }
    /// Returns once stop is requested, or when the awaiting task is cancelled.
    Task<> wait() {
        if (!requested_) {
            (void)co_await requested_timer_.async_wait(use_tuple);
        }
    }

  private:
    asio::steady_timer requested_timer_; ///< never expires; cancelled by request()
    bool requested_ = false;
};

/// All of it outlives the root coroutine.
struct RuntimeDeps {
    asio::any_io_executor executor;
    Clock& clock;
    const Log& log;
    StopSignal& stop;
};

} // namespace vtpmd
