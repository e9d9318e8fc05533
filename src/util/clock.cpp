#include "util/clock.hpp"

namespace vtpmd {

Task<error_code> SystemClock::sleep_until(time_point when) {
    asio::steady_timer timer(executor_, when);
    auto [ec] = co_await timer.async_wait(use_tuple);
    co_return ec;
}

} // namespace vtpmd
