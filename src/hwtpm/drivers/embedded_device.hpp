// libtpms in this process as the "hardware" TPM 2.0: for trying and testing. Every change of its state is on stable
// storage before the answer is given. Its PCRs start at zero with each start, as after a power cycle; DIR/measurements
// (measurements.hpp) says what is extended then.
#pragma once

#include "hwtpm/device.hpp"
#include "util/log.hpp"

#include <filesystem>

namespace vtpmd::hwtpm {

/// A fresh TPM is made only if there is no state and `create`. Errc::not_found says so otherwise.
[[nodiscard]] Result<std::unique_ptr<TpmDevice>> open_embedded(const std::filesystem::path& dir, unsigned locality,
                                                               bool create, const Log& log);

} // namespace vtpmd::hwtpm
