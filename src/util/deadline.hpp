// Deadlines that join: the operation is cancelled and awaited, never abandoned.
#pragma once

#include "util/asio.hpp"
#include "util/cancelled.hpp"
#include "util/clock.hpp"
#include "util/result.hpp"

#include <boost/asio/experimental/parallel_group.hpp>
#include <optional>

namespace vtpmd {

/// Runs `operation` for at most `limit`. When the time is up the operation is cancelled and joined, and the result is
/// Errc::timed_out with `what` in its text, unless it succeeded after all (its error by then is our cancellation);
/// Errc::canceled if it was the caller who was cancelled.
/// The operation's exceptions pass through, except operation_aborted after the deadline.
template <typename T>
Task<Result<T>> with_deadline(Clock& clock, Clock::duration limit, std::string what, Task<Result<T>> operation) {
    auto executor = co_await asio::this_coro::executor;
    std::optional<Result<T>> outcome;
    std::exception_ptr thrown;
    auto run = [](Task<Result<T>> op, std::optional<Result<T>>& out) -> Task<> { out.emplace(co_await std::move(op)); };
    auto wait = [](Clock& c, Clock::duration d) -> Task<> { (void)co_await c.sleep_for(d); };
    auto [order, op_error, timer_error] =
        co_await asio::experimental::make_parallel_group(
            asio::co_spawn(executor, run(std::move(operation), outcome), asio::deferred),
            asio::co_spawn(executor, wait(clock, limit), asio::deferred))
            .async_wait(asio::experimental::wait_for_one(), asio::use_awaitable);
    (void)timer_error;
    const bool in_time = order[0] == 0;
    if (outcome && (in_time || outcome->has_value())) {
        co_return std::move(*outcome);
    }
    if (op_error && in_time) {
        std::rethrow_exception(op_error);
    }
    const bool cancelled = is_cancelled(co_await asio::this_coro::cancellation_state);
    if (cancelled) {
        co_return make_error(Errc::canceled, "{}: cancelled", what);
    }
    co_return make_error(Errc::timed_out, "{}: no answer within {} ms", what,
                         std::chrono::duration_cast<std::chrono::milliseconds>(limit).count());
}

} // namespace vtpmd
