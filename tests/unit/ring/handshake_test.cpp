// Every phase of the handshake with every state of both ends; what is expected is written down rule by rule, in the order of
// precedence.
#include "check.hpp"
#include "ring/handshake.hpp"

#include <array>

namespace ring_handshake_test {

using namespace vtpmd::ring;
using Action = BackHandshake::Action;
using Phase = BackHandshake::Phase;
using State = XenbusState;

namespace {

constexpr RingOffer offer_a{8, 3};
constexpr RingOffer offer_b{9, 3};
constexpr std::array phases{Phase::starting, Phase::waiting, Phase::connected, Phase::failed, Phase::closed};

BackHandshake in_phase(Phase phase) {
    BackHandshake h;
    switch (phase) {
    case Phase::starting:
        break;
    case Phase::waiting:
        h.announced();
        break;
    case Phase::connected:
        h.connected(offer_a);
        break;
    case Phase::failed:
        h.connect_failed(offer_a);
        break;
    case Phase::closed:
        h.closed();
        break;
    }
    REQUIRE(h.phase() == phase);
    return h;
}

DeviceFacts facts(State own, State front) {
    return {.present = true,
            .own = own,
            .online = true,
            .front_present = true,
            .front = front,
            .offer = offer_a,
            .ready = true};
}

State state_of(unsigned n) { return static_cast<State>(n); }

/// What the words in the header say of a device that is there and online.
Action expected(Phase phase, State own, State front, bool ready, std::optional<RingOffer> offer) {
    if (own == State::unknown || own == State::initialising) {
        return Action::init_wait;
    }
    if (front == State::initialised || front == State::connected) {
        if (!ready || !offer || phase == Phase::closed) {
            return Action::none;
        }
        if (phase == Phase::connected) {
            return offer == offer_a && own == State::connected ? Action::none : Action::connect;
        }
        return phase == Phase::failed && offer == offer_a ? Action::none : Action::connect;
    }
    if (front == State::unknown || front == State::reconfiguring || front == State::reconfigured) {
        return Action::none;
    }
    const bool has_ring = phase == Phase::connected || phase == Phase::failed;
    return own != State::init_wait || has_ring ? Action::init_wait : Action::none;
}

} // namespace

TEST_SUITE("ring") {
    TEST_CASE("handshake: every phase, every state of both ends, every offer") {
        for (Phase phase : phases) {
            for (unsigned own = 0; own <= 8; ++own) {
                for (unsigned front = 0; front <= 8; ++front) {
                    for (bool ready : {false, true}) {
                        for (std::optional<RingOffer> offer :
                             {std::optional<RingOffer>{}, std::optional(offer_a), std::optional(offer_b)}) {
                            CAPTURE(static_cast<int>(phase));
                            CAPTURE(own);
                            CAPTURE(front);
                            BackHandshake h = in_phase(phase);
                            DeviceFacts f = facts(state_of(own), state_of(front));
                            f.ready = ready;
                            f.offer = offer;
                            CHECK(h.decide(f) == expected(phase, f.own, f.front, ready, offer));
                        }
                    }
                }
            }
        }
    }
    TEST_CASE(
        "handshake: a directory that is gone, a toolstack that detaches, a front end that is gone, in this order") {
        for (Phase phase : phases) {
            for (unsigned own = 0; own <= 8; ++own) {
                for (unsigned front = 0; front <= 8; ++front) {
                    DeviceFacts f = facts(state_of(own), state_of(front));
                    f.front_present = false;
                    CHECK(in_phase(phase).decide(f) == Action::remove);
                    for (bool front_present : {true, false}) {
                        f.front_present = front_present;
                        f.online = false;
                        f.toolstack_here = true;
                        CHECK(in_phase(phase).decide(f) == (phase == Phase::closed ? Action::none : Action::close));
                        f.toolstack_here = false;
                        CHECK(in_phase(phase).decide(f) == (phase == Phase::closed ? Action::remove : Action::close));
                    }
                    f.present = false;
                    CHECK(in_phase(phase).decide(f) == Action::end);
                }
            }
        }
    }
    TEST_CASE("handshake: a front end that starts over with the same numbers gets a new connection") {
        BackHandshake h = in_phase(Phase::connected);
        const DeviceFacts before = facts(State::connected, State::initialised);
        const DeviceFacts connected = facts(State::connected, State::connected);
        CHECK(h.decide(before) == Action::none); // still on its way
        CHECK(h.decide(connected) == Action::none);
        CHECK(h.decide(before) == Action::connect);
        h.connected(offer_a);
        CHECK(h.decide(before) == Action::none);
    }
    TEST_CASE("handshake: mini-os's order, Linux after it in the same domain") {
        BackHandshake h;
        CHECK(h.decide(facts(State::initialising, State::initialising)) == Action::init_wait);
        h.announced();
        CHECK(h.decide(facts(State::init_wait, State::initialising)) == Action::none);
        CHECK(h.decide(facts(State::init_wait, State::connected)) == Action::connect);
        h.connected(offer_a);
        CHECK(h.decide(facts(State::connected, State::connected)) == Action::none);
        CHECK(h.decide(facts(State::connected, State::closing)) == Action::init_wait);
        h.announced();
        CHECK(h.decide(facts(State::init_wait, State::closed)) == Action::none);
        CHECK(h.decide(facts(State::init_wait, State::initialised)) == Action::connect);
    }
}

} // namespace ring_handshake_test
