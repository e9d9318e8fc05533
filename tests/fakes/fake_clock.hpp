// A clock that tests move by hand.
#pragma once

#include "util/clock.hpp"

#include <list>

namespace vtpmd::fakes {

class FakeClock final : public Clock {
  public:
    explicit FakeClock(asio::any_io_executor executor)
        : executor_(std::move(executor)) {}

    [[nodiscard]] time_point now() const override { return now_; }

    Task<error_code> sleep_until(time_point when) override {
        if (when <= now_) {
            co_return error_code{};
        }
        Sleeper self{asio::steady_timer(executor_, asio::steady_timer::time_point::max()), when};
        auto place = sleepers_.insert(sleepers_.end(), &self);
        struct Leave {
            std::list<Sleeper*>& all;
            std::list<Sleeper*>::iterator place;
            ~Leave() { all.erase(place); }
        } leave{sleepers_, place};
        auto [ec] = co_await self.wake.async_wait(use_tuple);
        co_return self.due ? error_code{} : ec;
    }

    /// Moves time and wakes who is due; they run when the loop does.
    void advance(duration by) {
        now_ += by;
        for (Sleeper* s : sleepers_) {
            if (!s->due && s->when <= now_) {
                s->due = true;
                s->wake.cancel();
            }
        }
        alarms_changed();
    }
    /// Those who sleep, and the alarms that are set.
    [[nodiscard]] std::size_t sleeping() const { return sleepers_.size() + alarms(); }
    /// When the first of those is due; now() if there is none.
    [[nodiscard]] time_point next_due() const {
        const auto alarm = first_alarm();
        time_point first = alarm.value_or(now_);
        bool any = alarm.has_value();
        for (const Sleeper* s : sleepers_) {
            if (!s->due && (!any || s->when < first)) {
                first = s->when;
                any = true;
            }
        }
        return first;
    }

  private:
    void alarms_changed() override {
        const auto first = first_alarm();
        if (first && *first <= now_) {
            asio::post(executor_, [this] { ring_due(); });
        }
    }

    struct Sleeper {
        asio::steady_timer wake; ///< never expires; cancelled when due
        time_point when;
        bool due = false;
    };
    asio::any_io_executor executor_;
    time_point now_{std::chrono::hours(1000)};
    std::list<Sleeper*> sleepers_;
};

} // namespace vtpmd::fakes
