#include "instance/links/ring_channel.hpp"

#include "ring/front_device.hpp"

namespace vtpmd::instance {

namespace {

/// One connection of the device. Destroyed, it gives the pages back; the back end hears of that from the next offer.
class RingChannel final : public proto::Channel {
  public:
    RingChannel(std::unique_ptr<ring::FrontDevice> device, std::uint32_t handle)
        : device_(std::move(device))
        , peer_(fmt::format("domain {} by ring {}", device_->back(), handle)) {}

    Task<Result<Bytes>> receive() override {
        if (closed_) {
            co_return make_error(Errc::closed, "{}: closed", peer_);
        }
        auto answer = co_await device_->ring()->answer();
        if (answer) {
            co_return answer;
        }
        // A request that was dropped (a manager that stops) is asked again on another connection.
        Error e = in_context(std::move(answer).error(), peer_);
        const auto state = co_await asio::this_coro::cancellation_state;
        if (e.code == Errc::canceled && state.cancelled() == asio::cancellation_type::none) {
            e.code = Errc::closed;
        }
        co_return e;
    }
    Task<Result<void>> send(ByteView frame) override {
        if (closed_) {
            co_return make_error(Errc::closed, "{}: closed", peer_);
        }
        auto sent = device_->ring()->submit(frame, 0);
        if (!sent) {
            co_return in_context(sent.error(), peer_);
        }
        co_return sent;
    }
    void close() override { closed_ = true; }
    [[nodiscard]] std::string peer() const override { return peer_; }

  private:
    std::unique_ptr<ring::FrontDevice> device_;
    const std::string peer_;
    bool closed_ = false;
};

Task<Result<std::unique_ptr<proto::Channel>>> connect(xen::Fabric& fabric, std::uint32_t handle) {
    auto device = std::make_unique<ring::FrontDevice>(ring::FrontDeviceOptions{.handle = handle}, fabric);
    auto connected = co_await device->connect();
    if (!connected) {
        Error e = connected.error();
        if (e.code == Errc::not_found) {
            e.message += fmt::format(" (this domain needs vtpm=[\"backend=MANAGER'S DOMAIN,uuid=...\"] in its "
                                     "configuration, and the manager --xen=vtpms)");
        }
        co_return e;
    }
    co_return std::make_unique<RingChannel>(std::move(device), handle);
}

} // namespace

proto::ManagerClient::Connect ring_connector(xen::Fabric& fabric, std::uint32_t handle) {
    return [&fabric, handle] { return connect(fabric, handle); };
}

} // namespace vtpmd::instance
