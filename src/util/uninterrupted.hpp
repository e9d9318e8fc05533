// Durable state changes in steps that must not be left half-way because somebody's deadline passed.
#pragma once

#include "util/asio.hpp"

#include <utility>

namespace vtpmd {

/// Awaits `operation` to its end although the calling task may be cancelled meanwhile: the co_awaits inside it do not
/// throw for that. The cancellation is kept and shows at the caller's next co_await. (Only for operations that end by
/// themselves, such as disk writes.)
template <typename T>
Task<T> uninterrupted(Task<T> operation) {
    const bool before = co_await asio::this_coro::throw_if_cancelled();
    co_await asio::this_coro::throw_if_cancelled(false);
    T outcome = co_await std::move(operation);
    co_await asio::this_coro::throw_if_cancelled(before);
    co_return outcome;
}

} // namespace vtpmd
