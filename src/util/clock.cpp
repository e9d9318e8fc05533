#include "util/clock.hpp"

#include <utility>

namespace vtpmd {

Clock::~Clock() {
    for (const auto& [when, alarm] : alarms_) {
        alarm->place_.reset();
    }
}

std::optional<Clock::time_point> Clock::first_alarm() const {
    return alarms_.empty() ? std::nullopt : std::optional(alarms_.begin()->first);
}

void Clock::ring_due() {
    const time_point until = now();
    while (!alarms_.empty() && alarms_.begin()->first <= until) {
        Alarm* alarm = alarms_.begin()->second;
        alarms_.erase(alarms_.begin());
        alarm->place_.reset();
        const auto ring = alarm->ring_; // it may destroy the alarm
        ring();
    }
}

void Alarm::set(Clock::time_point when) {
    if (place_) {
        clock_.alarms_.erase(*std::exchange(place_, std::nullopt));
    }
    place_ = clock_.alarms_.emplace(when, this);
    clock_.alarms_changed();
}

void Alarm::clear() {
    if (place_) {
        clock_.alarms_.erase(*std::exchange(place_, std::nullopt));
        clock_.alarms_changed();
    }
}

/// Outlives the clock where a wait was not told its end yet.
struct SystemClock::Timer {
    explicit Timer(const asio::any_io_executor& executor)
        : timer(executor) {}
    asio::steady_timer timer;
    std::optional<time_point> set_to;
};

SystemClock::SystemClock(asio::any_io_executor executor)
    : executor_(std::move(executor))
    , timer_(std::make_shared<Timer>(executor_)) {}

SystemClock::~SystemClock() {
    timer_->set_to.reset();
    timer_->timer.cancel();
}

Task<error_code> SystemClock::sleep_until(time_point when) {
    asio::steady_timer timer(executor_, when);
    auto [ec] = co_await timer.async_wait(use_tuple);
    co_return ec;
}

void SystemClock::keep_timer(bool keep) {
    keep_timer_ = keep;
    alarms_changed();
}

void SystemClock::alarms_changed() {
    const auto first = first_alarm();
    if (!first) {
        if (!keep_timer_ && timer_->set_to) {
            timer_->set_to.reset();
            timer_->timer.cancel();
        }
        return;
    }
    if (timer_->set_to && *timer_->set_to <= *first) {
        return;
    }
    timer_->set_to = first;
    timer_->timer.expires_at(*first);
    timer_->timer.async_wait([this, timer = timer_, when = *first](error_code /*ec*/) {
        if (timer->set_to != when) { // another wait took its place, or the clock is gone
            return;
        }
        timer->set_to.reset();
        ring_due();
        alarms_changed();
    });
}

} // namespace vtpmd
