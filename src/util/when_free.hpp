// Patience for places that a process which has just died still holds.
//
// A killed process gives up its sockets and file locks only when the kernel has taken its io_uring down, and that happens
// behind its back, some milliseconds after its parent has been told of its end. Whoever starts again at once must not be
// turned away for that.
#pragma once

#include "util/asio.hpp"
#include "util/clock.hpp"
#include "util/result.hpp"

namespace vtpmd {

inline constexpr Clock::duration dying_process_patience = std::chrono::seconds(3);

/// Calls `open`, a coroutine function that returns a Result, until it gives anything but Errc::busy, for at most
/// `patience`. What `open` refers to must outlive the call.
template <typename Open>
auto when_free(Clock& clock, Clock::duration patience, Open open) -> decltype(open()) {
    constexpr auto step = std::chrono::milliseconds(20);
    const Clock::time_point end = clock.now() + patience;
    for (;;) {
        auto opened = co_await open();
        if (opened || opened.error().code != Errc::busy || clock.now() + step > end) {
            co_return opened;
        }
        if (auto cancelled = co_await clock.sleep_for(step)) {
            co_return make_error(Errc::canceled, "cancelled while waiting for a place to be free");
        }
    }
}

} // namespace vtpmd
