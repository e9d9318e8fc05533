// --xen=guests: an instance for every vTPM device whose back end is this domain, `backend/vtpm/DOMID/HANDLE`, with the UUID
// that the toolstack wrote there. The guest's ring is the instance's; the manager never maps it.
//
// A device is answered at once (InitWait), so that the toolstack starts the guest while its TPM is being loaded or made. When
// it is gone its instance is asked to end. One vTPM serves one device at a time: a second one waits until the first is gone,
// as the new domain of a guest that reboots does.
//
// A new domain meets a TPM that was power-cycled, unless it is a guest that was saved and is restored. Who restores says so: with
// `resume` "True" in the device's directory (libxl always writes "False" there), or, before `xl restore`, with any value in
// `vtpmd/restore/UUID` of this domain's xenstore directory, which the next device of that UUID uses up.
#pragma once

#include "manager/instances/supervisor.hpp"
#include "manager/xen/devices.hpp"
#include "util/fifo_lock.hpp"

#include <map>

namespace vtpmd::manager {

class XenGuests final : private XenDevices::Observer {
  public:
    /// All of it outlives this.
    struct Parts {
        xen::Fabric& fabric;
        Supervisor& supervisor;
        Clock& clock;
        const Log& log;
        std::optional<Uuid> admin = {}; ///< its device is the manager's own (XenRings), and gets no instance
    };
    /// Without `spawn` it only says in the log which instance is wanted.
    XenGuests(bool spawn, Parts parts);

    /// Follows xenstore until cancelled.
    Task<> run() { return watched_.run(); }
    /// After run(). The instances are left alone: their guests run, and must not lose their TPMs because the manager is started
    /// again; the next one finds them.
    Task<> stop();

    [[nodiscard]] std::size_t devices() const noexcept { return watched_.size(); }

  private:
    struct Device {
        ring::DeviceId id;
        std::shared_ptr<Charge> charge;
    };
    Task<bool> appeared(ring::DeviceId id, Uuid uuid) override;
    void gone(ring::DeviceId id) override;
    Task<> serve(Device device);
    Task<bool> is_restore(ring::DeviceId id, Uuid uuid);
    void warn(const Error& e);

    const bool spawn_;
    Parts parts_;
    XenDevices watched_;
    std::map<ring::DeviceId, Device> devices_;
    std::unordered_map<Uuid, std::shared_ptr<FifoLock>> turns_; ///< of the devices that want one vTPM
    RateLimit limit_;
    TaskGroup group_;
};

} // namespace vtpmd::manager
