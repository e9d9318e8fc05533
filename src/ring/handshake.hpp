// The back end's side of the xenbus handshake, pure: what is in xenstore now, and what is to be done about it. It looks
// at levels, never at edges, so that nothing depends on seeing every change.
//
// Back end states: 2 InitWait ("feature-protocol-v2" is written), 4 Connected, 6 Closed. Front ends connect in two
// orders: Linux goes to 3 with its ring and to 4 when we are at 4; mini-os goes straight to 4 and waits for our 4.
// Going to 5 or 6, or back to 1, is a driver that is unloaded or a kernel that is replaced: the ring goes, the device
// stays, another may connect.
#pragma once

#include "xen/types.hpp"

#include <cstdint>
#include <optional>

namespace vtpmd::ring {

/// xen/io/xenbus.h
enum class XenbusState : std::uint8_t {
    unknown = 0, ///< not there, or no number
    initialising = 1,
    init_wait = 2,
    initialised = 3,
    connected = 4,
    closing = 5,
    closed = 6,
    reconfiguring = 7,
    reconfigured = 8,
};

/// What a front end wants to connect with.
struct RingOffer {
    xen::GrantRef ref = 0;
    xen::Port port = 0;
    friend bool operator==(const RingOffer&, const RingOffer&) = default;
};

struct DeviceFacts {
    bool present = false; ///< the back end's directory is there, with the UUID that it is served for
    XenbusState own = XenbusState::unknown;
    bool online = true;          ///< false: the toolstack wants the device gone
    bool toolstack_here = false; ///< the toolstack runs in our domain; known where it wants the device gone
    bool front_present = false;
    XenbusState front = XenbusState::unknown;
    std::optional<RingOffer> offer; ///< complete, and of protocol v2
    bool ready = false;             ///< there is a TPM to connect to
};

class BackHandshake {
  public:
    enum class Phase : std::uint8_t {
        starting,
        waiting,   ///< we wrote InitWait
        connected, ///< to an offer
        failed,    ///< an offer could not be connected; waiting for another
        closed,    ///< the toolstack takes the device away
    };
    /// Every one but `none` begins with giving up the ring, if there is one.
    enum class Action : std::uint8_t {
        none,
        init_wait, ///< write the feature and InitWait, then announced()
        connect,   ///< map, bind, look at the page, write Connected; then connected() or connect_failed()
        close,     ///< write Closed, then closed()
        remove,    ///< gone for good, and it is for us to clear away: remove our directory, end
        end,       ///< our directory is gone: write nothing, end
    };

    [[nodiscard]] Action decide(const DeviceFacts& facts) noexcept {
        if (!facts.present) {
            return Action::end;
        }
        if (!facts.online) {
            // It waits for Closed, also where it has removed the front end's side already (xl destroy), and removes our
            // directory itself, unless we are a driver domain's (libxl_device.c, device_backend_callback and what
            // follows).
            if (phase_ != Phase::closed) {
                return Action::close;
            }
            return facts.toolstack_here ? Action::none : Action::remove;
        }
        if (!facts.front_present) {
            return Action::remove;
        }
        if (facts.own == XenbusState::unknown || facts.own == XenbusState::initialising) {
            return Action::init_wait; // new, or made anew behind our back
        }
        switch (facts.front) {
        case XenbusState::initialised:
        case XenbusState::connected:
            return with_ring(facts);
        case XenbusState::initialising:
        case XenbusState::init_wait:
        case XenbusState::closing:
        case XenbusState::closed:
            return without_ring(facts);
        case XenbusState::unknown:
        case XenbusState::reconfiguring:
        case XenbusState::reconfigured:
            break;
        }
        return Action::none;
    }

    void announced() noexcept { enter(Phase::waiting, std::nullopt); }
    void connected(const RingOffer& offer) noexcept { enter(Phase::connected, offer); }
    void connect_failed(const RingOffer& offer) noexcept { enter(Phase::failed, offer); }
    void closed() noexcept { enter(Phase::closed, std::nullopt); }

    [[nodiscard]] Phase phase() const noexcept { return phase_; }

  private:
    Action with_ring(const DeviceFacts& facts) noexcept {
        if (!facts.offer || !facts.ready || phase_ == Phase::closed) {
            return Action::none;
        }
        if (phase_ == Phase::connected) {
            // The same numbers again after the front end had been at Connected: it has started over.
            const bool again = front_was_connected_ && facts.front == XenbusState::initialised;
            front_was_connected_ = facts.front == XenbusState::connected;
            const bool unsaid = facts.own != XenbusState::connected; // xenstore was away when it was to be written
            return again || unsaid || facts.offer != offer_ ? Action::connect : Action::none;
        }
        return phase_ == Phase::failed && facts.offer == offer_ ? Action::none : Action::connect;
    }
    Action without_ring(const DeviceFacts& facts) noexcept {
        const bool rests = phase_ == Phase::starting || phase_ == Phase::waiting || phase_ == Phase::closed;
        return rests && facts.own == XenbusState::init_wait ? Action::none : Action::init_wait;
    }
    void enter(Phase phase, std::optional<RingOffer> offer) noexcept {
        phase_ = phase;
        offer_ = offer;
        front_was_connected_ = false;
    }

    Phase phase_ = Phase::starting;
    std::optional<RingOffer> offer_; ///< of the present ring, or the one that failed
    bool front_was_connected_ = false;
};

} // namespace vtpmd::ring
