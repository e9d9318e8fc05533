// Runs are tried in processes of their own, so that one which ends the program is a verdict too.
#pragma once

#include "step.hpp"

namespace vtpmd::sim {

struct Verdict {
    std::string broken;      ///< empty: nothing
    std::uint64_t trace = 0; ///< of all that happened: equal for equal runs
};

[[nodiscard]] Verdict try_run(const Run& run, bool loud);

struct Batch {
    std::uint64_t tried = 0; ///< up to the one that broke
    Verdict verdict;
};
[[nodiscard]] Batch try_seeds(std::uint64_t first, std::uint64_t count, std::uint32_t length, bool loud);

/// The shortest run found that breaks too (delta debugging: Zeller and Hildebrandt's ddmin).
[[nodiscard]] Run shrink(Run run);

} // namespace vtpmd::sim
