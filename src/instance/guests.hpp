// All the ways in for the guest of one instance, as --guest names them: listening sockets, Xen devices, the host's kernel.
#pragma once

#include "guest/socket_server.hpp"
#include "guest/vtpmx_guest.hpp"
#include "guest/xen_guest.hpp"
#include "instance/links/xen_access.hpp"
#include "instance/options.hpp"
#include "util/runtime.hpp"
#include "util/task_group.hpp"

#include <memory>
#include <vector>

namespace vtpmd::instance {

class Guests {
  public:
    Guests(RuntimeDeps deps, XenAccess& xen);
    Guests(const Guests&) = delete;
    Guests& operator=(const Guests&) = delete;
    /// After stop().
    ~Guests();

    /// Binds the sockets, and tells Xen's toolstack that its device is taken care of. Nothing is served yet.
    Task<Result<void>> open(InstanceOptions& options);
    /// Lets the guests in. `service` must outlive stop().
    void serve(guest::TpmService& service);
    /// Lets commands that run be answered, at most for `patience` each, then cuts them off. Always before the destructor.
    Task<> stop(Clock::duration patience);

    /// An instance that serves Xen devices only stops when the last of them is gone; an error if there never was such a
    /// device, or if the kernel does not take the TPM (vtpmx).
    [[nodiscard]] const Result<void>& outcome() const noexcept { return outcome_; }
    /// One is connected, or may be: the kernel has its TPM.
    [[nodiscard]] bool present() const;
    /// Whether a guest may come back for its registers (`xl restore`): one of its Xen devices has been there.
    [[nodiscard]] bool had_xen_guest() const noexcept { return had_xen_guest_; }

  private:
    struct Socket {
        std::string name;
        guest::SocketListeners listeners;
        bool state_blobs = true;
        bool sets_outlive_connections = false;
    };
    Task<Result<void>> open_socket(InstanceOptions& options, guest::Endpoint endpoint);
    Result<void> open_xen(const InstanceOptions& options, const guest::XenEndpoint& endpoint);
    Task<> run_device(guest::XenGuest& device, std::string name);

    RuntimeDeps deps_;
    XenAccess& xen_;
    std::vector<Socket> sockets_;
    bool terminate_ = false;
    bool disconnect_ = false;
    std::vector<std::unique_ptr<guest::SocketServer>> servers_;
    std::size_t proxies_wanted_ = 0;
    std::vector<std::unique_ptr<guest::VtpmxGuest>> proxies_;
    std::vector<std::unique_ptr<guest::XenGuest>> devices_;
    std::size_t devices_running_ = 0;
    bool had_xen_guest_ = false;
    Result<void> outcome_;
    TaskGroup group_;
};

} // namespace vtpmd::instance
