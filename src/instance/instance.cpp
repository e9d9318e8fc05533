#include "instance/instance.hpp"

#include "tpm/commands.hpp"
#include "tpm/cost.hpp"

namespace vtpmd::instance {

namespace {

bool is_quote(TpmVersion version, std::uint32_t code) {
    static_assert(tpm::ord::vendor_deep_quote == tpm::cc::vendor_deep_quote);
    return code == tpm::cc::vendor_deep_quote ||
           (version == TpmVersion::tpm12 && code == tpm::ord::vendor_parent_sign_ek);
}

/// Of a command that the TPM took.
Event event_of(TpmVersion version, std::uint32_t code) {
    const bool old = version == TpmVersion::tpm12;
    if (code == (old ? tpm::ord::startup : tpm::cc::startup)) {
        return Event::startup;
    }
    return code == (old ? tpm::ord::save_state : tpm::cc::shutdown) ? Event::shutdown : Event::command;
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
    , committer_({.engine = parts.engine,
                  .image = parts.image,
                  .manager = parts.manager,
                  .counters = counters_,
                  .clock = parts.clock,
                  .log = parts.log,
                  .lock = lock_,
                  .worker = worker_,
                  .group = group_,
                  .uuid = config_.uuid,
                  .on_lost = request_shutdown_})
    , life_(config_.allow_rollback)
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
    if (committer_.calm() && !committer_.keeps_a_moment() && tpm::cost(version(), command) == tpm::Cost::fast) {
        SecretBytes registers = committer_.before(command, Admission::run);
        Bytes answer = run(command, locality);
        if (!committer_.dirty()) {
            cleanse(command);
            note(arrival, answer);
            co_return answer;
        }
        Ran ran{std::move(command), std::move(answer), std::move(registers), Admission::run};
        auto committed =
            co_await shielded(group_, "a commit", commit_answer(std::move(*turn), arrival, std::move(ran)));
        co_return committed ? std::move(*committed) : Bytes{};
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
    if (committer_.state() == Durability::durable) {
        forget_the_moment();
        (void)co_await committer_.settle(CommitPatience{}); // of a step that was no command
    }
    if (!committer_.calm()) {
        co_await committer_.await_manager(command);
    }
    const Admission how = committer_.admission(command);
    const bool quote = is_quote(version(), tpm::peek_header(command).code);
    if (how == Admission::fail) {
        note(arrival, Outcome::not_durable);
        co_return refuse_not_durable(tpm::refusal_code(version(), tpm::Refusal::failure));
    }
    if (committer_.dirty() || committer_.keeps_a_moment() || how == Admission::refuse ||
        (quote && how != Admission::run)) {
        note(arrival, Outcome::not_durable);
        co_return refuse_not_durable(tpm::not_durable_code(version()));
    }
    if (quote) {
        Task<Bytes> quoting = version() == TpmVersion::tpm12
                                  ? owner_quote(std::move(turn), std::move(command), locality)
                                  : own_quote(std::move(turn), std::move(command));
        Bytes quoted = co_await std::move(quoting);
        note(arrival, quoted);
        co_return quoted;
    }
    Ran ran{.command = std::move(command), .answer = {}, .registers = {}, .how = how};
    ran.registers = committer_.before(ran.command, how);
    if (tpm::cost(version(), ran.command) == tpm::Cost::long_) {
        ++counters_.long_commands;
        ran.answer = co_await worker_.run([this, &ran, locality] { return run(ran.command, locality); });
    } else {
        ran.answer = run(ran.command, locality);
    }
    Bytes out = co_await commit_answer(std::move(turn), arrival, std::move(ran));
    co_return out;
}

/// The answer if what the command changed is durable. Otherwise the command has not happened.
Task<Bytes> Instance::commit_answer(Turn turn, Arrival arrival, Ran ran) {
    const Turn held = std::move(turn);
    Result<void> kept;
    if (ran.how == Admission::watch) {
        kept = co_await committer_.undo_if_changed(std::move(ran.registers), ran.command, ran.answer);
    } else {
        kept = co_await commit_if_changed(std::move(ran.registers), ran.command, ran.answer); // both live in this frame
    }
    cleanse(ran.command);
    if (!kept) {
        cleanse(ran.answer);
        note(arrival, Outcome::not_durable);
        const bool lost = committer_.state() == Durability::lost;
        co_return refuse_not_durable(lost ? tpm::refusal_code(version(), tpm::Refusal::failure)
                                          : tpm::not_durable_code(version()));
    }
    note(arrival, ran.answer);
    co_return std::move(ran.answer);
}

Task<Result<void>> Instance::commit_if_changed(SecretBytes registers, ByteView command, ByteView answer) {
    if (!committer_.dirty()) {
        co_return Result<void>{};
    }
    co_return co_await committer_.commit(std::move(registers), command, answer);
}

Bytes Instance::refuse_not_durable(std::uint32_t code) {
    ++counters_.failed_not_durable;
    return tpm::error_response(version(), code);
}

Bytes Instance::run(ByteView command, std::uint8_t locality) {
    ++counters_.commands;
    const std::uint32_t ordinal = tpm::peek_header(command).code;
    Bytes answer = engine_.execute(command, locality);
    const bool success = tpm::peek_header(answer).code == 0;
    if (!success) {
        ++counters_.tpm_errors;
    }
    life_.happened(success ? event_of(version(), ordinal) : Event::command);
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
    std::optional<CommitPatience> patience; // a start, and the first save of all, take their time
    if (committer_.began() && !starting_) {
        patience = patience_of_power;
    }
    co_return co_await committer_.settle(patience);
}

/// Registers that were stored, and what is known of those that were given out, are of a moment that is about to pass: they must
/// never come back.
void Instance::forget_the_moment() {
    if (!committer_.kept_volatile().empty()) {
        committer_.keep_volatile({});
    }
    if (!committer_.kept_given_out().empty()) {
        committer_.keep_given_out({});
    }
}

Task<Result<void>> Instance::to_the_end(std::string what, Task<Result<void>> operation) {
    auto done = co_await shielded(group_, std::move(what), std::move(operation));
    if (!done) {
        co_return make_error(Errc::canceled, "cancelled");
    }
    co_return std::move(*done);
}

Task<Result<void>> Instance::with_tpm(std::string what, Event event, Step step) {
    auto turn = co_await lock_.acquire();
    if (!turn) {
        co_return std::move(turn).error();
    }
    if (auto may = life_.may(event); !may) {
        co_return in_context(std::move(may).error(), what);
    }
    co_return co_await to_the_end(std::move(what), do_step(std::move(*turn), event, std::move(step)));
}

Task<Result<void>> Instance::do_step(Turn turn, Event event, Step step) {
    const Turn held = std::move(turn);
    if (!committer_.calm()) {
        co_return make_error(Errc::unavailable, "its state cannot be saved now");
    }
    if (event == Event::measurement) {
        forget_the_moment();
    }
    SecretBytes registers = committer_.before({}, Admission::watch);
    life_.happened(event); // also what the TPM refuses counts: nobody has looked into it
    auto done = step();
    auto after = co_await commit_if_changed(std::move(registers), {}, {});
    if (!done) {
        co_return done;
    }
    co_return after;
}

// --- the control channel's other wishes ---

Task<Result<bool>> Instance::established() {
    auto turn = co_await lock_.acquire();
    if (!turn) {
        co_return std::move(turn).error();
    }
    if (!engine_.running()) {
        co_return make_error(Errc::unsupported, "tpmEstablished: the TPM is powered off");
    }
    if (committer_.dirty() || committer_.state() == Durability::lost) {
        co_return make_error(Errc::unavailable, "tpmEstablished: its state cannot be saved now");
    }
    co_return engine_.established();
}

Task<Result<void>> Instance::reset_established(std::uint8_t locality) {
    return with_tpm("resetting tpmEstablished", Event::measurement,
                    [this, locality] { return engine_.reset_established(locality); });
}

Task<Result<void>> Instance::hash_start() {
    return with_tpm("a hash sequence", Event::measurement, [this] { return engine_.hash_start(); });
}

Task<Result<void>> Instance::hash_data(Bytes data) {
    return with_tpm("a hash sequence", Event::measurement,
                    [this, d = std::move(data)] { return engine_.hash_data(d); });
}

Task<Result<void>> Instance::hash_end() {
    return with_tpm("a hash sequence", Event::measurement, [this] { return engine_.hash_end(); });
}

Task<Result<void>> Instance::store_volatile() {
    return with_tpm("storing the registers", Event::store, [this]() -> Result<void> {
        auto now = engine_.registers();
        if (!now) {
            return std::move(now).error();
        }
        committer_.keep_volatile(std::move(*now));
        return {};
    });
}

Task<Result<guest::TpmService::BufferSize>> Instance::buffer_size(std::uint32_t wanted) {
    auto turn = co_await lock_.acquire();
    if (!turn) {
        co_return std::move(turn).error();
    }
    if (auto may = life_.may(Event::resize); wanted != 0 && !may) {
        co_return may.error();
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

void Instance::warn(std::string_view what) {
    log_.warning_limited(limit_, clock_.now(), "vTPM {}: {}", config_.uuid, what);
}

} // namespace vtpmd::instance
