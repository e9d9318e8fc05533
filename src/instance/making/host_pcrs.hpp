// The host's PCR values, asked of the manager's TPM, for --hwinitpcrs.
#pragma once

#include "engine/pcr_preset.hpp"
#include "proto/link/client.hpp"

#include <vector>

namespace vtpmd::instance {

/// Values of the PCRs named (0-23): for a TPM 1.2 the SHA-1 bank, for a TPM 2.0 every bank that the manager's TPM has.
Task<Result<std::vector<PcrPreset>>> fetch_host_pcrs(proto::ManagerClient& manager, TpmVersion version,
                                                     std::vector<unsigned> pcrs);

} // namespace vtpmd::instance
