// Whether a vTPM's state is loaded, a fresh TPM is made, or neither: pure, and the place where "unreadable state is never
// replaced by a fresh TPM" is decided. Every cell of the table is tested.
//
//                          manager: nothing       registered, no record    record        reset         tombstone
//   no image               create or refuse       create or refuse         refuse        fresh         refuse
//   image without state    create or refuse       create or refuse         load (*)      fresh         refuse
//   image with state       refuse                 refuse                   load          refuse        refuse
//   with the state that
//   was given up           refuse                 refuse                   load (**)     fresh         refuse
//
// "reset": the manager says, from its durable record, that an operator reset the vTPM to factory, and nothing was saved since.
// That asks for a fresh TPM, but it takes the place of one state only, of which the manager has the hash. An older copy of the
// image, or one that was saved since (the manager's may be an older copy), is not replaced. (**) load() refuses it by name.
// "create or refuse": a fresh TPM if it was asked for (--create, or the manager's --auto-create), else a refusal that says
// how to ask. (*) the image's own mark may be one step behind the manager's record; if the save is not in it, load() says so.
#pragma once

#include "util/result.hpp"
#include "util/uuid.hpp"

#include <string>

namespace vtpmd::instance {

enum class ImageFact {
    absent,
    empty,
    has_state,
    given_up ///< has the state that the manager says was given up by a reset
};
enum class ManagerFact { nothing, registered, has_record, reset, tombstone };
enum class LoadAction {
    create_image_and_fresh, ///< write an image, then start an empty TPM
    fresh_in_image,         ///< the image is there and never held state
    fresh_after_reset,      ///< the image holds the state that was given up
    load,
    refuse,
};

struct LoadFacts {
    ImageFact image = ImageFact::absent;
    ManagerFact manager = ManagerFact::nothing;
    bool create_asked = false;
    bool incoming = false; ///< for the message: its state comes from another host
};

struct LoadDecision {
    LoadAction action = LoadAction::refuse;
    Errc code{};         ///< of a refusal
    std::string message; ///< of a refusal: the cause and the way out
};

/// `path` is the image's, for messages.
[[nodiscard]] LoadDecision decide_load(const LoadFacts& facts, const Uuid& uuid, const std::string& path);

} // namespace vtpmd::instance
