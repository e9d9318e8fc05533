// The vTPM devices whose back end is this domain, `backend/vtpm/DOMID/HANDLE` with the UUID that the toolstack wrote there:
// follows xenstore and says which come and go.
#pragma once

#include "ring/back_device.hpp"
#include "util/clock.hpp"
#include "util/log.hpp"
#include "xen/fabric.hpp"

#include <map>
#include <optional>
#include <string_view>

namespace vtpmd::manager {

class XenDevices {
  public:
    class Observer {
      public:
        virtual ~Observer() = default;
        /// False: not taken, and to be said again when the device changes.
        virtual Task<bool> appeared(ring::DeviceId id, Uuid uuid) = 0;
        /// Of a device that was taken; also when it was made anew for another vTPM.
        virtual void gone(ring::DeviceId id) = 0;
    };
    /// All of it outlives this.
    XenDevices(xen::Fabric& fabric, Observer& observer, Clock& clock, const Log& log)
        : fabric_(fabric)
        , observer_(observer)
        , clock_(clock)
        , log_(log) {}

    /// Until cancelled.
    Task<> run();
    [[nodiscard]] std::size_t size() const noexcept { return known_.size(); }

  private:
    Task<> scan();
    Task<> look_at(ring::DeviceId id);
    void remove(ring::DeviceId id);

    xen::Fabric& fabric_;
    Observer& observer_;
    Clock& clock_;
    const Log& log_;
    std::map<ring::DeviceId, Uuid> known_;
    RateLimit limit_;
};

/// The device in a changed path, "backend/vtpm/3/0/state"; nullopt for one above that, or anything else.
[[nodiscard]] std::optional<ring::DeviceId> device_of_path(std::string_view path);

} // namespace vtpmd::manager
