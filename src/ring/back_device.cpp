#include "ring/back_device.hpp"

#include "util/cancelled.hpp"
#include "util/shielded.hpp"
#include "util/text.hpp"

#include <array>

namespace vtpmd::ring {

namespace {

constexpr auto retry_pause = std::chrono::seconds(1); ///< after a xenstore error that no watch will end
/// From Closed to the removal of the directory: the toolstack reads the state when its watch tells it to, and takes a
/// state that is not there for a failure.
constexpr auto toolstack_pause = std::chrono::milliseconds(200);

XenbusState parse_state(const Result<std::string>& text) {
    auto number = text ? parse_number(*text, 8) : Result<std::uint64_t>(std::uint64_t{0});
    return number ? static_cast<XenbusState>(*number) : XenbusState::unknown;
}

/// The connection is away or we are being stopped: nothing can be said of the node.
bool cannot_tell(const Error& e) { return e.code == Errc::unavailable || e.code == Errc::canceled; }

std::string number_text(XenbusState state) { return std::to_string(static_cast<unsigned>(state)); }

Task<Result<void>> write_own_state(xen::Store& store, std::string directory, XenbusState state) {
    xen::StoreEdit edit;
    edit.must_exist.push_back(xen::join_path(directory, "state"));
    if (state == XenbusState::init_wait) {
        edit.writes.push_back({xen::join_path(directory, "feature-protocol-v2"), "1"});
    } else if (state == XenbusState::connected) {
        edit.writes.push_back({xen::join_path(directory, "ready"), "1"}); // mini-os waits for it
    }
    edit.writes.push_back({xen::join_path(directory, "state"), number_text(state)});
    co_return co_await store.apply(std::move(edit));
}

} // namespace

std::string back_directory(const DeviceId& id) { return fmt::format("backend/vtpm/{}/{}", id.domain, id.handle); }

std::string to_string(const DeviceId& id) { return fmt::format("{}/{}", id.domain, id.handle); }

Task<Result<Uuid>> read_uuid(xen::Store& store, DeviceId id) {
    const std::string path = xen::join_path(back_directory(id), "uuid");
    auto text = co_await store.read(path);
    if (!text) {
        co_return text.error();
    }
    auto uuid = parse_uuid(*text);
    if (!uuid) {
        co_return make_error(Errc::mismatch, "xenstore: {}: '{}' is not a UUID", path, printable(*text));
    }
    co_return *uuid;
}

Task<Result<void>> accept_device(xen::Store& store, DeviceId id) {
    const std::string directory = back_directory(id);
    auto state = co_await store.read(xen::join_path(directory, "state"));
    if (!state) {
        co_return state.error();
    }
    if (parse_state(state) > XenbusState::initialising) {
        co_return Result<void>{};
    }
    co_return co_await write_own_state(store, directory, XenbusState::init_wait);
}

Task<Result<void>> refuse_device(xen::Store& store, DeviceId id) {
    co_return co_await write_own_state(store, back_directory(id), XenbusState::closed);
}

BackDevice::BackDevice(BackDeviceOptions options, Parts parts)
    : options_(options)
    , parts_(parts)
    , directory_(back_directory(options_.id))
    , wake_(parts_.fabric.executor())
    , watching_(parts_.fabric.executor(), parts_.log) {}

void BackDevice::open(CommandSink& sink) {
    sink_ = &sink;
    wake_.set();
}

Task<BackDevice::Ended> BackDevice::run() {
    co_await asio::this_coro::throw_if_cancelled(false);
    own_watch_ = parts_.fabric.store().watch(directory_);
    watching_.spawn("watch of " + directory_, pass_on(*own_watch_));
    Ended how = co_await serve();
    co_await asio::this_coro::reset_cancellation_state(asio::disable_cancellation());
    watching_.cancel();
    co_await watching_.join();
    (void)co_await disconnect(options_.patience);
    front_watch_.reset();
    own_watch_.reset();
    co_return how;
}

Task<> BackDevice::pass_on(xen::Watch& watch) {
    for (;;) {
        if (auto ec = co_await watch.wait(); ec) {
            co_return;
        }
        (void)watch.take_changes();
        wake_.set();
    }
}

Task<BackDevice::Ended> BackDevice::serve() {
    for (;;) {
        const bool stop = is_cancelled(co_await asio::this_coro::cancellation_state);
        if (stop) {
            co_return Ended::cancelled;
        }
        if (auto ec = co_await wake_.wait(); ec) {
            co_return Ended::cancelled;
        }
        for (Step step = Step::again; step == Step::again;) {
            auto facts = co_await look();
            if (!facts) {
                break; // the watches fire when xenstore is back
            }
            step = co_await act(handshake_.decide(*facts), *facts);
            if (step == Step::ended) {
                co_return seen_ ? Ended::gone : Ended::never_there;
            }
            if (step == Step::look_later) {
                (void)co_await parts_.clock.sleep_for(retry_pause);
                wake_.set();
            }
        }
    }
}

Task<std::optional<DeviceFacts>> BackDevice::look() {
    xen::Store& store = parts_.fabric.store();
    DeviceFacts facts;
    facts.ready = sink_ != nullptr;
    auto uuid = co_await read_uuid(store, options_.id);
    if (!uuid && cannot_tell(uuid.error())) {
        co_return std::nullopt;
    }
    if (!uuid || *uuid != options_.uuid) {
        // Every domain's own number is always there. If it is not, xenstored was started again with an empty tree: that
        // says nothing of the guest, which goes on being served.
        auto self = co_await store.read("domid");
        if (!self) {
            if (!std::exchange(lost_, true) && self.error().code == Errc::not_found) {
                parts_.log.error("xenstore has lost its content; frontend {} is served on as it was",
                                 to_string(options_.id));
            }
            co_return std::nullopt;
        }
        co_return facts;
    }
    lost_ = false;
    seen_ = true;
    if (frontend_.empty()) {
        auto frontend = co_await store.read(xen::join_path(directory_, "frontend"));
        if (!frontend) {
            co_return std::nullopt; // the toolstack writes all of it at once; a watch tells when it has
        }
        frontend_ = std::move(*frontend);
        front_watch_ = store.watch(xen::join_path(frontend_, "state"));
        watching_.spawn("watch of " + frontend_, pass_on(*front_watch_));
    }
    auto front = co_await store.read(xen::join_path(frontend_, "state"));
    if (!front && cannot_tell(front.error())) {
        co_return std::nullopt;
    }
    facts.front_present = front || front.error().code != Errc::not_found;
    facts.front = parse_state(front);
    // After the front end's: the toolstack removes that and writes these in one transaction.
    auto own = co_await store.read(xen::join_path(directory_, "state"));
    auto online = co_await store.read(xen::join_path(directory_, "online"));
    if ((!own && cannot_tell(own.error())) || (!online && cannot_tell(online.error()))) {
        co_return std::nullopt;
    }
    facts.present = own.has_value();
    facts.own = parse_state(own);
    facts.online = !online || *online != "0";
    if (!facts.online) {
        auto self = co_await store.read_number("domid", 0xffff);
        if (!self) {
            co_return std::nullopt;
        }
        facts.toolstack_here = *self == 0;
    }
    if (facts.front == XenbusState::initialised || facts.front == XenbusState::connected) {
        co_await look_at_front(facts);
    }
    co_return facts;
}

Task<> BackDevice::look_at_front(DeviceFacts& facts) {
    xen::Store& store = parts_.fabric.store();
    auto version = co_await store.read_number(xen::join_path(frontend_, "feature-protocol-v2"), 0xffffffff);
    auto ref = co_await store.read_number(xen::join_path(frontend_, "ring-ref"), 0xffffffff);
    auto port = co_await store.read_number(xen::join_path(frontend_, "event-channel"), 0xffffffff);
    if (version && *version != 0 && ref && port) {
        facts.offer = RingOffer{static_cast<xen::GrantRef>(*ref), static_cast<xen::Port>(*port)};
    } else if (!ring_) {
        warn("it does not offer a ring of protocol v2 (ring-ref, event-channel, feature-protocol-v2=1)");
    }
}

Task<BackDevice::Step> BackDevice::act(BackHandshake::Action action, DeviceFacts facts) {
    using Action = BackHandshake::Action;
    if (action == Action::none) {
        co_return Step::rest;
    }
    // Whoever sent the request that runs does not wait for it any more. Beside this task, since joining would make it
    // deaf to being cancelled.
    auto disconnected =
        co_await shielded(watching_, directory_ + " disconnecting", disconnect(Clock::duration::zero()));
    if (!disconnected) {
        co_return Step::rest;
    }
    Result<void> done;
    switch (action) {
    case Action::none:
    case Action::end:
        co_return Step::ended;
    case Action::remove: {
        parts_.log.info("frontend {} is gone", to_string(options_.id));
        if (handshake_.phase() == BackHandshake::Phase::closed) {
            (void)co_await parts_.clock.sleep_for(toolstack_pause);
        }
        auto removed = co_await parts_.fabric.store().remove(directory_);
        auto others = co_await parts_.fabric.store().directory(fmt::format("backend/vtpm/{}", options_.id.domain));
        if (others && others->empty()) {
            (void)co_await parts_.fabric.store().remove(fmt::format("backend/vtpm/{}", options_.id.domain));
        }
        co_return Step::ended;
    }
    case Action::init_wait:
        done = co_await write_state(XenbusState::init_wait);
        if (done) {
            handshake_.announced();
        }
        break;
    case Action::close:
        done = co_await write_state(XenbusState::closed);
        if (done) {
            handshake_.closed();
        }
        break;
    case Action::connect:
        done = co_await connect(*facts.offer);
        break;
    }
    if (!done && !cannot_tell(done.error()) && done.error().code != Errc::not_found) {
        warn(done.error().message);
        co_return Step::look_later;
    }
    co_return Step::again;
}

Task<Result<void>> BackDevice::connect(RingOffer offer) {
    auto page = parts_.fabric.map(options_.id.domain, std::array{offer.ref});
    auto channel = page ? parts_.fabric.bind_interdomain(options_.id.domain, offer.port)
                        : Result<std::unique_ptr<xen::EventChannel>>(page.error());
    if (!channel) {
        handshake_.connect_failed(offer); // until it offers something else
        warn(fmt::format("cannot be connected: {}", channel.error().message));
        co_return Result<void>{};
    }
    sink_->connected((*channel)->peer_label());
    BackEndOptions options{.name = "frontend " + to_string(options_.id), .spin = options_.spin};
    ring_ = std::make_unique<BackEnd>(std::move(options),
                                      BackEnd::Parts{parts_.fabric, *sink_, parts_.log, counters_, limit_},
                                      BackEnd::Link{std::move(*page), std::move(*channel)});
    ring_->start();
    handshake_.connected(offer);
    auto said = co_await write_state(XenbusState::connected);
    if (said) {
        // A front end may connect as often as it likes.
        parts_.log.info_limited(attached_, parts_.clock.now(), "VTPM attached to Frontend {}", to_string(options_.id));
    } else if (!cannot_tell(said.error())) {
        handshake_.connect_failed({});
    }
    co_return said;
}

Task<bool> BackDevice::disconnect(Clock::duration patience) {
    if (ring_) {
        co_await ring_->stop(patience);
        ring_.reset();
    }
    co_return true;
}

Task<Result<void>> BackDevice::write_state(XenbusState state) {
    co_return co_await write_own_state(parts_.fabric.store(), directory_, state);
}

void BackDevice::warn(std::string_view what) {
    parts_.log.warning_limited(limit_, parts_.clock.now(), "frontend {}: {}", to_string(options_.id), what);
}

} // namespace vtpmd::ring
