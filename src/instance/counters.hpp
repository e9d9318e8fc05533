// What an instance counts, for metrics.
#pragma once

#include <cstdint>

namespace vtpmd::instance {

struct InstanceCounters {
    std::uint64_t commands = 0;           ///< that reached the TPM
    std::uint64_t long_commands = 0;      ///< of these, on the worker thread
    std::uint64_t tpm_errors = 0;         ///< of these, answered with an error by the TPM
    std::uint64_t refused = 0;            ///< by size, locality or policy, before the TPM
    std::uint64_t failed_not_durable = 0; ///< answered with a failure since state could not be made durable
    std::uint64_t commits = 0;
    std::uint64_t commit_failures = 0;
    std::uint64_t power_cycles = 0;
    std::uint64_t cancels = 0;
};

} // namespace vtpmd::instance
