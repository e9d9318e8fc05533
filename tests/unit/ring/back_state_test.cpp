// Every phase of the back end's ring state with every event; the expected table is the one in the header's comment.
#include "check.hpp"
#include "ring/back_state.hpp"

#include <array>

namespace ring_back_state_test {

using namespace vtpmd::ring;
using Action = BackState::Action;
using Phase = BackState::Phase;

namespace {

constexpr std::array phases{Phase::waiting, Phase::executing, Phase::cancelling};

BackState in_phase(Phase phase) {
    BackState s;
    if (phase != Phase::waiting) {
        REQUIRE(s.saw(state_submit) == Action::take);
    }
    if (phase == Phase::cancelling) {
        REQUIRE(s.saw(state_cancel) == Action::cancel);
    }
    REQUIRE(s.phase() == phase);
    return s;
}

struct Expected {
    Action action;
    Phase then;
};

} // namespace

TEST_SUITE("ring") {
    TEST_CASE("back state: every phase, every value of the state byte") {
        for (Phase phase : phases) {
            for (unsigned value = 0; value < 256; ++value) {
                CAPTURE(static_cast<int>(phase));
                CAPTURE(value);
                Expected expected{Action::none, phase};
                if (value > state_cancel) {
                    expected.action = Action::complain;
                } else if (value == state_submit && phase == Phase::waiting) {
                    expected = {Action::take, Phase::executing};
                } else if (value == state_cancel && phase == Phase::waiting) {
                    expected.action = Action::drop;
                } else if (value == state_cancel && phase == Phase::executing) {
                    expected = {Action::cancel, Phase::cancelling};
                }
                BackState s = in_phase(phase);
                CHECK(s.saw(static_cast<std::uint8_t>(value)) == expected.action);
                CHECK(s.phase() == expected.then);
            }
        }
    }
    TEST_CASE("back state: the end of a command") {
        for (Phase phase : phases) {
            const bool runs = phase != Phase::waiting;
            BackState done = in_phase(phase);
            CHECK(done.completed() == (runs ? Action::publish : Action::none));
            CHECK(done.phase() == Phase::waiting);
            BackState bad = in_phase(phase);
            CHECK(bad.rejected() == (runs ? Action::drop : Action::none));
            CHECK(bad.phase() == Phase::waiting);
        }
    }
    TEST_CASE("back state: a storm of CANCELs asks once, and the next command is taken") {
        BackState s = in_phase(Phase::executing);
        CHECK(s.saw(state_cancel) == Action::cancel);
        for (int i = 0; i < 1000; ++i) {
            CHECK(s.saw(state_cancel) == Action::none);
        }
        CHECK(s.completed() == Action::publish);
        CHECK(s.saw(state_submit) == Action::take);
    }
}

} // namespace ring_back_state_test
