// swtpm's sockets as a TPM: raw commands on the data socket; its control channel (PATH.ctrl, or port + 1), if it is
// there, powers the TPM on, sets the locality and cancels. For trying and testing: nothing but file permissions (or the
// network) protects the seed of such a TPM.
#pragma once

#include "hwtpm/device.hpp"
#include "hwtpm/drivers/driver_spec.hpp"
#include "util/log.hpp"

namespace vtpmd::hwtpm {

/// Connects. Errc::unavailable or closed says who was not there.
[[nodiscard]] Result<std::unique_ptr<TpmDevice>> open_swtpm(const DriverSpec& spec, unsigned locality, const Log& log);

} // namespace vtpmd::hwtpm
