// Time as a collaborator: what waits takes a Clock, and tests give it one that they move by hand (tests/fakes).
#pragma once

#include "util/asio.hpp"
#include "util/result.hpp"

#include <chrono>

namespace vtpmd {

class Clock {
  public:
    using time_point = std::chrono::steady_clock::time_point;
    using duration = std::chrono::steady_clock::duration;
    virtual ~Clock() = default;

    [[nodiscard]] virtual time_point now() const = 0;
    /// Completes with no error when the time is up, with operation_aborted when the awaiting task is cancelled.
    /// It does not throw for that cancellation itself; the next co_await of the caller does (unless disabled).
    virtual Task<error_code> sleep_until(time_point when) = 0;
    Task<error_code> sleep_for(duration d) { return sleep_until(now() + d); }
};

/// std::chrono::steady_clock on the loop's timers.
class SystemClock final : public Clock {
  public:
    explicit SystemClock(asio::any_io_executor executor)
        : executor_(std::move(executor)) {}
    [[nodiscard]] time_point now() const override { return std::chrono::steady_clock::now(); }
    Task<error_code> sleep_until(time_point when) override;

  private:
    asio::any_io_executor executor_;
};

} // namespace vtpmd
