// Runs a coroutine to its end on an io_context of the test's.
#pragma once

#include "util/asio.hpp"

#include <exception>
#include <optional>
#include <stdexcept>

namespace vtpmd::test {

/// Until the task ends or the loop runs dry (which is a hang: throws). Other work of the loop runs meanwhile, and after it
/// if it was started before.
template <typename T>
T run_task(asio::io_context& loop, Task<T> task) {
    std::optional<T> out;
    std::exception_ptr thrown;
    auto body = [](Task<T> t, std::optional<T>& into) -> Task<> { into.emplace(co_await std::move(t)); };
    asio::co_spawn(loop, body(std::move(task), out), [&](std::exception_ptr e) { thrown = std::move(e); });
    loop.restart();
    loop.run();
    if (thrown) {
        std::rethrow_exception(thrown);
    }
    if (!out) {
        throw std::runtime_error("the task never ended: nothing was left that could wake it");
    }
    return std::move(*out);
}

inline void run_task(asio::io_context& loop, Task<> task) {
    auto body = [](Task<> t) -> Task<bool> {
        co_await std::move(t);
        co_return true;
    };
    (void)run_task<bool>(loop, body(std::move(task)));
}

} // namespace vtpmd::test
