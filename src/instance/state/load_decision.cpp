#include "instance/state/load_decision.hpp"

#include <fmt/format.h>

namespace vtpmd::instance {

namespace {

LoadDecision refuse(Errc code, std::string message) { return {LoadAction::refuse, code, std::move(message)}; }
LoadDecision go(LoadAction action) { return {action, Errc{}, {}}; }

bool has_state(const LoadFacts& facts) {
    return facts.image == ImageFact::has_state || facts.image == ImageFact::given_up;
}

LoadDecision after_reset(const LoadFacts& facts, const Uuid& uuid, const std::string& path) {
    switch (facts.image) {
    case ImageFact::absent:
        return go(LoadAction::create_image_and_fresh);
    case ImageFact::empty:
        return go(LoadAction::fresh_in_image);
    case ImageFact::given_up:
        return go(LoadAction::fresh_after_reset);
    case ImageFact::has_state:
        break;
    }
    return refuse(
        Errc::rollback,
        fmt::format("{}: vTPM {} was reset to factory, but this image is not the one that was reset: it holds "
                    "another state than the one that was given up (it is an older copy, or the manager's "
                    "store is one); it is neither loaded nor replaced: move it away, then a fresh TPM is made",
                    path, uuid));
}

LoadDecision without_record(const LoadFacts& facts, const Uuid& uuid, const std::string& path) {
    if (has_state(facts) && facts.incoming) {
        return refuse(
            Errc::mismatch,
            fmt::format("{}: this image is of vTPM {} as it was before it was migrated away; nobody has its key "
                        "any more; move it away (or zero the device), then it can come back",
                        path, uuid));
    }
    if (has_state(facts)) {
        return refuse(
            Errc::mismatch,
            fmt::format("{}: this image has held the state of vTPM {}, but the manager has no key for it; start the "
                        "manager on the store that belongs to it (a fresh TPM would replace what is there, so none "
                        "is made)",
                        path, uuid));
    }
    if (!facts.create_asked) {
        return refuse(Errc::not_found,
                      fmt::format("{}: {}{}; --create makes a fresh one", path,
                                  facts.manager == ManagerFact::registered
                                      ? fmt::format("vTPM {} is registered and has no TPM yet", uuid)
                                      : fmt::format("there is no vTPM {} yet", uuid),
                                  facts.image == ImageFact::empty ? " (the image never held state)" : ""));
    }
    return go(facts.image == ImageFact::absent ? LoadAction::create_image_and_fresh : LoadAction::fresh_in_image);
}

} // namespace

LoadDecision decide_load(const LoadFacts& facts, const Uuid& uuid, const std::string& path) {
    switch (facts.manager) {
    case ManagerFact::tombstone:
        return refuse(
            Errc::tombstone,
            fmt::format("vTPM {} was deleted or migrated away: its state is not started again; use a new UUID", uuid));
    case ManagerFact::has_record:
        if (facts.image == ImageFact::absent) {
            return refuse(
                Errc::not_found,
                fmt::format("{}: the manager keeps the key of vTPM {}'s state, but its image is not there; name it "
                            "with --state, restore it, or reset or delete the vTPM at the manager (vtpmctl; a fresh "
                            "TPM is not made by itself for a UUID that had state)",
                            path, uuid));
        }
        return go(LoadAction::load);
    case ManagerFact::reset:
        return after_reset(facts, uuid, path);
    case ManagerFact::nothing:
    case ManagerFact::registered:
        break;
    }
    return without_record(facts, uuid, path);
}

} // namespace vtpmd::instance
