// The registers through /dev/mem: for a host (Xen's dom0, a stub domain) whose kernel does not drive its TPM. The
// locality is held for a batch of commands and given back after it.
#pragma once

#include "hwtpm/device.hpp"
#include "hwtpm/drivers/tis.hpp"
#include "util/log.hpp"

namespace vtpmd::hwtpm {

/// One-line errors for: no /dev/mem, no right, the kernel's driver bound, nothing there, a CRB part.
[[nodiscard]] Result<std::unique_ptr<TpmDevice>> open_tis(std::uint64_t address, unsigned locality, const Log& log);

/// The device over any bus (tests). `exclusive`: nobody else drives the TPM, left-over localities may be released.
[[nodiscard]] Result<std::unique_ptr<TpmDevice>> make_tis_device(std::unique_ptr<TisBus> bus, TisPort::Config config,
                                                                 std::string name, bool exclusive);

} // namespace vtpmd::hwtpm
