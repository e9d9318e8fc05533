// Whether what a TPM holds is on the disk: pure.
//
//   durable       what the TPM holds is what the disk and the manager have
//   committing    a change is being made durable; nobody has seen its answer
//   in_doubt      its key was offered and no answer came in time. The change was withdrawn
//                 (store/state_image.hpp), the TPM is back where it was; whether the manager has the key on record is not known
//   unavailable   nothing can be made durable, as far as is known; the TPM holds what is durable
//   lost          another instance has saved since, or the TPM cannot be put back: nothing is answered any more
//
//   event         durable      committing    in_doubt      unavailable   lost
//   change        committing   -             -             -             -       a command changed something
//   done          durable      durable       durable       durable       lost    the manager said its durable yes
//   failed        unavailable  unavailable   unavailable   unavailable   lost    not on record, and it never will be
//   no_answer     in_doubt     in_doubt      in_doubt      in_doubt      lost    offered; not known if on record
//   superseded    lost         lost          lost          lost          lost
//
// A change is only made where the state is durable (admission), so "-" is a broken invariant. Also a save that no
// command asked for (trying again, the end) may be done, fail, or get no answer.
#pragma once

#include "tpm/effect.hpp"

#include <cstdint>
#include <optional>

namespace vtpmd::instance {

enum class Durability : std::uint8_t { durable, committing, in_doubt, unavailable, lost };
enum class DurabilityEvent : std::uint8_t { change, done, failed, no_answer, superseded };

/// nullopt: cannot happen.
[[nodiscard]] constexpr std::optional<Durability> next(Durability state, DurabilityEvent event) noexcept {
    if (event == DurabilityEvent::change) {
        return state == Durability::durable ? std::optional(Durability::committing) : std::nullopt;
    }
    if (state == Durability::lost) {
        return Durability::lost;
    }
    switch (event) {
    case DurabilityEvent::done:
        return Durability::durable;
    case DurabilityEvent::failed:
        return Durability::unavailable;
    case DurabilityEvent::no_answer:
        return Durability::in_doubt;
    default:
        return Durability::lost;
    }
}

/// What becomes of a command.
///
///   state         Effect::none   Effect::permanent
///   durable       run            run
///   committing    -              -                   the command before has the turn
///   in_doubt      watch          refuse
///   unavailable   watch          refuse
///   lost          fail           fail
enum class Admission : std::uint8_t {
    run,
    watch,  ///< it runs; if it did change what must be durable, the TPM goes back and the command is refused
    refuse, ///< tpm::not_durable_code, at once
    fail,
};
[[nodiscard]] constexpr std::optional<Admission> admit(Durability state, tpm::Effect effect) noexcept {
    switch (state) {
    case Durability::durable:
        return Admission::run;
    case Durability::committing:
        return std::nullopt;
    case Durability::in_doubt:
    case Durability::unavailable:
        return effect == tpm::Effect::none ? Admission::watch : Admission::refuse;
    case Durability::lost:
        break;
    }
    return Admission::fail;
}

} // namespace vtpmd::instance
