// --xen=guests: an instance for every vTPM device whose back end is this domain, `backend/vtpm/DOMID/HANDLE`, with the UUID
// that the toolstack wrote there. The guest's ring is the instance's; the manager never maps it.
//
// A device is answered at once (InitWait), so that the toolstack starts the guest while its TPM is being loaded or made. When
// it is gone its instance is asked to end. One vTPM serves one device at a time: a second one waits until the first is gone,
// as the new domain of a guest that reboots does.
#pragma once

#include "manager/supervisor.hpp"
#include "ring/back_device.hpp"
#include "util/fifo_lock.hpp"

#include <map>

namespace vtpmd::manager {

class XenGuests {
  public:
    /// All of it outlives this.
    struct Parts {
        xen::Fabric& fabric;
        Supervisor& supervisor;
        Clock& clock;
        const Log& log;
    };
    /// Without `spawn` it only says in the log which instance is wanted.
    XenGuests(bool spawn, Parts parts);

    /// Follows xenstore until cancelled.
    Task<> run();
    /// After run(). The instances are left alone: their guests run, and must not lose their TPMs because the manager is started
    /// again; the next one finds them.
    Task<> stop();

    [[nodiscard]] std::size_t devices() const noexcept { return devices_.size(); }

  private:
    struct Device {
        ring::DeviceId id;
        std::shared_ptr<Charge> charge;
    };
    Task<> scan();
    Task<> look_at(ring::DeviceId id);
    Task<> add(ring::DeviceId id, Uuid uuid);
    void remove(ring::DeviceId id);
    Task<> serve(Device device);
    void warn(const Error& e);

    const bool spawn_;
    Parts parts_;
    std::map<ring::DeviceId, Device> devices_;
    std::unordered_map<Uuid, std::shared_ptr<FifoLock>> turns_; ///< of the devices that want one vTPM
    RateLimit limit_;
    TaskGroup group_;
};

/// The device in a changed path, "backend/vtpm/3/0/state"; nullopt for one above that, or anything else.
[[nodiscard]] std::optional<ring::DeviceId> device_of_path(std::string_view path);

} // namespace vtpmd::manager
