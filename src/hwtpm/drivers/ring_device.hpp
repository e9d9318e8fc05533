// Another domain's vTPM as the root of trust (--tpm=xen[:HANDLE]): the front end of a ring, `device/vtpm/HANDLE` of the
// own domain, as a TpmDevice. It has a loop of its own, which runs while the hardware thread asks something.
#pragma once

#include "hwtpm/device.hpp"
#include "util/asio.hpp"
#include "util/clock.hpp"
#include "util/log.hpp"

#include <functional>

namespace vtpmd::xen {
class Fabric;
}

namespace vtpmd::hwtpm {

/// What the device makes on its own loop; not started.
using FabricMaker = std::function<Result<std::unique_ptr<xen::Fabric>>(asio::any_io_executor, Clock&)>;

/// Connected. Errc::not_found: the toolstack made no such device; closed: its back end refuses it; timed_out: nobody
/// serves it, or a kernel's driver holds it; those of the maker. `log` outlives the device.
[[nodiscard]] Result<std::unique_ptr<TpmDevice>> make_ring_device(const FabricMaker& make, std::uint32_t handle,
                                                                  std::uint8_t locality, const Log& log);
/// The same on the machine's own Xen. Errc::permission: a driver of the kernel's is bound to the device.
[[nodiscard]] Result<std::unique_ptr<TpmDevice>> open_ring_device(std::uint32_t handle, unsigned locality,
                                                                  const Log& log);

} // namespace vtpmd::hwtpm
