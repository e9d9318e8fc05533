// The front end's side of one device in xenstore, `device/vtpm/HANDLE` below the own domain: offers a ring, waits for
// the back end, and says when the back end has gone. In the order of Linux (ring, Initialised, Connected), or of
// mini-os (feature, ring, straight to Connected); either way requests can be sent once connect() is done.
#pragma once

#include "ring/front_end.hpp"
#include "ring/handshake.hpp"
#include "util/clock.hpp"
#include "util/log.hpp"

namespace vtpmd::ring {

enum class FrontOrder : std::uint8_t { linux_order, minios_order };

struct FrontDeviceOptions {
    std::uint32_t handle = 0;
    std::size_t extra_pages = 1; ///< one carries the longest packet
    FrontOrder order = FrontOrder::minios_order;
};

class FrontDevice {
  public:
    FrontDevice(FrontDeviceOptions options, xen::Fabric& fabric);
    FrontDevice(const FrontDevice&) = delete;
    FrontDevice& operator=(const FrontDevice&) = delete;
    ~FrontDevice() = default;

    /// Makes a ring and offers it; returns when the back end is connected to it. Errc::not_found: the toolstack made no
    /// such device; closed: the back end refuses it; canceled; unavailable (xenstore).
    Task<Result<void>> connect();
    /// Until the back end leaves Connected (Errc::closed) or the task is cancelled.
    Task<Error> until_lost();
    /// Gives the ring back and tells the back end (Closed).
    Task<Result<void>> disconnect();

    [[nodiscard]] FrontEnd* ring() noexcept { return ring_.get(); }
    [[nodiscard]] xen::DomId back() const noexcept { return back_; }

  private:
    Task<Result<XenbusState>> back_state();
    Task<Result<void>> wait_for(XenbusState wanted);
    Task<Result<void>> offer();

    const FrontDeviceOptions options_;
    xen::Fabric& fabric_;
    const std::string directory_;
    std::string backend_; ///< its directory
    xen::DomId back_ = 0;
    std::unique_ptr<xen::Watch> watch_;
    std::unique_ptr<FrontEnd> ring_;
};

} // namespace vtpmd::ring
