#include "manager/xen/guests.hpp"

namespace vtpmd::manager {

XenGuests::XenGuests(bool spawn, Parts parts)
    : spawn_(spawn)
    , parts_(parts)
    , watched_(parts.fabric, *this, parts.clock, parts.log)
    , group_(parts.fabric.executor(), parts.log) {}

Task<> XenGuests::stop() {
    if (!devices_.empty()) {
        parts_.log.info("the instances of {} Xen devices go on without the manager", devices_.size());
    }
    group_.cancel();
    co_await group_.join();
}

Task<bool> XenGuests::appeared(ring::DeviceId id, Uuid uuid) {
    if (parts_.admin == uuid) {
        co_return true;
    }
    if (!spawn_) {
        parts_.log.info("frontend {} wants vTPM {}: start its instance with --guest=xen:{} (or use --spawn)",
                        ring::to_string(id), uuid, ring::to_string(id));
        co_return true;
    }
    auto accepted = co_await ring::accept_device(parts_.fabric.store(), id);
    if (!accepted) {
        if (accepted.error().code != Errc::not_found) {
            warn(accepted.error());
        }
        co_return false;
    }
    const bool restored = co_await is_restore(id, uuid);
    parts_.log.info("frontend {} wants vTPM {}{}", ring::to_string(id), uuid,
                    restored ? ": a saved guest that is restored" : "");
    Device device{id, std::make_shared<Charge>(parts_.fabric.executor(), uuid, "xen:" + ring::to_string(id))};
    device.charge->restored = restored;
    devices_.insert_or_assign(id, device);
    group_.spawn("frontend " + ring::to_string(id), serve(device));
    co_return true;
}

Task<bool> XenGuests::is_restore(ring::DeviceId id, Uuid uuid) {
    xen::Store& store = parts_.fabric.store();
    auto said = co_await store.read(xen::join_path(ring::back_directory(id), "resume"));
    const std::string order = fmt::format("vtpmd/restore/{}", uuid);
    auto ordered = co_await store.read(order);
    if (ordered) {
        (void)co_await store.remove(order);
    }
    co_return ordered.has_value() || (said && (*said == "True" || *said == "1"));
}

void XenGuests::gone(ring::DeviceId id) {
    auto known = devices_.find(id);
    if (known != devices_.end()) {
        parts_.supervisor.release(*known->second.charge);
        devices_.erase(known);
    }
}

Task<> XenGuests::serve(Device device) {
    auto& slot = turns_[device.charge->uuid];
    if (!slot) {
        slot = std::make_shared<FifoLock>(parts_.fabric.executor());
    }
    const std::shared_ptr<FifoLock> lock = slot;
    if (lock->held()) {
        parts_.log.info("vTPM {} serves another front end still; frontend {} waits for it", device.charge->uuid,
                        ring::to_string(device.id));
    }
    auto turn = co_await lock->acquire();
    if (!turn) {
        co_return;
    }
    bool ended_well = true;
    if (!device.charge->released.requested()) {
        ended_well = co_await parts_.supervisor.serve(device.charge);
    }
    turn->release();
    if (!lock->held()) {
        turns_.erase(device.charge->uuid);
    }
    if (!ended_well) {
        auto refused = co_await ring::refuse_device(parts_.fabric.store(), device.id);
        if (!refused && refused.error().code != Errc::not_found) {
            warn(refused.error());
        }
    }
}

void XenGuests::warn(const Error& e) {
    parts_.log.warning_limited(limit_, parts_.clock.now(), "Xen guests: {}", e.message);
}

} // namespace vtpmd::manager
