// An operation that something beside it can end: an alarm, or any other call from the same loop.
#pragma once

#include "util/asio.hpp"
#include "util/cancelled.hpp"
#include "util/result.hpp"

#include <optional>
#include <string>
#include <tuple>

namespace vtpmd {

class Interruption {
  public:
    void request() {
        requested_ = true;
        signal_.emit(asio::cancellation_type::terminal);
    }
    [[nodiscard]] bool requested() const noexcept { return requested_; }
    [[nodiscard]] asio::cancellation_signal& signal() noexcept { return signal_; }

  private:
    asio::cancellation_signal signal_;
    bool requested_ = false;
};

/// Runs `operation`, which is cancelled by `by`, as by its caller's cancellation, and joined: never abandoned. After
/// `by` the result is Errc::timed_out with `what` in its text, unless the operation succeeded after all (its error by
/// then is our cancellation); Errc::canceled if it was the caller who was cancelled. Its exceptions pass through,
/// except after `by`.
template <typename T>
Task<Result<T>> interruptible(Interruption& by, std::string what, Task<Result<T>> operation) {
    if (by.requested()) { // it is not begun
        co_return make_error(Errc::timed_out, "{}: no answer in time", what);
    }
    const auto executor = co_await asio::this_coro::executor;
    const asio::cancellation_state caller = co_await asio::this_coro::cancellation_state;
    std::optional<Result<T>> outcome;
    auto run = [](Task<Result<T>> op, std::optional<Result<T>>& out) -> Task<> { out.emplace(co_await std::move(op)); };
    // The operation has a slot of its own, so the caller's is free to be passed on to it.
    auto slot = caller.slot();
    const bool passed_on = slot.is_connected() && !is_cancelled(caller);
    if (passed_on) {
        slot.assign([&by](asio::cancellation_type type) { by.signal().emit(type); });
    }
    auto [failed] = co_await asio::co_spawn(executor, run(std::move(operation), outcome),
                                            asio::bind_cancellation_slot(by.signal().slot(), use_tuple));
    if (passed_on) {
        slot.clear();
    }
    if (outcome && (!by.requested() || outcome->has_value())) {
        co_return std::move(*outcome);
    }
    if (failed && !by.requested()) {
        std::rethrow_exception(failed);
    }
    const bool cancelled = is_cancelled(co_await asio::this_coro::cancellation_state);
    if (cancelled) {
        co_return make_error(Errc::canceled, "{}: cancelled", what);
    }
    co_return make_error(Errc::timed_out, "{}: no answer in time", what);
}

} // namespace vtpmd
