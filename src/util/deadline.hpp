// Deadlines that join: the operation is cancelled and awaited, never abandoned.
#pragma once

#include "util/clock.hpp"
#include "util/interruption.hpp"

#include <string_view>

namespace vtpmd {

/// Errc::timed_out: that `what` did not answer within `limit`.
[[nodiscard]] inline Error no_answer_within(Clock::duration limit, std::string_view what) {
    return make_error(Errc::timed_out, "{}: no answer within {} ms", what,
                      std::chrono::duration_cast<std::chrono::milliseconds>(limit).count());
}

/// Runs `operation` for at most `limit`: interruptible() by the end of that time.
template <typename T>
Task<Result<T>> with_deadline(Clock& clock, Clock::duration limit, std::string what, Task<Result<T>> operation) {
    Interruption time_up;
    Alarm alarm(clock, [&time_up] { time_up.request(); });
    alarm.set(clock.now() + limit);
    auto done = co_await interruptible(time_up, what, std::move(operation));
    if (!done && time_up.requested() && done.error().code == Errc::timed_out) {
        co_return no_answer_within(limit, what);
    }
    co_return done;
}

} // namespace vtpmd
