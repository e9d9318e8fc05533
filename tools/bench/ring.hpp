// The ring on simulated Xen: a guest on one thread, the back end with a TPM behind it on another, pages and events between them.
#pragma once

#include "measure.hpp"

namespace bench {

struct RingTrips {
    Latency polled;  ///< the guest looks at the page for 50 us before it sleeps, as the back end does
    Latency slept;   ///< the guest sleeps until it is notified; the back end looks for 50 us after an answer
    Latency no_spin; ///< both sleep
};
RingTrips ring_round_trips(ByteView command, const Extent& extent);

/// Commands a second that one back end loop serves on `rings` rings, each with one command under way all the time.
double rings_per_second(std::size_t rings, ByteView command, std::chrono::milliseconds time);

} // namespace bench
