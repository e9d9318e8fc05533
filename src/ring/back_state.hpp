// The back end's side of one ring, as a pure state machine: what a look at the page, or the end of a command, calls
// for.
//
//                 waiting               executing             cancelling
//   IDLE          -                     -                     -
//   SUBMIT        take, -> executing    -                     -
//   FINISH        -                     -                     -
//   CANCEL        drop                  cancel, -> cancelling -
//   other         complain              complain              complain
//   completed     (cannot be)           publish, -> waiting   publish, -> waiting
//   rejected      (cannot be)           drop, -> waiting      drop, -> waiting
//
// A CANCEL is answered by the end of the command (FINISH) or, if there is none, by dropping it (IDLE), always with a
// notification. Whatever else the front end writes while a command runs changes nothing: its answer replaces it.
#pragma once

#include "ring/page.hpp"

namespace vtpmd::ring {

class BackState {
  public:
    enum class Phase : std::uint8_t { waiting, executing, cancelling };
    enum class Action : std::uint8_t {
        none,
        take,     ///< copy the request and carry it out; then completed() or rejected()
        cancel,   ///< ask the command that runs to end early
        publish,  ///< write the response, FINISH, notify
        drop,     ///< IDLE, notify
        complain, ///< a state that does not exist: say so in the log
    };

    /// The page's state byte, whatever it is.
    [[nodiscard]] Action saw(std::uint8_t state) noexcept {
        switch (state) {
        case state_idle:
        case state_finish:
            return Action::none;
        case state_submit:
            if (phase_ == Phase::waiting) {
                phase_ = Phase::executing;
                return Action::take;
            }
            return Action::none;
        case state_cancel:
            if (phase_ == Phase::waiting) {
                return Action::drop;
            }
            if (phase_ == Phase::executing) {
                phase_ = Phase::cancelling;
                return Action::cancel;
            }
            return Action::none;
        default:
            return Action::complain;
        }
    }
    /// The command has its response.
    [[nodiscard]] Action completed() noexcept { return end_command(Action::publish); }
    /// The request could not be carried out at all (its length, its pages).
    [[nodiscard]] Action rejected() noexcept { return end_command(Action::drop); }

    [[nodiscard]] Phase phase() const noexcept { return phase_; }

  private:
    Action end_command(Action action) noexcept {
        if (phase_ == Phase::waiting) {
            return Action::none;
        }
        phase_ = Phase::waiting;
        return action;
    }
    Phase phase_ = Phase::waiting;
};

} // namespace vtpmd::ring
