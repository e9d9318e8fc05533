#include "instance/instance.hpp"

#include "instance/host_pcrs.hpp"
#include "instance/manufacture.hpp"
#include "tpm/commands.hpp"
#include "util/deadline.hpp"

namespace vtpmd::instance {

Task<Result<void>> Instance::start(EngineState state) {
    auto turn = co_await lock_.acquire();
    if (!turn) {
        co_return std::move(turn).error();
    }
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
    at_home_ = !config_.incoming;
    if (config_.incoming && !unconfirmed) {
        co_return Result<void>{}; // nothing is made or kept before its state comes
    }
    committer_.keep_stored_unconfirmed(std::move(state.unconfirmed));
    state.unconfirmed = {};
    const bool firmware = config_.startup == Startup::none || config_.startup == Startup::wait;
    if (!state.volatile_state.empty() && config_.startup != Startup::save && !firmware) {
        retire(state); // stored registers are resumed only where that is asked for
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
        co_return co_await power_on(state, must_save);
    }
    // Powered on once nevertheless: so a state that does not load is known now, and a new one is durable.
    SecretBytes registers = std::move(state.volatile_state);
    state.volatile_state = {};
    committer_.keep_stored(registers.clone());
    auto on = co_await power_on(state, must_save);
    auto held = on ? hold_state() : on;
    engine_.power_off();
    co_return held;
}

/// Nobody comes back for these registers: the TPM that had them is shut down in order now, as it would have been had nobody
/// stored them.
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

Task<Result<void>> Instance::power_on(const EngineState& state, bool must_save) {
    ++counters_.power_cycles;
    shut_down_ = false;
    auto on = engine_.power_on(state);
    if (!on) {
        co_return on;
    }
    if (must_save) {
        engine_.staged_failed();
    }
    resumed_ = !state.volatile_state.empty();
    if (resumed_) {
        committer_.keep_volatile({}); // used up: a crash must not bring these registers back a second time
    } else {
        auto started = start_tpm(state);
        if (!started) {
            engine_.power_off();
            co_return started;
        }
        auto preset = co_await preset_host_pcrs();
        if (!preset) {
            engine_.power_off(); // its PCRs are not to be trusted
            co_return preset;
        }
    }
    co_return co_await settle();
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

Task<Result<void>> Instance::init(bool /*delete_volatile*/) {
    auto turn = co_await lock_.acquire();
    if (!turn) {
        co_return std::move(turn).error();
    }
    co_return co_await to_the_end("a power cycle", do_init(std::move(*turn)));
}

Task<Result<void>> Instance::do_init(Turn turn) {
    const Turn held = std::move(turn);
    if (auto may = may_power_on(); !may) {
        co_return may;
    }
    auto settled = co_await settle();
    if (!settled) {
        co_return settled;
    }
    given_out_ = {};
    if (engine_.running()) {
        auto kept = hold_state();
        if (!kept) {
            co_return kept;
        }
        engine_.power_off();
    }
    if (replaced_ && !at_home_) {
        // On the disk together with the state, before the other host is asked.
        committer_.keep_unconfirmed(SecretBytes(handover_token(set_)));
    }
    made_here_ = made_here_ && !replaced_;
    ++runs_;
    auto on = co_await power_on(held_, replaced_); // registers that were stored are used up by this
    if (!committer_.unconfirmed().empty()) {
        if (on) {
            on = co_await confirm();
        }
        if (!on) {
            engine_.power_off(); // also where it only could not be saved: the other host may run it
        }
    }
    if (engine_.running()) {
        held_ = EngineState{};
        replaced_ = false;
        at_home_ = true;
        set_ = {};
        log_.info("vTPM {}: power cycle", config_.uuid);
    } else {
        log_.error("vTPM {}: it cannot be powered on: {}", config_.uuid, on.error().message);
    }
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
    replaced_ = false;
    return {};
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
    auto kept = hold_state();
    if (kept) {
        engine_.power_off();
        log_.info("vTPM {}: powered off", config_.uuid);
    }
    co_return kept;
}

Task<Result<void>> Instance::close(bool keep_registers) {
    co_await asio::this_coro::reset_cancellation_state(asio::disable_cancellation());
    auto turn = co_await lock_.acquire();
    Result<void> ended;
    if (engine_.running()) {
        ended = co_await orderly_end(keep_registers);
        engine_.power_off();
    }
    turn->release();
    co_await group_.join();
    co_return ended;
}

Task<Result<void>> Instance::orderly_end(bool keep_registers) {
    if (committer_.dirty()) {
        auto settled = co_await with_deadline(clock_, config_.stop_patience, "the last save", settle());
        if (!settled) {
            co_return settled;
        }
    }
    const bool firmware = config_.startup == Startup::none || config_.startup == Startup::wait;
    if (firmware && !committer_.kept_volatile().empty()) {
        co_return Result<void>{}; // STORE_VOLATILE: it is to go on from there
    }
    if (shut_down_) {
        co_return Result<void>{}; // in the order that the guest chose: what it saved is still saved
    }
    if (keep_registers) {
        if (auto now = engine_.snapshot()) {
            committer_.keep_volatile(std::move(now->volatile_state));
            co_return co_await last_save();
        }
    }
    const bool keep = config_.startup == Startup::save;
    if (version() == TpmVersion::tpm12 && !keep) {
        co_return Result<void>{}; // a TPM 1.2 has no other order than being saved
    }
    const Bytes command = version() == TpmVersion::tpm12
                              ? tpm::save_state_command()
                              : tpm::shutdown_command(keep ? tpm::StartupMode::state : tpm::StartupMode::clear);
    (void)engine_.execute(command, 0); // a TPM that refuses it was not started, or failed: there is nothing to save
    co_return co_await last_save();
}

Task<Result<void>> Instance::last_save() {
    auto settled = co_await with_deadline(clock_, config_.stop_patience, "the last save", settle());
    if (!settled) {
        // No guest was told of anything that is lost: the next start is one after a power cut.
        log_.warning("vTPM {}: could not be shut down in order: {}", config_.uuid, settled.error().message);
    }
    co_return Result<void>{};
}

} // namespace vtpmd::instance
