#include "instance/instance.hpp"

#include "instance/deep_quote.hpp"
#include "instance/host_pcrs.hpp"
#include "instance/manufacture.hpp"
#include "instance/old_quote.hpp"
#include "instance/operator_quote.hpp"
#include "tpm/commands.hpp"
#include "tpm/cost.hpp"
#include "util/deadline.hpp"
#include "util/wire.hpp"

#include <algorithm>

namespace vtpmd::instance {

namespace {

bool is_quote(TpmVersion version, std::uint32_t code) {
    static_assert(tpm::ord::vendor_deep_quote == tpm::cc::vendor_deep_quote);
    return code == tpm::cc::vendor_deep_quote ||
           (version == TpmVersion::tpm12 && code == tpm::ord::vendor_parent_sign_ek);
}

} // namespace

Instance::Instance(InstanceConfig config, InstanceParts parts)
    : config_(std::move(config))
    , screen_{parts.engine.version(), config_.maintenance_commands}
    , engine_(parts.engine)
    , manager_(parts.manager)
    , clock_(parts.clock)
    , log_(parts.log)
    , request_shutdown_(std::move(parts.request_shutdown))
    , figures_(parts.executor, parts.engine.version(), counters_)
    , committer_(parts.engine, parts.image, parts.manager, counters_)
    , confirm_incoming_(std::move(parts.confirm_incoming))
    , lock_(parts.executor)
    , group_(parts.executor, parts.log) {}

// --- commands ---

Task<Bytes> Instance::execute(Bytes command, std::uint8_t locality) {
    const Arrival arrival{.code = tpm::peek_header(command).code, .at = clock_.now()};
    auto turn = co_await lock_.acquire();
    if (!turn || !engine_.running()) {
        note(arrival, Outcome::refused);
        co_return refuse(tpm::Refusal::failure);
    }
    if (auto refusal = screen(screen_, command, locality)) {
        warn(fmt::format("a command of {} bytes, code 0x{:x}, locality {} was refused", command.size(),
                         tpm::peek_header(command).code, locality));
        note(arrival, Outcome::refused);
        co_return refuse(*refusal);
    }
    // Nearly every command ends here, without a hop.
    if (!committer_.dirty() && committer_.kept_volatile().empty() && tpm::cost(version(), command) == tpm::Cost::fast) {
        Bytes answer = run(command, locality);
        cleanse(command);
        if (!committer_.dirty()) {
            note(arrival, answer);
            co_return answer;
        }
        auto settled =
            co_await shielded(group_, "a commit", settle_answer(std::move(*turn), arrival, std::move(answer)));
        co_return settled ? std::move(*settled) : Bytes{};
    }
    auto done =
        co_await shielded(group_, "a command", slow_command(std::move(*turn), arrival, std::move(command), locality));
    co_return done ? std::move(*done) : Bytes{}; // empty: the guest is gone, nobody reads it
}

void Instance::note(const Arrival& arrival, Outcome outcome) {
    figures_.note(arrival.code, outcome, clock_.now() - arrival.at);
}

void Instance::note(const Arrival& arrival, ByteView answer) {
    note(arrival, tpm::peek_header(answer).code == 0 ? Outcome::success : Outcome::tpm_error);
}

Task<Bytes> Instance::slow_command(Turn turn, Arrival arrival, Bytes command, std::uint8_t locality) {
    drop_kept_volatile();
    auto settled = co_await settle();
    if (!settled) {
        ++counters_.failed_not_durable;
        note(arrival, Outcome::not_durable);
        co_return tpm::error_response(version(), tpm::Refusal::failure);
    }
    if (is_quote(version(), tpm::peek_header(command).code)) {
        Task<Bytes> quoting = version() == TpmVersion::tpm12
                                  ? owner_quote(std::move(turn), std::move(command), locality)
                                  : own_quote(std::move(turn), std::move(command));
        Bytes quoted = co_await std::move(quoting);
        note(arrival, quoted);
        co_return quoted;
    }
    Bytes answer;
    if (tpm::cost(version(), command) == tpm::Cost::long_) {
        ++counters_.long_commands;
        answer = co_await worker_.run([this, &command, locality] { return run(command, locality); });
    } else {
        answer = run(command, locality);
    }
    cleanse(command);
    Bytes out = co_await settle_answer(std::move(turn), arrival, std::move(answer));
    co_return out;
}

Task<Bytes> Instance::owner_quote(Turn turn, Bytes command, std::uint8_t locality) {
    const Turn held = std::move(turn);
    ++counters_.commands;
    ++counters_.long_commands;
    given_out_ = {};
    shut_down_ = false;
    auto asked = authorise_as_owner(engine_, command, locality);
    auto settled = co_await settle(); // a wrong proof is counted, and that is durable before anybody is told
    if (!settled) {
        ++counters_.failed_not_durable;
        co_return tpm::error_response(version(), tpm::Refusal::failure);
    }
    if (auto* refusal = std::get_if<Bytes>(&asked)) {
        ++counters_.tpm_errors;
        co_return std::move(*refusal);
    }
    const OwnerAuthorised session = std::move(std::get<OwnerAuthorised>(asked));
    const QuotedVtpm quoted_vtpm{.engine = engine_, .manager = manager_, .uuid = config_.uuid};
    Task<Result<Bytes>> quoting = session.ordinal == tpm::ord::vendor_parent_sign_ek
                                      ? parent_sign_ek(quoted_vtpm, session, made_here_ && runs_ == 1)
                                  : asks_old_quote(session.parameters) ? old_deep_quote(quoted_vtpm, session, locality)
                                                                       : deep_quote(quoted_vtpm, session);
    auto quoted = co_await std::move(quoting);
    if (!quoted) {
        ++counters_.tpm_errors;
        warn(in_context(quoted.error(), "no deep quote").message);
        end_session(engine_, session);
        co_return tpm::error_response(version(), deep_quote_refusal(version(), quoted.error().code));
    }
    co_return authorised_response(session, *quoted);
}

Task<Bytes> Instance::own_quote(Turn turn, Bytes command) {
    const Turn held = std::move(turn);
    ++counters_.commands;
    ++counters_.long_commands;
    given_out_ = {};
    shut_down_ = false;
    if (tpm::peek_header(command).tag != tpm::st_no_sessions) {
        ++counters_.tpm_errors;
        co_return tpm::error_response(version(), tpm::rc20::auth_context);
    }
    auto asked = parse_deep_quote_20(ByteView(command).subspan(tpm::header_size));
    Result<Bytes> quoted = asked ? Bytes{} : Result<Bytes>(asked.error());
    if (asked) {
        const QuotedVtpm quoted_vtpm{.engine = engine_, .manager = manager_, .uuid = config_.uuid};
        quoted = co_await deep_quote_20(quoted_vtpm, worker_, std::move(*asked));
    }
    auto settled = co_await settle();
    if (!settled) {
        ++counters_.failed_not_durable;
        co_return tpm::error_response(version(), tpm::Refusal::failure);
    }
    if (!quoted) {
        ++counters_.tpm_errors;
        warn(in_context(quoted.error(), "no deep quote").message);
        co_return tpm::error_response(version(), deep_quote_refusal(version(), quoted.error().code));
    }
    WireWriter out;
    out.be16(tpm::st_no_sessions).be32(static_cast<std::uint32_t>(tpm::header_size + quoted->size())).be32(0);
    co_return out.bytes(*quoted).take();
}

/// The answer if what the command changed is durable, a failure otherwise.
Task<Bytes> Instance::settle_answer(Turn turn, Arrival arrival, Bytes answer) {
    const Turn held = std::move(turn);
    auto settled = co_await settle();
    if (!settled) {
        ++counters_.failed_not_durable;
        note(arrival, Outcome::not_durable);
        cleanse(answer);
        co_return tpm::error_response(version(), tpm::Refusal::failure);
    }
    note(arrival, answer);
    co_return answer;
}

Task<Result<Bytes>> Instance::quote_for_operator(proto::AskQuote question) {
    auto turn = co_await lock_.acquire();
    if (!turn) {
        co_return std::move(turn).error();
    }
    auto done = co_await shielded(group_, "an operator's quote", operator_quote(std::move(*turn), std::move(question)));
    if (!done) {
        co_return make_error(Errc::canceled, "cancelled");
    }
    co_return std::move(*done);
}

/// What its guest has left in the TPM to find again must not be touched.
Task<Result<Bytes>> Instance::operator_quote(Turn turn, proto::AskQuote question) {
    const Turn held = std::move(turn);
    const bool stored = !committer_.kept_volatile().empty() ||
                        std::ranges::any_of(given_out_, [](const auto& blob) { return blob.has_value(); });
    if (!engine_.running() || shut_down_ || stored) {
        co_return make_error(Errc::unavailable, "its TPM {}; ask again when its guest runs",
                             !engine_.running() ? "is powered off"
                             : shut_down_       ? "was shut down by its guest"
                                                : "was stored, for its guest to be suspended or moved");
    }
    if (auto settled = co_await settle(); !settled) {
        co_return settled.error();
    }
    const QuotedVtpm quoted_vtpm{.engine = engine_, .manager = manager_, .uuid = config_.uuid};
    auto quoted = co_await instance::operator_quote(quoted_vtpm, worker_, std::move(question));
    auto settled = co_await settle();
    co_return settled ? std::move(quoted) : Result<Bytes>(settled.error());
}

Bytes Instance::run(ByteView command, std::uint8_t locality) {
    ++counters_.commands;
    given_out_ = {};
    const std::uint32_t ordinal = tpm::peek_header(command).code;
    Bytes answer = engine_.execute(command, locality);
    const bool success = tpm::peek_header(answer).code == 0;
    if (!success) {
        ++counters_.tpm_errors;
    }
    shut_down_ = success && ordinal == (version() == TpmVersion::tpm12 ? tpm::ord::save_state : tpm::cc::shutdown);
    return answer;
}

Bytes Instance::refuse(tpm::Refusal why) {
    ++counters_.refused;
    return tpm::error_response(version(), why);
}

void Instance::cancel() {
    ++counters_.cancels;
    engine_.cancel();
}

// --- durability ---

Task<Result<void>> Instance::settle() {
    if (!committer_.dirty()) {
        co_return Result<void>{};
    }
    auto settled = co_await committer_.settle();
    if (!settled) {
        if (!failing_) {
            log_.error("vTPM {}: {}; its guest gets failures until the state can be saved", config_.uuid,
                       settled.error().message);
        }
        failing_ = true;
    } else if (failing_) {
        failing_ = false;
        log_.info("vTPM {}: the state is saved again, service goes on", config_.uuid);
    }
    co_return settled;
}

/// Registers that were stored are those of a moment that is about to pass: they must never come back.
void Instance::drop_kept_volatile() {
    if (!committer_.kept_volatile().empty()) {
        committer_.keep_volatile({});
    }
}

Task<Result<void>> Instance::to_the_end(std::string what, Task<Result<void>> operation) {
    auto done = co_await shielded(group_, std::move(what), std::move(operation));
    if (!done) {
        co_return make_error(Errc::canceled, "cancelled");
    }
    co_return std::move(*done);
}

Task<Result<void>> Instance::with_tpm(std::string what, Step step) {
    auto turn = co_await lock_.acquire();
    if (!turn) {
        co_return std::move(turn).error();
    }
    if (!engine_.running()) {
        co_return make_error(Errc::unsupported, "{}: the TPM is powered off", what);
    }
    co_return co_await to_the_end(std::move(what), do_step(std::move(*turn), std::move(step)));
}

Task<Result<void>> Instance::do_step(Turn turn, Step step) {
    const Turn held = std::move(turn);
    auto settled = co_await settle();
    if (!settled) {
        co_return settled;
    }
    auto done = step();
    if (!done) {
        co_return done;
    }
    co_return co_await settle();
}

// --- power ---

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

// --- the control channel's other wishes ---

Task<Result<bool>> Instance::established() {
    bool set = false;
    auto done = co_await with_tpm("tpmEstablished", [this, &set]() -> Result<void> {
        set = engine_.established();
        return {};
    });
    if (!done) {
        co_return std::move(done).error();
    }
    co_return set;
}

Task<Result<void>> Instance::reset_established(std::uint8_t locality) {
    return with_tpm("resetting tpmEstablished", [this, locality] { return engine_.reset_established(locality); });
}

Task<Result<void>> Instance::hash_start() {
    return with_tpm("a hash sequence", [this] {
        drop_kept_volatile();
        return engine_.hash_start();
    });
}

Task<Result<void>> Instance::hash_data(Bytes data) {
    return with_tpm("a hash sequence", [this, d = std::move(data)] { return engine_.hash_data(d); });
}

Task<Result<void>> Instance::hash_end() {
    return with_tpm("a hash sequence", [this] { return engine_.hash_end(); });
}

Task<Result<void>> Instance::store_volatile() {
    return with_tpm("storing the registers", [this]() -> Result<void> {
        auto now = engine_.snapshot();
        if (!now) {
            return std::move(now).error();
        }
        committer_.keep_volatile(std::move(now->volatile_state));
        return {};
    });
}

Task<Result<guest::TpmService::BufferSize>> Instance::buffer_size(std::uint32_t wanted) {
    auto turn = co_await lock_.acquire();
    if (!turn) {
        co_return std::move(turn).error();
    }
    if (wanted != 0 && engine_.running()) {
        co_return make_error(Errc::unsupported, "the buffer size is set while the TPM is powered off");
    }
    const auto now = engine_.buffer_size(wanted);
    co_return BufferSize{now.size, now.min, now.max};
}

Task<std::string> Instance::info(std::uint64_t flags) {
    auto turn = co_await lock_.acquire();
    if (!turn) {
        co_return std::string("{}");
    }
    co_return engine_.info(static_cast<unsigned>(flags));
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

void Instance::warn(std::string_view what) {
    if (auto verdict = limit_.allow(clock_.now()); verdict.allowed) {
        log_.warning("vTPM {}: {} ({} such lines held back)", config_.uuid, what, verdict.suppressed);
    }
}

} // namespace vtpmd::instance
