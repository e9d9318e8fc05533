// RootOfTrust over the operations of one family: requests queued, merged where one command can serve several, and run
// on the hardware thread.
#pragma once

#include "hwtpm/device.hpp"
#include "hwtpm/root_of_trust.hpp"
#include "hwtpm/tpm12/tpm12.hpp"
#include "hwtpm/tpm20/tpm20.hpp"

namespace vtpmd::hwtpm {

/// Starts the TPM behind `device` (blocks). `log` outlives the root.
[[nodiscard]] Result<std::unique_ptr<RootOfTrust>> make_root20(std::unique_ptr<TpmDevice> device, Tpm20::Config config,
                                                               asio::any_io_executor executor, const Log& log);

[[nodiscard]] Result<std::unique_ptr<RootOfTrust>> make_root12(std::unique_ptr<TpmDevice> device, Tpm12::Config config,
                                                               asio::any_io_executor executor, const Log& log);

} // namespace vtpmd::hwtpm
