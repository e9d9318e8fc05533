#include "instance/instance.hpp"

#include "util/secret_bytes.hpp"

#include <algorithm>

namespace vtpmd::instance {

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
    life_.confirmed();
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
    auto may = life_.may_take(request.token);
    if (!may) {
        co_return std::move(may).error();
    }
    if (!*may) {
        co_return Result<void>{}; // it was let go of already
    }
    if (committer_.dirty()) {
        co_return make_error(Errc::permission, "vTPM {} has a change that is not on its disk yet", config_.uuid);
    }
    auto ask = [](proto::ManagerClient& manager, Clock& clock, Clock::duration pause) -> Task<Result<void>> {
        (void)co_await clock.sleep_for(pause);
        co_return co_await manager.handed_over();
    };
    auto gone = co_await committer_.unless_stopped(ask(manager_, clock_, {}));
    bool in_doubt = false;
    auto is_open = [&in_doubt](const Error& e) {
        in_doubt = in_doubt || e.code == Errc::unavailable;
        // A disk that fails now, or a manager that refuses to look, says nothing of what was asked before.
        const bool says_nothing =
            e.code == Errc::io || e.code == Errc::no_space || e.code == Errc::busy || e.code == Errc::permission;
        return e.code == Errc::unavailable || (in_doubt && says_nothing);
    };
    while (!gone && is_open(gone.error()) && !committer_.has_stopped()) {
        // It may be done: neither to run on nor to say no is safe before that is known.
        log_.error("vTPM {}: handing it over: {}; it stands still until the manager is back", config_.uuid,
                   gone.error().message);
        gone = co_await committer_.unless_stopped(ask(manager_, clock_, std::chrono::seconds(1)));
    }
    if (!gone) {
        log_.error("vTPM {}: not handed over: {}", config_.uuid, gone.error().message);
        co_return gone;
    }
    engine_.power_off();
    life_.taken(request.token);
    held_ = EngineState{};
    log_.info("vTPM {}: another host has it now", config_.uuid);
    co_return Result<void>{};
}

Task<Result<Bytes>> Instance::get_blob(std::uint32_t type) {
    auto turn = co_await lock_.acquire();
    if (!turn) {
        co_return std::move(turn).error();
    }
    if (auto may = life_.may(Event::give); !may) {
        co_return may.error();
    }
    if (committer_.dirty()) { // what could be lost is not given out
        auto settled = co_await to_the_end("a commit", settle_first(std::move(*turn)));
        if (!settled) {
            co_return std::move(settled).error();
        }
        co_return co_await get_blob(type);
    }
    if (committer_.dirty() || committer_.state() == Durability::lost) {
        co_return make_error(Errc::unavailable,
                             "its state cannot be saved now, and what is not saved is not given out");
    }
    auto now = engine_.snapshot();
    if (!now) {
        co_return std::move(now).error();
    }
    if (type == 2) {
        // The registers hold a time: asked for twice, an unchanged TPM gives the same.
        if (life_.gave(2) && !given_registers_.empty()) {
            now->volatile_state = given_registers_.clone();
        } else {
            given_registers_ = now->volatile_state.clone();
        }
    }
    const SecretBytes& blob = type == 1 ? now->permanent : type == 2 ? now->volatile_state : now->save_state;
    life_.gave(type, store::sha256({blob.view()}), now->save_state.empty());
    co_return to_bytes(blob.view());
}

Task<Result<void>> Instance::settle_first(Turn turn) {
    const Turn held = std::move(turn);
    co_return co_await settle();
}

Task<Result<void>> Instance::set_blob(std::uint32_t type, Bytes blob, guest::ControlPeer peer) {
    auto turn = co_await lock_.acquire();
    if (!turn) {
        co_return std::move(turn).error();
    }
    const auto digest = store::sha256({blob});
    if (auto may = life_.may_set(type, digest); !may) {
        warn(may.error().message);
        co_return may;
    }
    if (life_.set(peer, type, digest)) {
        came_ = EngineState{};
    }
    SecretBytes& into = type == 1 ? came_.permanent : type == 2 ? came_.volatile_state : came_.save_state;
    into = SecretBytes(blob);
    cleanse(blob);
    co_return Result<void>{};
}

void Instance::control_gone(guest::ControlPeer peer) {
    if (life_.gone(peer)) {
        came_ = EngineState{};
        log_.info("vTPM {}: a restore was broken off; the TPM stays as it was", config_.uuid);
    }
}

} // namespace vtpmd::instance
