// The kernel's TPM device: /dev/tpm0 (one opener at a time) or /dev/tpmrm0 (TPM 2.0, shared through the kernel's resource
// manager). Locality and timeouts are the kernel's affair.
#pragma once

#include "hwtpm/device.hpp"
#include "util/fd.hpp"

namespace vtpmd::hwtpm {

[[nodiscard]] Result<std::unique_ptr<TpmDevice>> open_kernel_device(const std::string& path);
/// Over a descriptor that is open already (tests); it cannot be restarted.
[[nodiscard]] std::unique_ptr<TpmDevice> make_kernel_device(UniqueFd fd, std::string path);

} // namespace vtpmd::hwtpm
