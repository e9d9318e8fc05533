#include "xen/kernel_driver.hpp"

#include <fmt/format.h>
#include <unistd.h>

namespace vtpmd::xen {

Result<void> not_the_kernels(std::uint32_t handle, std::string_view instead, const std::string& devices) {
    const std::string device = fmt::format("vtpm-{}", handle);
    if (::access(fmt::format("{}/{}/driver", devices, device).c_str(), F_OK) != 0) {
        return {};
    }
    return make_error(Errc::permission,
                      "the kernel's driver has this device: {}unbind it (echo {} >/sys/bus/xen/drivers/vtpm/unbind)",
                      instead, device);
}

} // namespace vtpmd::xen
