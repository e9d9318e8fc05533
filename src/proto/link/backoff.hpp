// How long to wait before trying a broken link again: pure. The first try is at once, then the wait doubles
// up to a limit, spread a little so that a thousand instances do not come back to a restarted manager in one
// instant.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstdint>

namespace vtpmd::proto {

struct Backoff {
    std::chrono::milliseconds first{20};
    std::chrono::milliseconds limit{1000};

    /// Before attempt number `attempt` (0 is the first). `random` is any number; it spreads the wait over
    /// 75-125 %.
    [[nodiscard]] std::chrono::milliseconds wait_before(unsigned attempt, std::uint32_t random) const {
        if (attempt == 0) {
            return std::chrono::milliseconds(0);
        }
        const unsigned doublings = std::min(attempt - 1, 20U);
        const auto base = std::min<std::int64_t>(first.count() << doublings, limit.count());
        return std::chrono::milliseconds(base * (75 + random % 51) / 100);
    }
};

} // namespace vtpmd::proto
