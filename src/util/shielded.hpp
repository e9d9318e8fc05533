// Work that goes on although the task that asked for it is cancelled: it runs in a group of its owner's, which joins
// it.
#pragma once

#include "util/task_group.hpp"

#include <memory>
#include <optional>

namespace vtpmd {

/// Runs `operation` in `group` and waits for it. nullopt: the caller was cancelled first; the operation goes on. What
/// the operation throws is thrown here.
template <typename T>
Task<std::optional<T>> shielded(TaskGroup& group, std::string name, Task<T> operation) {
    struct Shared {
        explicit Shared(const asio::any_io_executor& e)
            : ended(e, asio::steady_timer::time_point::max()) {}
        asio::steady_timer ended; ///< never expires; cancelled at the end
        std::optional<T> value;
        std::exception_ptr thrown;
    };
    auto shared = std::make_shared<Shared>(co_await asio::this_coro::executor);
    auto run = [](std::shared_ptr<Shared> to, Task<T> op) -> Task<> {
        try {
            to->value.emplace(co_await std::move(op));
        } catch (...) {
            to->thrown = std::current_exception();
        }
        to->ended.cancel();
    };
    group.spawn(std::move(name), run(shared, std::move(operation)));
    while (!shared->value && !shared->thrown) {
        (void)co_await shared->ended.async_wait(use_tuple);
        const auto state = co_await asio::this_coro::cancellation_state;
        if (!shared->value && !shared->thrown && state.cancelled() != asio::cancellation_type::none) {
            co_return std::nullopt;
        }
    }
    if (shared->thrown) {
        std::rethrow_exception(shared->thrown);
    }
    co_return std::move(shared->value);
}

} // namespace vtpmd
