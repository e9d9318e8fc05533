#include "xen/ports.hpp"

#include "util/cancelled.hpp"

#include <chrono>

namespace vtpmd::xen {

namespace {

/// Events taken for each time the descriptor is reported readable; more only delays what they woke.
constexpr int events_per_wake = 64;

/// Lends a descriptor to the loop without giving it away: the device closes it.
class BorrowedDescriptor {
  public:
    BorrowedDescriptor(const asio::any_io_executor& executor, int fd)
        : descriptor_(executor, fd) {}
    BorrowedDescriptor(const BorrowedDescriptor&) = delete;
    BorrowedDescriptor& operator=(const BorrowedDescriptor&) = delete;
    ~BorrowedDescriptor() { (void)descriptor_.release(); }
    asio::posix::stream_descriptor* operator->() noexcept { return &descriptor_; }

  private:
    asio::posix::stream_descriptor descriptor_;
};

} // namespace

EventChannel::EventChannel(PortHub& hub, Port port, DomId remote)
    : hub_(hub)
    , port_(port)
    , remote_(remote)
    , wake_(hub.executor_) {
    hub_.channels_[port_] = this;
}

EventChannel::~EventChannel() {
    hub_.channels_.erase(port_);
    hub_.device_->unbind(port_);
}

Result<void> EventChannel::notify() { return hub_.device_->notify(port_); }

Result<std::optional<std::string>> EventChannel::peer_label() { return hub_.device_->peer_label(port_); }

Task<error_code> EventChannel::wait() {
    if (hub_.stopped_) {
        co_return error_code{asio::error::eof};
    }
    if (masked_) {
        masked_ = false;
        if (auto r = hub_.device_->unmask(port_); !r) {
            co_return error_code{asio::error::eof};
        }
    }
    co_return co_await wake_.wait();
}

PortHub::PortHub(asio::any_io_executor executor, const Log& log, std::unique_ptr<PortDevice> device)
    : executor_(std::move(executor))
    , log_(log)
    , device_(std::move(device)) {}

PortHub::~PortHub() {
    if (!channels_.empty()) {
        log_.error("event channels outlive their hub: {}", channels_.size());
        std::abort();
    }
}

Result<std::unique_ptr<EventChannel>> PortHub::adopt(Result<Port> port, DomId remote) {
    if (!port) {
        return port.error();
    }
    return std::make_unique<EventChannel>(*this, *port, remote);
}

Result<std::unique_ptr<EventChannel>> PortHub::bind_unbound(DomId remote) {
    return adopt(device_->bind_unbound(remote), remote);
}

Result<std::unique_ptr<EventChannel>> PortHub::bind_interdomain(DomId remote, Port remote_port) {
    return adopt(device_->bind_interdomain(remote, remote_port), remote);
}

bool PortHub::drain() {
    for (int i = 0; i < events_per_wake; ++i) {
        auto port = device_->pending();
        if (!port) {
            if (failures_.allow(std::chrono::steady_clock::now()).allowed) {
                log_.error("event channels: {}", port.error().message);
            }
            return false;
        }
        if (!*port) {
            return true;
        }
        if (auto it = channels_.find(**port); it != channels_.end()) {
            it->second->masked_ = true;
            it->second->wake_.set();
        }
    }
    return true;
}

Task<> PortHub::run() {
    co_await asio::this_coro::throw_if_cancelled(false);
    {
        BorrowedDescriptor readable(executor_, device_->fd());
        asio::steady_timer pause(executor_);
        for (;;) {
            const bool stop = is_cancelled(co_await asio::this_coro::cancellation_state);
            if (stop) {
                break;
            }
            auto [ec] = co_await readable->async_wait(asio::posix::stream_descriptor::wait_read, use_tuple);
            if (ec) {
                if (ec != asio::error::operation_aborted) {
                    log_.error("event channels: waiting: {}", ec.message());
                }
                break;
            }
            if (!drain()) { // the device is ill: try again, but do not spin
                pause.expires_after(std::chrono::milliseconds(100));
                if (auto [pause_ec] = co_await pause.async_wait(use_tuple); pause_ec) {
                    break;
                }
            }
        }
    }
    stopped_ = true;
    for (auto& [port, channel] : channels_) {
        channel->wake_.close();
    }
}

} // namespace vtpmd::xen
