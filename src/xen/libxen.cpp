// The real devices: libxenevtchn, libxengnttab and xenstored. The libraries own their descriptors.
#include "xen/fabric.hpp"
#include "xen/flask.hpp"

#ifdef VTPMD_HAVE_XEN

#include <array>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <fcntl.h>
#include <poll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
extern "C" {
#include <xenevtchn.h>
#include <xengnttab.h>
}
#include <xen/io/xs_wire.h>

namespace vtpmd::xen {

namespace {

static_assert(static_cast<int>(StoreOp::directory) == XS_DIRECTORY && static_cast<int>(StoreOp::read) == XS_READ &&
              static_cast<int>(StoreOp::watch) == XS_WATCH && static_cast<int>(StoreOp::write) == XS_WRITE &&
              static_cast<int>(StoreOp::transaction_start) == XS_TRANSACTION_START &&
              static_cast<int>(StoreOp::transaction_end) == XS_TRANSACTION_END &&
              static_cast<int>(StoreOp::set_perms) == XS_SET_PERMS && static_cast<int>(StoreOp::error) == XS_ERROR &&
              static_cast<int>(StoreOp::watch_event) == XS_WATCH_EVENT &&
              static_cast<int>(StoreOp::directory_part) == XS_DIRECTORY_PART);
static_assert(sizeof(xsd_sockmsg) == store_header_size && XENSTORE_PAYLOAD_MAX == store_payload_max);

class RealPorts final : public PortDevice {
  public:
    explicit RealPorts(xenevtchn_handle* handle)
        : handle_(handle) {}
    RealPorts(const RealPorts&) = delete;
    RealPorts& operator=(const RealPorts&) = delete;
    ~RealPorts() override { xenevtchn_close(handle_); }

    [[nodiscard]] int fd() const override { return xenevtchn_fd(handle_); }
    Result<std::optional<Port>> pending() override {
        // xenevtchn_pending may block when nothing is pending, whatever the descriptor's flags: ask first.
        pollfd p{fd(), POLLIN, 0};
        int ready = ::poll(&p, 1, 0);
        if (ready < 0 && errno != EINTR) {
            return errno_error(errno, "poll of /dev/xen/evtchn");
        }
        if (ready <= 0) {
            return std::optional<Port>{};
        }
        auto port = xenevtchn_pending(handle_);
        if (port < 0) {
            if (errno == EAGAIN || errno == EINTR) {
                return std::optional<Port>{};
            }
            return errno_error(errno, "reading /dev/xen/evtchn");
        }
        return std::optional<Port>{static_cast<Port>(port)};
    }
    Result<void> unmask(Port port) override { return check(xenevtchn_unmask(handle_, port), "unmask", port); }
    Result<void> notify(Port port) override { return check(xenevtchn_notify(handle_, port), "notify", port); }
    Result<Port> bind_unbound(DomId remote) override {
        auto port = xenevtchn_bind_unbound_port(handle_, remote);
        if (port < 0) {
            return errno_error(errno, fmt::format("event channel for domain {}", remote));
        }
        return static_cast<Port>(port);
    }
    Result<Port> bind_interdomain(DomId remote, Port remote_port) override {
        auto port = xenevtchn_bind_interdomain(handle_, remote, remote_port);
        if (port < 0) {
            return errno_error(errno, fmt::format("binding event channel {} of domain {}", remote_port, remote));
        }
        return static_cast<Port>(port);
    }
    void unbind(Port port) override { (void)xenevtchn_unbind(handle_, port); }
    Result<std::optional<std::string>> peer_label(Port port) override { return labels_.of_peer(port); }

  private:
    static Result<void> check(int rc, std::string_view what, Port port) {
        if (rc < 0) {
            return errno_error(errno, fmt::format("{} of event channel {}", what, port));
        }
        return {};
    }
    xenevtchn_handle* handle_;
    FlaskLabels labels_;
};

class MappedPages final : public Pages {
  public:
    MappedPages(xengnttab_handle* handle, void* at, std::size_t count)
        : handle_(handle)
        , at_(at)
        , count_(count) {}
    ~MappedPages() override { xengnttab_unmap(handle_, at_, static_cast<std::uint32_t>(count_)); }
    [[nodiscard]] MutByteView bytes() noexcept override { return {static_cast<std::byte*>(at_), count_ * page_size}; }

  private:
    xengnttab_handle* handle_;
    void* at_;
    std::size_t count_;
};

class SharedPages final : public Pages {
  public:
    SharedPages(xengntshr_handle* handle, void* at, std::vector<GrantRef> refs)
        : handle_(handle)
        , at_(at)
        , refs_(std::move(refs)) {}
    ~SharedPages() override { xengntshr_unshare(handle_, at_, static_cast<std::uint32_t>(refs_.size())); }
    [[nodiscard]] MutByteView bytes() noexcept override {
        return {static_cast<std::byte*>(at_), refs_.size() * page_size};
    }
    [[nodiscard]] std::span<const GrantRef> refs() const noexcept override { return refs_; }

