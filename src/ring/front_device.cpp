#include "ring/front_device.hpp"

#include "util/text.hpp"

namespace vtpmd::ring {

namespace {

std::string state_text(XenbusState state) { return std::to_string(static_cast<unsigned>(state)); }

} // namespace

FrontDevice::FrontDevice(FrontDeviceOptions options, xen::Fabric& fabric)
    : options_(options)
    , fabric_(fabric)
    , directory_(fmt::format("device/vtpm/{}", options_.handle)) {}

Task<Result<void>> FrontDevice::connect() {
    xen::Store& store = fabric_.store();
    ring_.reset();
    auto backend = co_await store.read(xen::join_path(directory_, "backend"));
    if (!backend) {
        co_return backend.error();
    }
    auto back = co_await store.read_number(xen::join_path(directory_, "backend-id"), 0x7fef);
    if (!back) {
        co_return back.error();
    }
    if (!watch_ || backend_ != *backend) {
        backend_ = *backend;
        watch_ = store.watch(xen::join_path(backend_, "state"));
    }
    back_ = static_cast<xen::DomId>(*back);
    auto ready = co_await wait_for(XenbusState::init_wait);
    if (!ready) {
        co_return ready;
    }
    auto ring = FrontEnd::make(fabric_, back_, options_.extra_pages);
    if (!ring) {
        co_return ring.error();
    }
    ring_ = std::move(*ring);
    auto offered = co_await offer();
    if (!offered) {
        co_return offered;
    }
    auto connected = co_await wait_for(XenbusState::connected);
    if (connected && options_.order == FrontOrder::linux_order) {
        connected = co_await store.write(xen::join_path(directory_, "state"), state_text(XenbusState::connected));
    }
    co_return connected;
}

Task<Result<void>> FrontDevice::offer() {
    const bool straight = options_.order == FrontOrder::minios_order;
    xen::StoreEdit edit;
    edit.must_exist.push_back(xen::join_path(directory_, "backend"));
    edit.writes.push_back({xen::join_path(directory_, "feature-protocol-v2"), "1"});
    edit.writes.push_back({xen::join_path(directory_, "ring-ref"), std::to_string(ring_->ref())});
    edit.writes.push_back({xen::join_path(directory_, "event-channel"), std::to_string(ring_->port())});
    edit.writes.push_back({xen::join_path(directory_, "state"),
                           state_text(straight ? XenbusState::connected : XenbusState::initialised)});
    co_return co_await fabric_.store().apply(std::move(edit));
}

Task<Result<XenbusState>> FrontDevice::back_state() {
    auto text = co_await fabric_.store().read(xen::join_path(backend_, "state"));
    if (!text) {
        co_return text.error();
    }
    auto number = parse_number(*text, 8);
    co_return number ? static_cast<XenbusState>(*number) : XenbusState::unknown;
}

Task<Result<void>> FrontDevice::wait_for(XenbusState wanted) {
    for (;;) {
        if (auto ec = co_await watch_->wait(); ec) {
            co_return make_error(Errc::canceled, "waiting for {}: {}", backend_, ec.message());
        }
        (void)watch_->take_changes();
        auto state = co_await back_state();
        if (!state && state.error().code != Errc::unavailable) {
            co_return state.error();
        }
        // Back ends that stay at Connected from an earlier front end take the new offer from there.
        if (state && (*state == wanted || (wanted == XenbusState::init_wait && *state == XenbusState::connected))) {
            co_return Result<void>{};
        }
        if (state && *state == XenbusState::closed) {
            co_return make_error(Errc::closed, "{}: the back end is closed", backend_);
        }
    }
}

Task<Error> FrontDevice::until_lost() {
    for (;;) {
        if (auto ec = co_await watch_->wait(); ec) {
            co_return make_error(Errc::canceled, "watching {}: {}", backend_, ec.message());
        }
        (void)watch_->take_changes();
        auto state = co_await back_state();
        if (state ? *state != XenbusState::connected : state.error().code == Errc::not_found) {
            co_return make_error(Errc::closed, "{}: the back end is not connected any more", backend_);
        }
    }
}

Task<Result<void>> FrontDevice::disconnect() {
    auto said = co_await fabric_.store().write(xen::join_path(directory_, "state"), state_text(XenbusState::closed));
    ring_.reset();
    co_return said;
}

} // namespace vtpmd::ring
