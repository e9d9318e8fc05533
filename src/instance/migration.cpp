#include "instance/instance.hpp"

#include "util/secret_bytes.hpp"

#include <algorithm>

namespace vtpmd::instance {

Result<void> Instance::may_power_on() const {
    if (taken_) {
        return make_error(Errc::tombstone, "another host has this vTPM");
    }
    if (!at_home_ && !replaced_ && committer_.unconfirmed().empty()) {
        return make_error(Errc::permission, "--incoming: its state has not come from the other host yet");
    }
    return {};
}

/// The state that came is on the disk: the host that had it is to let go of it before it runs.
Task<Result<void>> Instance::confirm() {
    if (!confirm_incoming_) {
        log_.warning("vTPM {}: no host was asked to let go of it (--incoming=unfenced): it must not run anywhere else",
                     config_.uuid);
    } else {
        store::Digest token{};
        const ByteView shown = committer_.unconfirmed().view();
        std::copy_n(shown.begin(), std::min(shown.size(), token.size()), token.begin());
        auto said = co_await confirm_incoming_(token);
        if (!said) {
            co_return in_context(std::move(said).error(), "the host that this vTPM comes from has not let go of it");
        }
    }
    committer_.keep_unconfirmed({});
    auto settled = co_await settle();
    if (settled) {
        log_.info("vTPM {}: it has come from another host, and is this one's now", config_.uuid);
    }
    co_return settled;
}

Task<Result<void>> Instance::hand_over(TakeRequest request) {
    auto turn = co_await lock_.acquire();
    if (!turn) {
        co_return std::move(turn).error();
    }
    co_return co_await to_the_end("handing over", do_hand_over(std::move(*turn), request));
}

Task<Result<void>> Instance::do_hand_over(Turn turn, TakeRequest request) {
    const Turn held = std::move(turn);
    if (request.uuid != config_.uuid) {
        co_return make_error(Errc::permission, "this is vTPM {}, not {}", config_.uuid, request.uuid);
    }
    if (taken_) {
        if (*taken_ == request.token) {
            co_return Result<void>{};
        }
        co_return make_error(Errc::permission, "vTPM {} was handed over with another state", config_.uuid);
    }
    if (!engine_.running() || !given_out_[0] || !given_out_[1] || !given_out_[2] ||
        handover_token({*given_out_[0], *given_out_[1], *given_out_[2]}) != request.token || committer_.dirty()) {
        co_return make_error(Errc::permission, "vTPM {} has gone on since it gave out that state, or never gave it out",
                             config_.uuid);
    }
    auto gone = co_await manager_.handed_over();
    while (!gone && gone.error().code == Errc::unavailable) {
        // It may be done: neither to run on nor to say no is safe before that is known.
        log_.error("vTPM {}: handing it over: {}; it stands still until the manager is back", config_.uuid,
                   gone.error().message);
        gone = co_await manager_.handed_over();
    }
    if (!gone) {
        log_.error("vTPM {}: not handed over: {}", config_.uuid, gone.error().message);
        co_return gone;
    }
    taken_ = request.token;
    engine_.power_off();
    held_ = EngineState{};
    log_.info("vTPM {}: another host has it now", config_.uuid);
    co_return Result<void>{};
}

Task<Result<Bytes>> Instance::get_blob(std::uint32_t type) {
    auto turn = co_await lock_.acquire();
    if (!turn) {
        co_return std::move(turn).error();
    }
    if (!engine_.running()) {
        co_return make_error(Errc::unsupported, "state is read while the TPM is powered on");
    }
    auto now = engine_.snapshot();
    if (!now) {
        co_return std::move(now).error();
    }
    const SecretBytes& blob = type == 1 ? now->permanent : type == 2 ? now->volatile_state : now->save_state;
    given_out_[type - 1] = store::sha256({blob.view()});
    co_return to_bytes(blob.view());
}

Task<Result<void>> Instance::set_blob(std::uint32_t type, Bytes blob) {
    auto turn = co_await lock_.acquire();
    if (!turn) {
        co_return std::move(turn).error();
    }
    if (engine_.running()) {
        co_return make_error(Errc::unsupported, "state is set while the TPM is powered off");
    }
    if (auto may = may_set_state(); !may) {
        warn(may.error().message);
        co_return may;
    }
    if (type == 1 && blob.empty()) {
        co_return make_error(Errc::usage, "an empty permanent state"); // it would make a fresh TPM
    }
    if (!replaced_) {
        held_.volatile_state.clear(); // of the TPM that this one replaces
        held_.save_state.clear();
        set_.fill(store::sha256({}));
    }
    set_[type - 1] = store::sha256({blob});
    SecretBytes& into = type == 1 ? held_.permanent : type == 2 ? held_.volatile_state : held_.save_state;
    into = SecretBytes(blob);
    cleanse(blob);
    replaced_ = true;
    co_return Result<void>{};
}

Result<void> Instance::may_set_state() const {
    if (taken_) {
        return make_error(Errc::tombstone, "another host has this vTPM");
    }
    if (at_home_ && !config_.allow_rollback) {
        return make_error(Errc::permission,
                          "a state from outside was refused: it would put the TPM back to what it was; "
                          "--rollback=allow lets snapshots do that");
    }
    if (at_home_) {
        log_.warning("vTPM {}: its state is replaced from outside (--rollback=allow)", config_.uuid);
    }
    return {};
}

} // namespace vtpmd::instance
