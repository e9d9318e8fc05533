// What vTPMs' commits ask of the hardware TPM: the manager's store in this process, on a real disk, over a TPM 2.0 (swtpm) that
// is as slow as a part on the board.
#pragma once

#include "manager/options.hpp"

#include <chrono>
#include <filesystem>
#include <memory>
#include <string>

namespace bench {

/// How long the TPM takes for any command.
inline constexpr std::chrono::milliseconds hardware_pace{20};

struct CommitCost {
    double per_second = 0;          ///< durable commits that were acknowledged
    double commands_per_commit = 0; ///< that the TPM was sent
    double steps_per_batch = 0;     ///< of the freshness counter, for each write of the journal
    double commits_per_batch = 0;
};
struct RandomLatency {
    double p50_us = 0;
    double p99_us = 0;
};

class HardwareBench {
  public:
    /// Starts `swtpm` with its state below `dir`, and makes a store there. Throws.
    HardwareBench(const std::string& swtpm, const std::filesystem::path& dir,
                  vtpmd::manager::FreshnessPolicy freshness);
    HardwareBench(const HardwareBench&) = delete;
    HardwareBench& operator=(const HardwareBench&) = delete;
    ~HardwareBench();

    /// `vtpms` of them commit as fast as they can, each one at a time.
    CommitCost commits(std::size_t vtpms, std::chrono::milliseconds time);
    /// 16 random bytes asked for every two milliseconds, with or without seals going on all the time.
    RandomLatency random(bool sealing, std::chrono::milliseconds time);

  private:
    struct Impl;
    std::unique_ptr<Impl> impl_;
};

} // namespace bench
