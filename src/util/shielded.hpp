// Work that goes on although the task that asked for it is cancelled: it runs in a group of its owner's, which joins
// it.
#pragma once

#include "util/cancelled.hpp"
#include "util/deadline.hpp"
#include "util/task_group.hpp"
#include "util/wake.hpp"

#include <memory>
#include <optional>

namespace vtpmd {

namespace detail {

template <typename T>
struct Shielded {
    explicit Shielded(const asio::any_io_executor& e)
        : ended(e) {}
    Wake ended; ///< or not waited for any longer
    std::optional<T> value;
    std::exception_ptr thrown;
    bool late = false; ///< nobody waits any longer

    static Task<> run(std::shared_ptr<Shielded> to, Task<T> operation) {
        try {
            to->value.emplace(co_await std::move(operation));
        } catch (...) {
            to->thrown = std::current_exception();
        }
        to->ended.set();
    }
    static Task<std::optional<T>> outcome(std::shared_ptr<Shielded> of) {
        while (!of->value && !of->thrown && !of->late) {
            (void)co_await of->ended.wait();
            const auto state = co_await asio::this_coro::cancellation_state;
            if (!of->value && !of->thrown && is_cancelled(state)) {
                co_return std::nullopt;
            }
        }
        if (of->thrown) {
            std::rethrow_exception(of->thrown);
        }
        co_return std::move(of->value);
    }
};

} // namespace detail

/// Runs `operation` in `group` and waits for it. nullopt: the caller was cancelled first; the operation goes on. What
/// the operation throws is thrown here.
template <typename T>
Task<std::optional<T>> shielded(TaskGroup& group, std::string name, Task<T> operation) {
    using Shared = detail::Shielded<T>;
    auto shared = std::make_shared<Shared>(co_await asio::this_coro::executor);
    group.spawn(std::move(name), Shared::run(shared, std::move(operation)));
    co_return co_await Shared::outcome(std::move(shared));
}

/// with_deadline() whose operation goes on, in `group`, when the time is up (Errc::timed_out) or the caller is
/// cancelled (Errc::canceled).
template <typename T>
Task<Result<T>> shielded_for(Clock& clock, Clock::duration limit, TaskGroup& group, std::string what,
                             Task<Result<T>> operation) {
    using Shared = detail::Shielded<Result<T>>;
    auto shared = std::make_shared<Shared>(co_await asio::this_coro::executor);
    Alarm alarm(clock, [of = shared.get()] {
        of->late = true;
        of->ended.set();
    });
    alarm.set(clock.now() + limit);
    group.spawn(what, Shared::run(shared, std::move(operation)));
    auto done = co_await Shared::outcome(shared);
    if (done) {
        co_return std::move(*done);
    }
    const bool cancelled = is_cancelled(co_await asio::this_coro::cancellation_state);
    if (cancelled) {
        co_return make_error(Errc::canceled, "{}: cancelled", what);
    }
    co_return no_answer_within(limit, what);
}

} // namespace vtpmd
