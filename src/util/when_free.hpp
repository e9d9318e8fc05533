// Patience for places that a process which has just died still holds.
//
// A killed process gives up its sockets and file locks only when the kernel has taken its io_uring down, and that
// happens behind its back, some milliseconds after its parent has been told of its end. Whoever starts again at once
// must not be turned away for that.
#pragma once

#include "util/asio.hpp"
#include "util/clock.hpp"
#include "util/result.hpp"

namespace vtpmd {

inline constexpr Clock::duration dying_process_patience = std::chrono::seconds(3);

/// While the kernel finishes what a killed process has asked of a slow disk.
inline constexpr Clock::duration lingering_patience = std::chrono::seconds(60);

/// Calls `open`, a coroutine function that returns a Result, until it gives anything but Errc::busy, for at most
/// `patience`, or Errc::lingering, for at most lingering_patience. What `open` refers to must outlive the call.
template <typename Open>
auto when_free(Clock& clock, Clock::duration patience, Open open) -> decltype(open()) {
    constexpr auto step = std::chrono::milliseconds(20);
    const Clock::time_point begin = clock.now();
    for (;;) {
        auto opened = co_await open();
        if (opened) {
            co_return opened;
        }
        const Errc code = opened.error().code;
        const Clock::duration limit = code == Errc::busy        ? patience
                                      : code == Errc::lingering ? lingering_patience
                                                                : Clock::duration::zero();
        if (clock.now() + step > begin + limit) {
            co_return opened;
        }
        if (auto cancelled = co_await clock.sleep_for(step)) {
            co_return make_error(Errc::canceled, "cancelled while waiting for a place to be free");
        }
    }
}

} // namespace vtpmd
