#include "instance/instance.hpp"

#include "instance/making/host_pcrs.hpp"
#include "instance/making/manufacture.hpp"
#include "instance/state/state_blob.hpp"
#include "tpm/commands.hpp"

#include <utility>

namespace vtpmd::instance {

Task<Result<void>> Instance::start(EngineState state) {
    auto turn = co_await lock_.acquire();
    if (!turn) {
        co_return std::move(turn).error();
    }
    starting_ = true;
    auto started = co_await do_start(std::move(state));
    starting_ = false;
    co_return started;
}

Task<Result<void>> Instance::do_start(EngineState state) {
    bool must_save = false;
    const bool unconfirmed = !state.unconfirmed.empty();
    if (unconfirmed && (!config_.incoming || config_.startup != Startup::wait)) {
        co_return make_error(
            Errc::mismatch,
            "this vTPM's state came from another host, which has not said yet that it let go of it; start it "
            "with --incoming=unix:PATH (a socket led to its --handover) and --guest=qemu:, or, if it is "
            "certain that it does not run there any more, with --incoming=unfenced");
    }
    if (config_.incoming && !unconfirmed && !state.permanent.empty()) {
        co_return make_error(Errc::exists, "--incoming: this vTPM has a state of its own here; leave the option out");
    }
    if (config_.incoming && !unconfirmed) {
        life_.expect();
        co_return Result<void>{}; // nothing is made or kept before its state comes
    }
    if (unconfirmed) {
        life_.unconfirmed();
    }
    committer_.keep_stored_unconfirmed(std::move(state.unconfirmed));
    state.unconfirmed = {};
    std::optional<GivenOut> given;
    if (!state.given_out.empty()) {
        auto known = decode_given_out(state.given_out.view());
        if (!known) {
            co_return std::move(known).error();
        }
        given = *known;
    }
    // Registers are resumed only where that is asked for, and those that were given out only by a guest that comes back for them.
    const bool resumed = config_.startup == Startup::save ||
                         (config_.startup == Startup::none && !(given && given->power == Power::started));
    if (!state.volatile_state.empty() && !resumed && config_.startup != Startup::wait) {
        retire(state);
        must_save = true;
    }
    const bool as_libtpms_makes_it =
        version() == TpmVersion::tpm20 && config_.pcr_banks.empty() && !config_.ek_certificates;
    if (state.permanent.empty() && !as_libtpms_makes_it) {
        NewTpm wanted{.banks = config_.pcr_banks, .certifier = config_.ek_certificates ? &manager_ : nullptr};
        auto made = co_await manufacture(engine_, worker_, std::move(wanted), log_);
        if (!made) {
            co_return std::move(made).error();
        }
        state = std::move(*made);
        must_save = true;
        made_here_ = true;
    }
    if (config_.startup != Startup::wait) {
        ++runs_;
        committer_.keep_stored_given_out(std::move(state.given_out));
        committer_.keep_stored(state.volatile_state.clone());
        const PowerOn first{.state = state, .must_save = must_save};
        co_return co_await power_on(first);
    }
    // Powered on once nevertheless: so a state that does not load is known now, and a new one is durable.
    committer_.keep_stored(std::move(state.volatile_state));
    state.volatile_state = {};
    committer_.keep_stored_given_out(std::move(state.given_out));
    const PowerOn trial{.state = state, .must_save = must_save, .try_only = true};
    auto on = co_await power_on(trial);
    auto held = on ? hold_state() : on;
    engine_.power_off();
    life_.lost_power();
    if (given) {
        life_.remember(*given);
    }
    co_return held;
}

/// Nobody comes back for these registers: the TPM that had them is shut down in order now, as it would have been had nobody
/// stored them, or given them out.
void Instance::retire(EngineState& state) {
    if (version() == TpmVersion::tpm12) {
        state.volatile_state.clear();
        return; // it has no other order than being saved
    }
    if (engine_.power_on(state)) {
        (void)engine_.execute(tpm::shutdown_command(tpm::StartupMode::clear), 0);
        if (auto now = engine_.snapshot()) {
            state.permanent = std::move(now->permanent);
            state.save_state = std::move(now->save_state);
        }
    }
    engine_.power_off();
    state.volatile_state.clear();
}

Task<Result<void>> Instance::power_on(PowerOn how) {
    ++counters_.power_cycles;
    const auto given = life_.given_out();
    auto on = engine_.power_on(how.state);
    if (!on) {
        life_.lost_power();
        co_return on;
    }
    if (how.origin == Origin::other_host) {
        // On the disk together with the state, before the other host is asked.
        committer_.keep_unconfirmed(SecretBytes(handover_token(life_.set_digests())));
    }
    if (how.must_save) {
        engine_.staged_failed();
    } else {
        committer_.began_with(how.state);
    }
    if (!how.try_only) {
        forget_the_moment(); // used up: a crash must not bring registers back a second time
    }
    resumed_ = !how.state.volatile_state.empty();
    if (!resumed_) {
        auto started = start_tpm(how.state);
        if (started) {
            started = co_await preset_host_pcrs(); // or its PCRs are not to be trusted
        }
        if (!started) {
            engine_.power_off();
            life_.lost_power();
            co_return started;
        }
    }
    auto settled = co_await settle();
    if (!settled && how.origin != Origin::own) {
        engine_.power_off();
        life_.lost_power();
        co_return settled;
    }
    life_.happened(Event::init);
    if (resumed_ && !how.state.volatile_state.empty()) {
        life_.resumed(how.origin, given ? given->power : Power::started);
    } else if (config_.startup != Startup::none && config_.startup != Startup::wait) {
        life_.happened(Event::startup);
    }
    co_return settled;
}

/// A TPM 2.0 keeps what TPM2_Shutdown(STATE) left in its permanent state: only it can tell.
bool Instance::may_resume(const EngineState& state) const {
    return version() == TpmVersion::tpm12 ? !state.save_state.empty() : !state.permanent.empty();
}

/// TPM_Startup or TPM2_Startup, as the mode says. Resuming a state that was not saved is, by both specifications, an error
/// that asks for another power cycle and a clear start.
Result<void> Instance::start_tpm(const EngineState& state) {
    tpm::StartupMode mode = tpm::StartupMode::clear;
    if (config_.startup == Startup::none || config_.startup == Startup::wait) {
        return {};
    }
    if (config_.startup == Startup::deactivated) {
        mode = tpm::StartupMode::deactivated;
    } else if (config_.startup == Startup::save && may_resume(state)) {
        mode = tpm::StartupMode::state;
    }
    const Bytes answer = engine_.execute(tpm::startup_command(version(), mode), 0);
    auto started = tpm::check_response(answer, "starting the TPM");
    if (mode != tpm::StartupMode::state) {
        if (started && config_.startup == Startup::save) {
            log_.info("vTPM {}: there is no saved state to resume; it starts clear", config_.uuid);
        }
        return started;
    }
    if (started) {
        resumed_ = true;
        return started;
    }
    log_.warning("vTPM {}: the saved state cannot be resumed ({}); it starts clear", config_.uuid,
                 started.error().message);
    if (auto on = engine_.power_on(state); !on) {
        return on;
    }
    const Bytes second = engine_.execute(tpm::startup_command(version(), tpm::StartupMode::clear), 0);
    return tpm::check_response(second, "starting the TPM");
}

Task<Result<void>> Instance::preset_host_pcrs() {
    if (config_.hwinitpcrs.empty() || resumed_) {
        co_return Result<void>{};
    }
    auto values = co_await fetch_host_pcrs(manager_, version(), config_.hwinitpcrs);
    if (!values) {
        co_return in_context(std::move(values).error(), "the host's PCRs");
    }
    auto set = preset_pcrs(engine_, *values);
    if (!set) {
        co_return in_context(std::move(set).error(), "setting the host's PCRs");
    }
    log_.info("vTPM {}: {} PCR values taken from the host", config_.uuid, *set);
    co_return Result<void>{};
}

Task<Result<void>> Instance::init(bool /*delete_volatile*/, guest::ControlPeer peer) {
    auto turn = co_await lock_.acquire();
    if (!turn) {
        co_return std::move(turn).error();
    }
    co_return co_await to_the_end("a power cycle", do_init(std::move(*turn), peer));
}

Task<Result<void>> Instance::do_init(Turn turn, guest::ControlPeer peer) {
    const Turn held = std::move(turn);
    auto origin = life_.origin(peer);
    if (!origin) {
        warn(origin.error().message);
        if (life_.gone(peer)) {
            came_ = EngineState{};
        }
        co_return std::move(origin).error();
    }
    auto settled = co_await settle();
    if (!settled) {
        co_return settled;
    }
    if (engine_.running()) {
        if (auto off = co_await power_off(true); !off) {
            co_return off;
        }
    }
    Task<Result<void>> starting = *origin == Origin::own ? start_over() : start_with(*origin, peer);
    auto on = co_await std::move(starting);
    if (engine_.running()) {
        held_ = EngineState{};
        disk_may_differ_ = false;
        log_.info("vTPM {}: power cycle", config_.uuid);
    } else {
        log_.error("vTPM {}: it cannot be powered on: {}", config_.uuid, on.error().message);
    }
    co_return on;
}

/// From its own state.
Task<Result<void>> Instance::start_over() {
    if (held_.permanent.empty()) { // libtpms would make another TPM
        co_return make_error(Errc::corrupt, "there is no state to start with");
    }
    if (const auto given = life_.given_out(); given && given->power == Power::started) {
        retire(held_); // its guest has not come back for these registers
        disk_may_differ_ = true;
    }
    ++runs_;
    const PowerOn own{.state = held_, .must_save = disk_may_differ_};
    auto on = co_await power_on(own);
    if (life_.owner() != Owner::unconfirmed) {
        co_return on;
    }
    if (on) {
        on = co_await confirm();
    }
    if (!on) {
        engine_.power_off(); // also where it only could not be saved: the other host may run it
        life_.lost_power();
    }
    co_return on;
}

/// From a state that was set. If that fails the TPM stays as it was; of another host's, which has no other, what came is kept once it
/// may be on the disk.
Task<Result<void>> Instance::start_with(Origin origin, guest::ControlPeer peer) {
    EngineState state = std::exchange(came_, EngineState{}); // its connection may end meanwhile
    SecretBytes registers = committer_.kept_volatile().clone();
    SecretBytes given = committer_.kept_given_out().clone();
    ++runs_;
    const PowerOn other{.state = state, .origin = origin, .must_save = true};
    auto on = co_await power_on(other);
    const bool loaded = on || committer_.dirty();
    if (loaded) {
        made_here_ = made_here_ && origin == Origin::given_out;
        disk_may_differ_ = true;
    }
    if (loaded && origin == Origin::other_host) {
        (void)life_.gone(peer);
        life_.unconfirmed();
        if (on) {
            on = co_await confirm();
        }
        if (!on) {
            engine_.power_off(); // also where it only could not be saved: the other host may run it
            life_.lost_power();
            held_ = std::move(state);
        }
        co_return on;
    }
    if (!on) {
        committer_.keep_stored(std::move(registers));
        committer_.keep_stored_given_out(std::move(given));
        if (loaded && !held_.permanent.empty() &&
            engine_.power_on(EngineState{.permanent = held_.permanent.clone(),
                                         .save_state = held_.save_state.clone(),
                                         .volatile_state = {},
                                         .unconfirmed = {},
                                         .given_out = {}})) {
            engine_.power_off(); // only so is what was loaded not staged any more
        }
        (void)life_.gone(peer); // it was tried
        co_return on;
    }
    log_.info("vTPM {}: {}", config_.uuid,
              origin == Origin::given_out ? "it goes on from the state that it gave out last"
                                          : "its state was replaced from outside (--rollback=allow)");
    co_return on;
}

/// Keeps what the next power-on starts with: the permanent and saved state, and registers only if they were stored.
Result<void> Instance::hold_state() {
    auto now = engine_.snapshot();
    if (!now) {
        return std::move(now).error();
    }
    held_.permanent = std::move(now->permanent);
    held_.save_state = std::move(now->save_state);
    held_.volatile_state = committer_.kept_volatile().clone();
    return {};
}

Task<Result<void>> Instance::power_off(bool cycle) {
    if (auto ended = co_await end_power(cycle); !ended) {
        co_return ended;
    }
    if (auto kept = hold_state(); !kept) {
        co_return kept;
    }
    engine_.power_off();
    life_.happened(Event::stop);
    co_return Result<void>{};
}

Task<Result<void>> Instance::end_power(bool cycle) {
    switch (life_.ending(cycle)) {
    case Ending::none:
        break;
    case Ending::orderly:
        shut_down(tpm::StartupMode::clear);
        break;
    case Ending::keep_given:
        remember_given_out();
        break;
    }
    co_return co_await settle();
}

/// A TPM that refuses it was not started, or failed: there is nothing to save. A TPM 1.2 has no other order than being saved.
void Instance::shut_down(tpm::StartupMode mode) {
    if (version() == TpmVersion::tpm12 && mode == tpm::StartupMode::clear) {
        return;
    }
    (void)engine_.execute(version() == TpmVersion::tpm12 ? tpm::save_state_command() : tpm::shutdown_command(mode), 0);
    life_.happened(Event::shutdown);
}

void Instance::remember_given_out() {
    const auto given = life_.given_out();
    if (!given) {
        return;
    }
    if (given->power == Power::started) {
        committer_.keep_volatile(given_registers_.clone());
    }
    committer_.keep_given_out(encode_given_out(*given));
}

Task<Result<void>> Instance::stop() {
    auto turn = co_await lock_.acquire();
    if (!turn) {
        co_return std::move(turn).error();
    }
    if (!engine_.running()) {
        co_return Result<void>{};
    }
    co_return co_await to_the_end("powering off", do_stop(std::move(*turn)));
}

Task<Result<void>> Instance::do_stop(Turn turn) {
    const Turn held = std::move(turn);
    auto settled = co_await settle();
    if (!settled) {
        co_return settled;
    }
    auto off = co_await power_off(false);
    if (off) {
        log_.info("vTPM {}: powered off", config_.uuid);
    }
    co_return off;
}

Task<Result<void>> Instance::close(bool keep_registers) {
    co_await asio::this_coro::reset_cancellation_state(asio::disable_cancellation());
    committer_.stop();
    auto turn = co_await lock_.acquire();
    Result<void> ended;
    if (engine_.running()) {
        ended = co_await orderly_end(keep_registers);
        engine_.power_off();
        life_.lost_power();
    }
    turn->release();
    co_await group_.join();
    co_return committer_.lost() ? Result<void>(*committer_.lost()) : ended;
}

Task<Result<void>> Instance::orderly_end(bool keep_registers) {
    if (!committer_.calm()) {
        // Nothing that a guest was told of is lost: what it was not told of has not happened.
        log_.warning("vTPM {}: could not be shut down in order: its state cannot be saved", config_.uuid);
        co_return Result<void>{};
    }
    const bool running = life_.power() == Power::on || life_.power() == Power::started;
    if (keep_registers && running) {
        if (auto now = engine_.registers()) {
            committer_.keep_volatile(std::move(*now));
            co_return co_await last_save("shut down in order");
        }
    }
    switch (life_.ending(false)) {
    case Ending::none:
        co_return Result<void>{};
    case Ending::orderly:
        shut_down(config_.startup == Startup::save ? tpm::StartupMode::state : tpm::StartupMode::clear);
        co_return co_await last_save("shut down in order");
    case Ending::keep_given:
        remember_given_out();
        co_return co_await last_save("suspended: what it gave out last cannot come back");
    }
    co_return Result<void>{};
}

Task<Result<void>> Instance::last_save(std::string_view what) {
    auto settled = co_await committer_.settle(patience_of_power);
    if (!settled) {
        // No guest was told of anything that is lost: the next start is one after a power cut.
        log_.warning("vTPM {}: could not be {}: {}", config_.uuid, what, settled.error().message);
    }
    co_return Result<void>{};
}

} // namespace vtpmd::instance
