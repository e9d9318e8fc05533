// Time as a collaborator: what waits takes a Clock, and tests give it one that they move by hand (tests/fakes).
#pragma once

#include "util/asio.hpp"
#include "util/result.hpp"

#include <chrono>
#include <functional>
#include <map>
#include <memory>
#include <optional>

namespace vtpmd {

class Alarm;

class Clock {
  public:
    using time_point = std::chrono::steady_clock::time_point;
    using duration = std::chrono::steady_clock::duration;
    Clock() = default;
    Clock(const Clock&) = delete;
    Clock& operator=(const Clock&) = delete;
    /// Alarms that are still set are forgotten.
    virtual ~Clock();

    [[nodiscard]] virtual time_point now() const = 0;
    /// Completes with no error when the time is up, with operation_aborted when the awaiting task is cancelled.
    /// It does not throw for that cancellation itself; the next co_await of the caller does (unless disabled).
    virtual Task<error_code> sleep_until(time_point when) = 0;
    Task<error_code> sleep_for(duration d) { return sleep_until(now() + d); }

  protected:
    /// When the first of the alarms is due; nullopt: none is set.
    [[nodiscard]] std::optional<time_point> first_alarm() const;
    [[nodiscard]] std::size_t alarms() const { return alarms_.size(); }
    /// Rings all that are due. To be called from the loop.
    void ring_due();

  private:
    friend class Alarm;
    /// One was set or cleared.
    virtual void alarms_changed() = 0;
    std::multimap<time_point, Alarm*> alarms_;
};

/// Calls `ring` once, from the loop, when the time is up. Cheaper than a sleep where nearly every wait is ended by
/// something else: no coroutine, and as a rule no timer of the loop's.
class Alarm {
  public:
    /// `ring` must not throw; it may set this again, or destroy it.
    Alarm(Clock& clock, std::function<void()> ring)
        : clock_(clock)
        , ring_(std::move(ring)) {}
    Alarm(const Alarm&) = delete;
    Alarm& operator=(const Alarm&) = delete;
    ~Alarm() { clear(); }

    /// Instead of what it was set to before.
    void set(Clock::time_point when);
    void clear();

  private:
    friend class Clock;
    Clock& clock_;
    std::function<void()> ring_;
    std::optional<std::multimap<Clock::time_point, Alarm*>::iterator> place_; ///< while it is set
};

/// std::chrono::steady_clock on the loop's timers.
class SystemClock final : public Clock {
  public:
    explicit SystemClock(asio::any_io_executor executor);
    ~SystemClock() override;
    SystemClock(const SystemClock&) = delete;
    SystemClock& operator=(const SystemClock&) = delete;

    [[nodiscard]] time_point now() const override { return std::chrono::steady_clock::now(); }
    Task<error_code> sleep_until(time_point when) override;
    /// Whether the loop's timer stays set when the alarm that it was set for is cleared; the next alarm will hardly
    /// ever need an earlier one. It keeps the loop running that long, so this is for as long as the loop is to run
    /// anyway.
    void keep_timer(bool keep);

  private:
    struct Timer;
    void alarms_changed() override;

    asio::any_io_executor executor_;
    std::shared_ptr<Timer> timer_; ///< of all alarms
    bool keep_timer_ = false;
};

} // namespace vtpmd
