#include "manager/xen/devices.hpp"

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

Task<> XenDevices::run() {
    auto watch = fabric_.store().watch(std::string(backend_root));
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

Task<> XenDevices::scan() {
    std::set<ring::DeviceId> found;
    for (const auto& [id, uuid] : known_) {
        found.insert(id); // to see which of them is gone
    }
    xen::Store& store = fabric_.store();
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

Task<> XenDevices::look_at(ring::DeviceId id) {
    xen::Store& store = fabric_.store();
    auto uuid = co_await ring::read_uuid(store, id);
    const auto known = known_.find(id);
    if (uuid) {
        if (known != known_.end() && known->second == *uuid) {
            co_return;
        }
        remove(id);
        bool taken = co_await observer_.appeared(id, *uuid);
        if (taken) {
            known_.emplace(id, *uuid);
        }
        co_return;
    }
    if (uuid.error().code == Errc::mismatch) {
        log_.warning_limited(limit_, clock_.now(), "{}", uuid.error().message);
    }
    if (known == known_.end() || (uuid.error().code != Errc::not_found && uuid.error().code != Errc::mismatch)) {
        co_return;
    }
    // A xenstored that was started with an empty tree says nothing of the guests (see ring/back_device).
    auto self = co_await store.read("domid");
    if (self) {
        remove(id);
    }
}

void XenDevices::remove(ring::DeviceId id) {
    if (known_.erase(id) != 0) {
        log_.info("frontend {} is gone", ring::to_string(id));
        observer_.gone(id);
    }
}

} // namespace vtpmd::manager
