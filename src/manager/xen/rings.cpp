#include "manager/xen/rings.hpp"

#include "tpm/sha1.hpp"
#include "util/wake.hpp"

namespace vtpmd::manager {

/// One request and its answer, handed over between the ring's task and the session's.
class RingLink::Exchange {
  public:
    explicit Exchange(const asio::any_io_executor& executor)
        : request_wake(executor)
        , answer_wake(executor) {}
    void close() {
        closed = true;
        request_wake.close();
        answer_wake.close();
    }
    std::optional<Bytes> request;
    std::optional<Bytes> answer;
    Wake request_wake;
    Wake answer_wake;
    bool closed = false;
};

/// The session's end.
class RingLink::Channel final : public proto::Channel {
  public:
    Channel(std::shared_ptr<Exchange> exchange, std::string peer)
        : exchange_(std::move(exchange))
        , peer_(std::move(peer)) {}
    Channel(const Channel&) = delete;
    Channel& operator=(const Channel&) = delete;
    ~Channel() override { exchange_->close(); }

    Task<Result<Bytes>> receive() override {
        for (;;) {
            if (exchange_->closed) {
                co_return make_error(Errc::closed, "{}: the ring is closed", peer_);
            }
            if (exchange_->request) {
                Bytes request = std::move(*exchange_->request);
                exchange_->request.reset();
                co_return request;
            }
            auto ec = co_await exchange_->request_wake.wait();
            if (ec == asio::error::operation_aborted) {
                co_return make_error(Errc::canceled, "{}: cancelled", peer_);
            }
        }
    }
    Task<Result<void>> send(ByteView frame) override {
        if (exchange_->closed) {
            co_return make_error(Errc::closed, "{}: the ring is closed", peer_);
        }
        exchange_->answer = to_bytes(frame);
        exchange_->answer_wake.set();
        co_return Result<void>{};
    }
    void close() override { exchange_->close(); }
    [[nodiscard]] std::string peer() const override { return peer_; }

  private:
    std::shared_ptr<Exchange> exchange_;
    const std::string peer_;
};

RingLink::RingLink(Parts parts, Uuid uuid, std::string peer)
    : parts_(parts)
    , uuid_(uuid)
    , peer_(std::move(peer)) {}

RingLink::~RingLink() { end_session(); }

void RingLink::start_session() {
    exchange_ = std::make_shared<Exchange>(parts_.executor);
    auto channel = std::make_unique<Channel>(exchange_, peer_);
    LinkInfo link;
    link.made_for = uuid_;
    link.named_by_transport = true;
    link.boot_hash = boot_hash_;
    link.peer_gone = [exchange = exchange_] { return exchange->closed; };
    parts_.links.spawn(peer_, parts_.service.serve(std::move(channel), std::move(link)));
}

void RingLink::end_session() {
    if (exchange_) {
        exchange_->close();
        exchange_.reset();
    }
}

void RingLink::connected(const Result<std::optional<std::string>>& label) {
    // Without a label, or without the right to know it: zeros, as for everybody else who has none.
    const proto::BootHash before = std::exchange(boot_hash_, proto::BootHash{});
    if (label && *label) {
        if (auto hash = tpm::sha1({as_bytes(**label)})) {
            boot_hash_ = *hash;
        }
    }
    if (boot_hash_ != before) {
        end_session(); // the next request begins one that knows
    }
}

Task<Bytes> RingLink::execute(Bytes request, std::uint8_t) {
    auto header = proto::parse_frame(request);
    if (!header) {
        co_return proto::encode_error(header.error()); // the ring goes on
    }
    // A hello begins a session: the vTPM domain's program was started again.
    const bool hello = header->tag == proto::tag::request && header->code == proto::ordinal::hello;
    if (hello || (exchange_ && exchange_->closed)) {
        end_session();
    }
    if (!exchange_) {
        start_session();
    }
    const std::shared_ptr<Exchange> exchange = exchange_;
    exchange->answer.reset();
    exchange->request = std::move(request);
    exchange->request_wake.set();
    while (!exchange->answer && !exchange->closed) {
        auto ec = co_await exchange->answer_wake.wait();
        if (ec == asio::error::operation_aborted) {
            end_session(); // its answer must not be taken for a later request's
            co_return Bytes{};
        }
    }
    if (!exchange->answer) {
        co_return Bytes{}; // the manager stops: dropped, and asked again of the next one
    }
    co_return std::move(*exchange->answer);
}

XenRings::Ring::Ring(ring::BackDeviceOptions options, const Parts& parts)
    : link({parts.service, parts.links, parts.fabric.executor()}, options.uuid,
           fmt::format("domain {} of vTPM {}", ring::to_string(options.id), options.uuid))
    , device(options, {parts.fabric, parts.clock, parts.log}) {}

XenRings::XenRings(Parts parts)
    : parts_(parts)
    , watched_(parts.fabric, *this, parts.clock, parts.log)
    , group_(parts.fabric.executor(), parts.log) {}

Task<bool> XenRings::appeared(ring::DeviceId id, Uuid uuid) {
    if (parts_.only && *parts_.only != uuid) {
        co_return true;
    }
    if (rings_.contains(id)) {
        next_.insert_or_assign(id, uuid); // the last one has not noticed its end yet
        co_return true;
    }
    begin(id, uuid);
    co_return true;
}

void XenRings::begin(ring::DeviceId id, const Uuid& uuid) {
    auto ring = std::make_shared<Ring>(ring::BackDeviceOptions{.id = id, .uuid = uuid}, parts_);
    ring->device.open(ring->link);
    rings_.emplace(id, ring);
    group_.spawn("domain " + ring::to_string(id), serve(ring));
}

Task<> XenRings::serve(std::shared_ptr<Ring> ring) {
    const auto ended = co_await ring->device.run();
    const ring::DeviceId id = ring->device.id();
    rings_.erase(id);
    auto next = next_.extract(id);
    if (next && ended != ring::BackDevice::Ended::cancelled) {
        begin(id, next.mapped());
    }
}

Task<> XenRings::stop() {
    group_.cancel();
    co_await group_.join();
}

std::optional<std::uint64_t> XenRings::requests(const ring::DeviceId& id) const {
    auto it = rings_.find(id);
    return it == rings_.end() ? std::nullopt : std::optional(it->second->device.counters().requests);
}

} // namespace vtpmd::manager
