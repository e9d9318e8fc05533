// What a program needs of Xen, in one place: event channels, grants and xenstore. open_fabric() gives the real one;
// SimHost (xen/sim.hpp) gives simulated domains behind the same class.
#pragma once

#include "xen/grants.hpp"
#include "xen/ports.hpp"
#include "xen/store.hpp"

#include <memory>
#include <span>

namespace vtpmd::xen {

class Fabric {
  public:
    struct Parts {
        std::unique_ptr<PortDevice> ports;
        std::unique_ptr<GrantDevice> grants;
        Store::Dial dial;
    };
    Fabric(asio::any_io_executor executor, Clock& clock, const Log& log, Parts parts);

    /// Starts reading events and keeping the connection to xenstored.
    void start();
    /// Ends both and every wait on them. Before the destructor; channels, pages and watches go before that too.
    Task<> stop();

    Result<std::unique_ptr<EventChannel>> bind_unbound(DomId remote) { return ports_.bind_unbound(remote); }
    Result<std::unique_ptr<EventChannel>> bind_interdomain(DomId remote, Port remote_port) {
        return ports_.bind_interdomain(remote, remote_port);
    }
    Result<std::unique_ptr<Pages>> map(DomId domain, std::span<const GrantRef> refs) {
        return grants_->map(domain, refs);
    }
    Result<std::unique_ptr<Pages>> share(DomId domain, std::size_t count) { return grants_->share(domain, count); }
    [[nodiscard]] Store& store() noexcept { return store_; }
    [[nodiscard]] const asio::any_io_executor& executor() const noexcept { return executor_; }
    [[nodiscard]] Clock& clock() const noexcept { return clock_; }

  private:
    asio::any_io_executor executor_;
    Clock& clock_;
    std::unique_ptr<GrantDevice> grants_;
    PortHub ports_;
    Store store_;
    TaskGroup tasks_;
};

/// The machine's own Xen. Errc::unsupported if the program was built without it, unavailable with what to do if this is
/// no Xen domain or its devices are missing.
[[nodiscard]] Result<std::unique_ptr<Fabric>> open_fabric(asio::any_io_executor executor, Clock& clock, const Log& log);

} // namespace vtpmd::xen
