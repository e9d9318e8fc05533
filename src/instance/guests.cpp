#include "instance/guests.hpp"

#include "util/unix_socket.hpp"
#include "util/when_free.hpp"

#include <algorithm>
#include <fcntl.h>

namespace vtpmd::instance {

namespace {

Result<guest::SocketListeners> adopt_endpoint(InstanceOptions& options, const std::string& name, bool device_model) {
    if (device_model) {
        auto control = guest::adopt_listener(
            std::move(options.listen_control ? options.listen_control : options.listen_commands), name);
        if (!control) {
            return std::move(control).error();
        }
        return guest::SocketListeners{std::nullopt, std::move(*control)};
    }
    auto commands = guest::adopt_listener(std::move(options.listen_commands), name);
    if (!commands) {
        return std::move(commands).error();
    }
    guest::SocketListeners listeners{std::move(*commands), std::nullopt};
    if (options.listen_control) {
        auto control = guest::adopt_listener(std::move(options.listen_control), name + " control");
        if (!control) {
            return std::move(control).error();
        }
        listeners.control.emplace(std::move(*control));
    }
    return listeners;
}

/// One of the sockets of --guest=fd:, to where it belongs.
Result<void> adopt_passed(int number, bool remove, const std::string& name, std::optional<guest::Listener>& listener,
                          UniqueFd& connection) {
    if (::fcntl(number, F_SETFD, FD_CLOEXEC) != 0) {
        return make_error(Errc::usage, "descriptor {} is not open", number);
    }
    UniqueFd fd(number);
    if (guest::is_connection(number)) {
        connection = std::move(fd);
        return {};
    }
    auto adopted = guest::adopt_listener(std::move(fd), name, remove);
    if (!adopted) {
        return std::move(adopted).error();
    }
    listener.emplace(std::move(*adopted));
    return {};
}

Result<guest::SocketListeners> adopt_all(const guest::PassedEndpoint& endpoint, const std::string& name) {
    guest::SocketListeners out;
    Result<void> done;
    if (endpoint.commands) {
        done = adopt_passed(*endpoint.commands, endpoint.remove, name, out.commands, out.commands_connection);
    }
    if (done && endpoint.control) {
        done = adopt_passed(*endpoint.control, endpoint.remove, name + " control", out.control, out.control_connection);
    }
    return done ? Result<guest::SocketListeners>(std::move(out)) : std::move(done).error();
}

Task<Result<guest::SocketListeners>> try_listeners(const guest::Endpoint& endpoint, const std::string& group) {
    co_return guest::open_listeners(endpoint, group);
}

} // namespace

Guests::Guests(RuntimeDeps deps, XenAccess& xen)
    : deps_(deps)
    , xen_(xen)
    , group_(deps.executor, deps.log) {}

Guests::~Guests() = default;

Task<Result<void>> Guests::open(InstanceOptions& options) {
    terminate_ = options.terminate;
    disconnect_ = options.disconnect;
    // Xen first: its toolstack waits.
    for (const guest::Endpoint& endpoint : options.guests) {
        if (const auto* xen = std::get_if<guest::XenEndpoint>(&endpoint)) {
            if (auto opened = open_xen(options, *xen); !opened) {
                co_return in_context(std::move(opened).error(), "--guest=" + to_string(endpoint));
            }
        }
    }
    for (const guest::Endpoint& endpoint : options.guests) {
        if (std::holds_alternative<guest::VtpmxEndpoint>(endpoint)) {
            if (auto there = guest::check_vtpmx(guest::vtpmx_control); !there) {
                co_return there;
            }
            ++proxies_wanted_;
        } else if (!std::holds_alternative<guest::XenEndpoint>(endpoint)) {
            auto opened = co_await open_socket(options, endpoint);
            if (!opened) {
                co_return in_context(std::move(opened).error(), "--guest=" + to_string(endpoint));
            }
            guest::guard(sockets_.back().listeners, options.tcp_peers);
        }
    }
    co_return Result<void>{};
}

Task<Result<void>> Guests::open_socket(InstanceOptions& options, guest::Endpoint endpoint) {
    std::string name = to_string(endpoint);
    const bool device_model = std::holds_alternative<guest::QemuEndpoint>(endpoint);
    // No one authenticates a peer on TCP: it does not get the TPM's secrets.
    const bool state_blobs = !std::holds_alternative<guest::TcpEndpoint>(endpoint);
    if (const auto* passed = std::get_if<guest::PassedEndpoint>(&endpoint)) {
        const bool of_this_host = !passed->control || guest::is_unix(*passed->control);
        auto adopted = adopt_all(*passed, name);
        if (!adopted) {
            co_return std::move(adopted).error();
        }
        sockets_.push_back({std::move(name), std::move(*adopted), of_this_host,
                            (options.allow_rollback || options.incoming) && passed->commands.has_value()});
        co_return Result<void>{};
    }
    // Where any state may be set, or there is none yet, swtpm_ioctl's way is served: a connection for each blob.
    const bool sets_outlive_connections = (options.allow_rollback || options.incoming) && !device_model;
    if (sockets_.empty() && (options.listen_commands || (device_model && options.listen_control))) {
        auto adopted = adopt_endpoint(options, name, device_model);
        if (!adopted) {
            co_return std::move(adopted).error();
        }
        sockets_.push_back({std::move(name), std::move(*adopted), state_blobs, sets_outlive_connections});
        co_return Result<void>{};
    }
    auto bind = [&] { return try_listeners(endpoint, options.socket_group); };
    auto listeners = co_await when_free(deps_.clock, dying_process_patience, bind);
    if (!listeners) {
        co_return std::move(listeners).error();
    }
    if (const auto* at = std::get_if<guest::UnixEndpoint>(&endpoint)) {
        warn_of_folder(deps_.log, at->path);
    } else if (const auto* qemu = std::get_if<guest::QemuEndpoint>(&endpoint)) {
        warn_of_folder(deps_.log, qemu->path);
    }
    sockets_.push_back({std::move(name), std::move(*listeners), state_blobs, sets_outlive_connections});
    co_return Result<void>{};
}

Result<void> Guests::open_xen(const InstanceOptions& options, const guest::XenEndpoint& endpoint) {
    auto fabric = xen_.get();
    if (!fabric) {
        return std::move(fabric).error();
    }
    guest::XenGuestOptions guest;
    guest.endpoint = endpoint;
    guest.uuid = options.uuid;
    guest.localities = options.localities;
    devices_.push_back(std::make_unique<guest::XenGuest>(std::move(guest), **fabric, deps_.clock, deps_.log));
    ++devices_running_;
    std::string name = to_string(guest::Endpoint(endpoint));
    group_.spawn(name, run_device(*devices_.back(), name));
    return {};
}

Task<> Guests::run_device(guest::XenGuest& device, std::string name) {
    const auto ended = co_await device.run();
    --devices_running_;
    using Ended = ring::BackDevice::Ended;
    had_xen_guest_ = had_xen_guest_ || ended != Ended::never_there;
    if (ended == Ended::cancelled) {
        co_return;
    }
    if (ended == Ended::never_there) {
        Error e = make_error(Errc::not_found,
                             "--guest={}: xenstore has no such device of this vTPM's UUID; Xen's toolstack makes it "
                             "(vtpm=[\"backend=...,uuid=...\"])",
                             name);
        deps_.log.error("{}", e.message);
        if (outcome_) {
            outcome_ = std::move(e);
        }
    } else {
        deps_.log.info("{}: the device is gone", name);
    }
    if (devices_running_ == 0 && sockets_.empty() && proxies_wanted_ == 0) {
        deps_.stop.request();
    }
}

void Guests::serve(guest::TpmService& service) {
    for (Socket& socket : sockets_) {
        guest::SocketServerOptions server;
        server.name = socket.name;
        server.state_blobs = socket.state_blobs;
        server.sets_outlive_connections = socket.sets_outlive_connections;
        server.terminate = terminate_;
        server.disconnect = disconnect_;
        servers_.push_back(std::make_unique<guest::SocketServer>(
            deps_.executor, std::move(server), std::move(socket.listeners), service, deps_.clock, deps_.log));
        servers_.back()->start();
        deps_.log.info("VTPM attached to Frontend {}", socket.name);
    }
    for (auto& device : devices_) {
        device->open(service);
    }
    while (proxies_.size() < proxies_wanted_) {
        proxies_.push_back(std::make_unique<guest::VtpmxGuest>(deps_.executor, guest::VtpmxOptions{}, service,
                                                               deps_.clock, deps_.log));
        proxies_.back()->start([this](Error e) {
            deps_.log.error("{}", e.message);
            if (outcome_) {
                outcome_ = std::move(e);
            }
            deps_.stop.request();
        });
    }
}

Task<> Guests::stop(Clock::duration patience) {
    group_.cancel();
    for (auto& server : servers_) {
        co_await server->stop(patience);
    }
    for (auto& proxy : proxies_) {
        co_await proxy->stop(patience);
    }
    proxies_.clear();
    servers_.clear(); // with the sockets' files
    sockets_.clear();
    co_await group_.join();
    devices_.clear();
}

bool Guests::present() const {
    const auto has_connection = [](const auto& server) { return server->connections() != 0; };
    return devices_running_ != 0 || !proxies_.empty() || std::ranges::any_of(servers_, has_connection);
}

} // namespace vtpmd::instance