  private:
    xengntshr_handle* handle_;
    void* at_;
    std::vector<GrantRef> refs_;
};

/// Opens each side when it is first needed: an instance only maps, a front end only shares.
class RealGrants final : public GrantDevice {
  public:
    RealGrants() = default;
    RealGrants(const RealGrants&) = delete;
    RealGrants& operator=(const RealGrants&) = delete;
    ~RealGrants() override {
        if (map_ != nullptr) {
            xengnttab_close(map_);
        }
        if (share_ != nullptr) {
            xengntshr_close(share_);
        }
    }
    Result<std::unique_ptr<Pages>> map(DomId domain, std::span<const GrantRef> refs) override {
        if (map_ == nullptr && (map_ = xengnttab_open(nullptr, 0)) == nullptr) {
            return errno_error(errno, "/dev/xen/gntdev (is the module xen-gntdev loaded?)");
        }
        std::vector<std::uint32_t> list(refs.begin(), refs.end());
        void* at = xengnttab_map_domain_grant_refs(map_, static_cast<std::uint32_t>(list.size()), domain, list.data(),
                                                   PROT_READ | PROT_WRITE);
        if (at == nullptr) {
            return errno_error(errno, fmt::format("mapping grant {} of domain {}", list.empty() ? 0 : list[0], domain));
        }
        return std::make_unique<MappedPages>(map_, at, list.size());
    }
    Result<std::unique_ptr<Pages>> share(DomId domain, std::size_t count) override {
        if (share_ == nullptr && (share_ = xengntshr_open(nullptr, 0)) == nullptr) {
            return errno_error(errno, "/dev/xen/gntalloc (is the module xen-gntalloc loaded?)");
        }
        std::vector<GrantRef> refs(count);
        void* at = xengntshr_share_pages(share_, domain, static_cast<int>(count), refs.data(), 1);
        if (at == nullptr) {
            return errno_error(errno, fmt::format("sharing {} pages with domain {}", count, domain));
        }
        std::memset(at, 0, count * page_size);
        return std::make_unique<SharedPages>(share_, at, std::move(refs));
    }

  private:
    xengnttab_handle* map_ = nullptr;
    xengntshr_handle* share_ = nullptr;
};

Result<UniqueFd> dial_socket(const char* path) {
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    if (std::strlen(path) >= sizeof address.sun_path) {
        return make_error(Errc::usage, "xenstore: the socket's path is too long: {}", path);
    }
    std::strncpy(address.sun_path, path, sizeof address.sun_path - 1);
    UniqueFd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
    if (!fd) {
        return errno_error(errno, "socket");
    }
    if (::connect(fd.get(), reinterpret_cast<sockaddr*>(&address), sizeof address) != 0) {
        return errno_error(errno, fmt::format("xenstore: {}", path));
    }
    return fd;
}

/// xenstored's socket where it runs (dom0, mostly), else the kernel's own connection.
Result<UniqueFd> dial_xenstored() {
    const char* path = std::getenv("XENSTORED_PATH");
    auto by_socket = dial_socket(path != nullptr ? path : "/run/xenstored/socket");
    if (by_socket || by_socket.error().code != Errc::not_found) {
        return by_socket;
    }
    for (const char* device : std::array{"/dev/xen/xenbus", "/proc/xen/xenbus"}) {
        UniqueFd fd(::open(device, O_RDWR | O_CLOEXEC | O_NONBLOCK));
        if (fd) {
            return fd;
        }
    }
    return make_error(Errc::unavailable, "xenstore: neither xenstored's socket nor /dev/xen/xenbus can be opened");
}

} // namespace

Result<std::unique_ptr<Fabric>> open_fabric(asio::any_io_executor executor, Clock& clock, const Log& log) {
    xenevtchn_handle* ports = xenevtchn_open(nullptr, 0);
    if (ports == nullptr) {
        return in_context(errno_error(errno, "/dev/xen/evtchn"),
                          "no event channels: is this a Xen domain with the module xen-evtchn loaded?");
    }
    Fabric::Parts parts{std::make_unique<RealPorts>(ports), std::make_unique<RealGrants>(), dial_xenstored};
    return std::make_unique<Fabric>(std::move(executor), clock, log, std::move(parts));
}

} // namespace vtpmd::xen

#else

namespace vtpmd::xen {
Result<std::unique_ptr<Fabric>> open_fabric(asio::any_io_executor, Clock&, const Log&) {
    return make_error(Errc::unsupported, "this vtpmd was built without Xen (Meson option -Dxen=enabled)");
}
} // namespace vtpmd::xen

#endif
