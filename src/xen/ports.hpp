// Event channels. A PortDevice is /dev/xen/evtchn or its simulation: one descriptor for all ports. A PortHub is its one
// reader and gives each port an EventChannel to wait on.
//
// An event masks its port until the owner waits again, so a peer that notifies without end costs one wake for each time
// its ring is looked at, never more, and its neighbours' events come in between.
#pragma once

#include "util/asio.hpp"
#include "util/log.hpp"
#include "util/result.hpp"
#include "util/wake.hpp"
#include "xen/types.hpp"

#include <memory>
#include <optional>
#include <string>
#include <unordered_map>

namespace vtpmd::xen {

/// The calls of libxenevtchn, one to one; none of them blocks.
class PortDevice {
  public:
    virtual ~PortDevice() = default;
    /// Readable while events are pending. Owned by the device: never closed by who polls it.
    [[nodiscard]] virtual int fd() const = 0;
    /// The next port with an event, which is now masked; nullopt if there is none.
    virtual Result<std::optional<Port>> pending() = 0;
    virtual Result<void> unmask(Port port) = 0;
    virtual Result<void> notify(Port port) = 0;
    virtual Result<Port> bind_unbound(DomId remote) = 0;
    virtual Result<Port> bind_interdomain(DomId remote, Port remote_port) = 0;
    virtual void unbind(Port port) = 0;
    /// The XSM label of the domain at the other end; nullopt where there are no labels.
    virtual Result<std::optional<std::string>> peer_label(Port port) = 0;
};

class PortHub;

/// One bound port, given up by the destructor. One coroutine waits at a time.
class EventChannel {
  public:
    EventChannel(PortHub& hub, Port port, DomId remote);
    EventChannel(const EventChannel&) = delete;
    EventChannel& operator=(const EventChannel&) = delete;
    ~EventChannel();

    [[nodiscard]] Port port() const noexcept { return port_; }
    [[nodiscard]] DomId remote() const noexcept { return remote_; }
    /// Tells the other end. An error means that the port is no longer bound (the peer is gone).
    Result<void> notify();
    /// The XSM label of the other end's domain; nullopt where Xen has none.
    [[nodiscard]] Result<std::optional<std::string>> peer_label();
    /// Until the other end notified, once or more, since the last wait returned. operation_aborted when cancelled, eof
    /// when the hub has stopped.
    Task<error_code> wait();

  private:
    friend class PortHub;
    PortHub& hub_;
    const Port port_;
    const DomId remote_;
    Wake wake_;
    bool masked_ = false;
};

/// Must outlive its channels.
class PortHub {
  public:
    PortHub(asio::any_io_executor executor, const Log& log, std::unique_ptr<PortDevice> device);
    PortHub(const PortHub&) = delete;
    PortHub& operator=(const PortHub&) = delete;
    ~PortHub();

    /// Reads events until cancelled; then every channel's wait ends with eof.
    Task<> run();

    Result<std::unique_ptr<EventChannel>> bind_unbound(DomId remote);
    Result<std::unique_ptr<EventChannel>> bind_interdomain(DomId remote, Port remote_port);

  private:
    friend class EventChannel;
    Result<std::unique_ptr<EventChannel>> adopt(Result<Port> port, DomId remote);
    /// False if the device failed.
    bool drain();

    asio::any_io_executor executor_;
    const Log& log_;
    std::unique_ptr<PortDevice> device_;

    std::unordered_map<Port, EventChannel*> channels_;
    RateLimit failures_;
    bool stopped_ = false;
};

} // namespace vtpmd::xen
