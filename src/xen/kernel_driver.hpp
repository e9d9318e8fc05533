// The kernel's own drivers for devices of Xen's toolstack.
#pragma once

#include "util/result.hpp"

#include <cstdint>
#include <string>

namespace vtpmd::xen {

/// Two front ends of one vTPM device would both write the ring's state, and the kernel's driver would lose its ring to
/// us without a word. Errc::permission if a driver is bound to this domain's device; `instead`: what else can be done,
/// for people. `devices` is what sysfs says of Xen's.
[[nodiscard]] Result<void> not_the_kernels(std::uint32_t handle, std::string_view instead,
                                           const std::string& devices = "/sys/bus/xen/devices");

} // namespace vtpmd::xen
