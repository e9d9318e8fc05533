#include "manager/xen_guests.hpp"

#include "util/text.hpp"

#include <set>

namespace vtpmd::manager {

namespace {

constexpr std::string_view backend_root = "backend/vtpm";
constexpr std::uint64_t highest_domain = 0x7FEF; // DOMID_FIRST_RESERVED - 1, xen/xen.h

std::optional<ring::DeviceId> device_of(std::string_view domain, std::string_view handle) {
    auto d = parse_number(domain, highest_domain);
    auto h = parse_number(handle, 0xffffffff);
    if (!d || !h) {
        return std::nullopt;
    }
    return ring::DeviceId{static_cast<xen::DomId>(*d), static_cast<std::uint32_t>(*h)};
}

} // namespace

std::optional<ring::DeviceId> device_of_path(std::string_view path) {
    auto parts = split(path, '/');
    if (parts.size() < 4 || parts[0] != "backend" || parts[1] != "vtpm") {
        return std::nullopt;
    }
    return device_of(parts[2], parts[3]);
}

XenGuests::XenGuests(bool spawn, Parts parts)
    : spawn_(spawn)
    , parts_(parts)
    , group_(parts.fabric.executor(), parts.log) {}

Task<> XenGuests::run() {
    auto watch = parts_.fabric.store().watch(std::string(backend_root));
    for (;;) {
        auto ec = co_await watch->wait();
        if (ec) {
            co_return;
        }
        // One look for each device that changed; for all of them if it is not known what did.
        std::set<ring::DeviceId> changed;
        bool all = false;
        const auto paths = watch->take_changes();
        for (const std::string& path : paths) {
            auto id = device_of_path(path);
            all = all || !id;
            if (id) {
                changed.insert(*id);
            }
        }
        if (all || paths.empty()) {
            co_await scan();
            continue;
        }
        for (const ring::DeviceId& id : changed) {
            co_await look_at(id);
        }
    }
}

Task<> XenGuests::stop() {
    if (!devices_.empty()) {
        parts_.log.info("the instances of {} Xen devices go on without the manager", devices_.size());
    }
    group_.cancel();
    co_await group_.join();
}

Task<> XenGuests::scan() {
    std::set<ring::DeviceId> found;
    for (const auto& [id, device] : devices_) {
        found.insert(id); // to see which of them is gone
    }
    xen::Store& store = parts_.fabric.store();
    auto domains = co_await store.directory(std::string(backend_root));
    if (domains) {
        for (const std::string& domain : *domains) {
            auto handles = co_await store.directory(fmt::format("{}/{}", backend_root, domain));
            if (!handles) {
                continue;
            }
            for (const std::string& handle : *handles) {
                if (auto id = device_of(domain, handle)) {
                    found.insert(*id);
                }
            }
        }
    } else if (domains.error().code != Errc::not_found) {
        co_return; // the watch fires when xenstore is back
    }
    for (const ring::DeviceId& id : found) {
        co_await look_at(id);
    }
}

Task<> XenGuests::look_at(ring::DeviceId id) {
    xen::Store& store = parts_.fabric.store();
    auto uuid = co_await ring::read_uuid(store, id);
    const auto known = devices_.find(id);
    if (uuid) {
        if (known != devices_.end() && known->second.charge->uuid == *uuid) {
            co_return;
        }
        remove(id);
        co_await add(id, *uuid);
        co_return;
    }
    if (uuid.error().code == Errc::mismatch) {
        warn(uuid.error());
    }
    if (known == devices_.end() || (uuid.error().code != Errc::not_found && uuid.error().code != Errc::mismatch)) {
        co_return;
    }
    // A xenstored that was started with an empty tree says nothing of the guests (see ring/back_device).
    auto self = co_await store.read("domid");
    if (self) {
        remove(id);
    }
}

Task<> XenGuests::add(ring::DeviceId id, Uuid uuid) {
    if (!spawn_) {
        devices_.emplace(id, Device{id, std::make_shared<Charge>(parts_.fabric.executor(), uuid, std::string())});
        parts_.log.info("frontend {} wants vTPM {}: start its instance with --guest=xen:{} (or use --spawn)",
                        ring::to_string(id), uuid, ring::to_string(id));
        co_return;
    }
    auto accepted = co_await ring::accept_device(parts_.fabric.store(), id);
    if (!accepted) {
        if (accepted.error().code != Errc::not_found) {
            warn(accepted.error());
        }
        co_return;
    }
    parts_.log.info("frontend {} wants vTPM {}", ring::to_string(id), uuid);
    Device device{id, std::make_shared<Charge>(parts_.fabric.executor(), uuid, "xen:" + ring::to_string(id))};
    devices_.emplace(id, device);
    group_.spawn("frontend " + ring::to_string(id), serve(device));
}

void XenGuests::remove(ring::DeviceId id) {
    auto known = devices_.find(id);
    if (known != devices_.end()) {
        parts_.log.info("frontend {} is gone", ring::to_string(id));
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
    if (auto verdict = limit_.allow(parts_.clock.now()); verdict.allowed) {
        parts_.log.warning("Xen guests: {} ({} such lines held back)", e.message, verdict.suppressed);
    }
}

} // namespace vtpmd::manager
