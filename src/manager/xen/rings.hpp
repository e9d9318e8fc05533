// --xen=vtpms: the manager protocol on the rings of vTPM domains, many at once on one loop. Which vTPM a ring speaks for is
// the toolstack's word, the UUID in the back end's directory; a hello that names another is refused, and Xen's own stub
// domains, which send none, need none. With --xen=guests the administrator's device alone is served so (--admin).
#pragma once

#include "manager/links/key_service.hpp"
#include "manager/xen/devices.hpp"

#include <map>
#include <memory>

namespace vtpmd::manager {

/// The two ends of one ring: requests go to a session of the key service, one session after another.
class RingLink final : public ring::CommandSink {
  public:
    struct Parts {
        KeyService& service;
        TaskGroup& links; ///< where each session's task lives
        const asio::any_io_executor& executor;
    };
    RingLink(Parts parts, Uuid uuid, std::string peer);
    RingLink(const RingLink&) = delete;
    RingLink& operator=(const RingLink&) = delete;
    ~RingLink() override;

    void connected(const Result<std::optional<std::string>>& label) override;
    Task<Bytes> execute(Bytes request, std::uint8_t locality) override;
    /// Requests of this protocol are not cancelled: each must be done or not.
    void cancel() override {}

  private:
    class Exchange;
    class Channel;
    void start_session();
    void end_session();

    Parts parts_;
    const Uuid uuid_;
    const std::string peer_;
    proto::BootHash boot_hash_{};        ///< of the domain that is connected
    std::shared_ptr<Exchange> exchange_; ///< with the present session; nullptr: none
};

class XenRings final : private XenDevices::Observer {
  public:
    /// All of it outlives this.
    struct Parts {
        xen::Fabric& fabric;
        KeyService& service;
        TaskGroup& links;
        Clock& clock;
        const Log& log;
        std::optional<Uuid> only = {}; ///< only the devices of this vTPM; the others are somebody else's
    };
    explicit XenRings(Parts parts);

    /// Follows xenstore until cancelled.
    Task<> run() { return watched_.run(); }
    /// After run(): gives all rings up, after the requests that they are at.
    Task<> stop();

    [[nodiscard]] std::size_t rings() const noexcept { return rings_.size(); }
    /// Requests taken from the ring of that device; nullopt: there is none.
    [[nodiscard]] std::optional<std::uint64_t> requests(const ring::DeviceId& id) const;

  private:
    struct Ring {
        Ring(ring::BackDeviceOptions options, const Parts& parts);
        RingLink link;
        ring::BackDevice device;
    };
    Task<bool> appeared(ring::DeviceId id, Uuid uuid) override;
    void gone(ring::DeviceId id) override { next_.erase(id); } // the device itself notices
    void begin(ring::DeviceId id, const Uuid& uuid);
    Task<> serve(std::shared_ptr<Ring> ring);

    Parts parts_;
    XenDevices watched_;
    std::map<ring::DeviceId, std::shared_ptr<Ring>> rings_;
    std::map<ring::DeviceId, Uuid> next_; ///< made anew for another vTPM before the last ring there has ended
    TaskGroup group_;
};

} // namespace vtpmd::manager
