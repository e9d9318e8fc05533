// Whether this task was asked to stop. A loop that does not let cancellation throw (throw_if_cancelled(false)) must ask
// before each wait: a request that comes while an operation has completed, but its coroutine has not been resumed yet,
// ends neither that operation nor the next.
#pragma once

#include "util/asio.hpp"

namespace vtpmd {

/// `const bool stop = is_cancelled(co_await asio::this_coro::cancellation_state);`
[[nodiscard]] inline bool is_cancelled(const asio::cancellation_state& state) noexcept {
    return state.cancelled() != asio::cancellation_type::none;
}

} // namespace vtpmd
