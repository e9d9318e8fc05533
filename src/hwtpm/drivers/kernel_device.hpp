// The kernel's TPM device: /dev/tpm0 (one opener at a time) or /dev/tpmrm0 (TPM 2.0, shared through the kernel's
// resource manager). Locality and timeouts are the kernel's affair.
#pragma once

#include "hwtpm/device.hpp"
#include "util/fd.hpp"

#include <filesystem>
#include <string>
#include <vector>

namespace vtpmd::hwtpm {

/// The TPMs that a driver of the kernel's has: "tpm0" and on, lowest first. One may be bound again under another
/// number. Those of /dev/vtpmx are left out: no device stands behind them (Linux's
/// Documentation/ABI/stable/sysfs-class-tpm).
[[nodiscard]] std::vector<std::string> kernel_tpms(const std::filesystem::path& sysfs_class = "/sys/class/tpm");

[[nodiscard]] Result<std::unique_ptr<TpmDevice>> open_kernel_device(const std::string& path);
/// Over a descriptor that is open already (tests); it cannot be restarted.
[[nodiscard]] std::unique_ptr<TpmDevice> make_kernel_device(UniqueFd fd, std::string path);

} // namespace vtpmd::hwtpm
