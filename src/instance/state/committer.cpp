#include "instance/state/committer.hpp"

#include "instance/state/state_blob.hpp"
#include "tpm/clock.hpp"
#include "tpm/commands.hpp"
#include "tpm/driver_patience.hpp"
#include "util/interruption.hpp"
#include "util/shielded.hpp"

#include <algorithm>
#include <cstdlib>
#include <vector>

namespace vtpmd::instance {

namespace {

constexpr Clock::duration first_pause = std::chrono::milliseconds(50);
constexpr Clock::duration longest_pause = std::chrono::seconds(1);
/// How often a wait looks whether the manager is there.
constexpr Clock::duration look = std::chrono::milliseconds(500);

/// What runs here is the past of its vTPM: saving again is of no use.
bool is_past(Errc code) { return code == Errc::rollback || code == Errc::tombstone; }

/// Nobody said whether it was done.
bool is_silence(Errc code) {
    return code == Errc::unavailable || code == Errc::timed_out || code == Errc::canceled || code == Errc::closed;
}

bool is_shutdown(TpmVersion version, std::uint32_t code) {
    return code == (version == TpmVersion::tpm12 ? tpm::ord::save_state : tpm::cc::shutdown);
}

} // namespace

Committer::Committer(Parts parts)
    : counters_(parts.counters)
    , engine_(parts.engine)
    , image_(parts.image)
    , manager_(parts.manager)
    , clock_(parts.clock)
    , log_(parts.log)
    , lock_(parts.lock)
    , worker_(parts.worker)
    , group_(parts.group)
    , uuid_(parts.uuid)
    , on_lost_(std::move(parts.on_lost)) {}

void Committer::move(DurabilityEvent event) {
    const auto to = next(state_, event);
    if (!to) {
        std::abort();
    }
    state_ = *to;
}

// --- how long ---

CommitPatience Committer::patience_for(ByteView command) const {
    CommitPatience patience = patience_;
    if (tpm::driver_is_patient(engine_.version(), tpm::peek_header(command).code)) {
        patience.unlinked = patience_for_restart;
    }
    return patience;
}

/// Runs out after `patience`; a manager that was away and is back has the longer of the two.
class Committer::Wait {
  public:
    Wait(Committer& self, CommitPatience patience)
        : self_(self)
        , patience_(patience)
        , limit_(std::min(patience.linked, patience.unlinked))
        , alarm_(self.clock_, [this] { look_again(); }) {
        set_alarm();
    }
    [[nodiscard]] Interruption& over() { return over_; }

  private:
    void set_alarm() {
        step_ = std::min(look, limit_ - waited_);
        alarm_.set(self_.clock_.now() + step_);
    }
    void look_again() {
        waited_ += step_;
        const bool away = !self_.manager_.connected();
        was_away_ = was_away_ || away;
        if (away) {
            self_.away_since_ = self_.away_since_.value_or(self_.clock_.now() - step_);
            limit_ = self_.hurried_ ? std::min(self_.patience_.unlinked, patience_.unlinked) : patience_.unlinked;
        } else {
            limit_ = was_away_ ? std::max(patience_.linked, patience_.unlinked) : patience_.linked;
        }
        if (waited_ < limit_) {
            set_alarm();
        } else {
            over_.request();
        }
    }

    Committer& self_;
    const CommitPatience patience_;
    Clock::duration limit_;
    Clock::duration step_{};
    Clock::duration waited_{};
    bool was_away_ = false;
    Interruption over_;
    Alarm alarm_;
};

/// What is on record, if the manager says it before `patience` has run out.
Task<Result<std::optional<SecretBytes>>> Committer::ask_record(CommitPatience patience) {
    Wait wait(*this, patience);
    co_return co_await interruptible(wait.over(), "the manager", manager_.load_hash_key());
}

// --- one save ---

Task<Result<void>> Committer::settle(std::optional<CommitPatience> patience) {
    if (!dirty()) {
        co_return Result<void>{};
    }
    if (patience && away_since_) { // known to be away: it was waited for already
        const auto left = *away_since_ + patience->unlinked - clock_.now();
        patience->unlinked = std::clamp(left, std::min(patience_.unlinked, patience->unlinked), patience->unlinked);
    }
    auto saved = co_await save(patience);
    if (saved) {
        went_well();
        co_return saved;
    }
    if (is_past(saved.error().code)) {
        co_return lose(std::move(saved).error());
    }
    move(in_doubt_ ? DurabilityEvent::no_answer : DurabilityEvent::failed);
    note_trouble(saved.error());
    try_again();
    co_return saved;
}

Task<Result<void>> Committer::save(std::optional<CommitPatience> patience) {
    on_record_ = false;
    while (in_doubt_ || engine_.has_staged()) {
        if (!in_doubt_) {
            auto written = co_await write_slot(patience);
            if (!written) {
                ++counters_.commit_failures;
                co_return written;
            }
        }
        auto accepted = co_await offer_key(patience);
        if (!accepted) {
            ++counters_.commit_failures;
            co_return accepted;
        }
        ++counters_.commits;
    }
    co_return Result<void>{};
}

Task<Result<void>> Committer::write_slot(std::optional<CommitPatience> patience) {
    if (writing_) {
        co_return make_error(Errc::busy, "saving the state: the disk has not answered to the save before");
    }
    auto staged = engine_.take_staged();
    if (!staged) {
        co_return Result<void>{};
    }
    // Until the slot is written and its key kept, the change exists in memory alone: leaving here, by an error or because
    // the task is cancelled, stages it again.
    struct Restage {
        Committer& self;
        bool armed = true;
        ~Restage() {
            if (armed) {
                self.image_.reject(); // its key was never offered
                self.engine_.staged_failed();
            }
        }
    } restage{*this};
    if (staged->permanent.empty()) {
        co_return make_error(Errc::corrupt, "there is no permanent state to save"); // never: it would be lost
    }
    staged->volatile_state = volatile_.clone();
    staged->unconfirmed = unconfirmed_.clone();
    staged->given_out = given_out_.clone();
    SecretBytes blob = encode_state(engine_.version(), *staged);
    Task<Result<SecretBytes>> preparing; // assigned once: a Task that is assigned over leaves its frame behind
    if (patience) {
        preparing = prepare_within(patience->linked, std::move(blob));
    } else {
        preparing = image_.prepare(blob.view());
    }
    auto key = co_await std::move(preparing);
    if (!key) {
        abandoned_ = writing_;
        co_return in_context(std::move(key).error(), "saving the state");
    }
    in_doubt_ = std::move(*key);
    saving_ = std::move(*staged);
    restage.armed = false;
    co_return Result<void>{};
}

/// The write may take longer than anybody waits for it.
Task<Result<SecretBytes>> Committer::prepare_within(Clock::duration limit, SecretBytes blob) {
    auto write = [](Committer& self, SecretBytes state) -> Task<Result<SecretBytes>> {
        self.writing_ = true;
        auto key = co_await self.image_.prepare(state.view());
        self.writing_ = false;
        if (std::exchange(self.abandoned_, false)) {
            self.image_.reject();
            key = make_error(Errc::timed_out, "the disk answered too late");
        }
        co_return key;
    };
    return shielded_for(clock_, limit, group_, "the disk", write(*this, std::move(blob)));
}

Task<Result<void>> Committer::offer_key(std::optional<CommitPatience> patience) {
    std::optional<Wait> wait;
    if (patience) {
        wait.emplace(*this, *patience);
    }
    auto saved = co_await manager_.save_hash_key(in_doubt_->view(), wait ? &wait->over() : nullptr);
    wait.reset();
    if (!saved) {
        co_return in_context(std::move(saved).error(), "giving the state's key to the manager");
    }
    co_return co_await accept();
}

Task<Result<void>> Committer::accept() {
    in_doubt_.reset();
    durable_ = std::move(saving_);
    saving_ = EngineState{};
    on_record_ = true;
    resaving_ = false;
    if (!engine_.has_staged()) {
        engine_.staged_is_durable();
    }
    auto marked = co_await image_.accept();
    if (!marked) {
        // The slot is valid, but the image does not say yet that it has state: the next save writes that again.
        engine_.staged_failed();
        co_return in_context(std::move(marked).error(), "marking the image");
    }
    co_return Result<void>{};
}

// --- a command ---

tpm::Effect Committer::effect_of(ByteView command) const {
    return tpm::effect(engine_.version(), tpm::peek_header(command).code);
}

Admission Committer::admission(ByteView command) const {
    const auto verdict = admit(state_, effect_of(command));
    if (!verdict) {
        return Admission::refuse;
    }
    // Guesses that cannot be counted must not go on.
    const bool guess = guessed_ && tpm::is_authorised(engine_.version(), command);
    return *verdict == Admission::watch && guess ? Admission::refuse : *verdict;
}

SecretBytes Committer::before(ByteView command, Admission how) {
    const bool clock = tpm::tells_clock(tpm::peek_header(command).code); // stored when it is told
    if (how != Admission::watch && !orderly_ && !clock && effect_of(command) == tpm::Effect::none) {
        return {};
    }
    return registers_now();
}

SecretBytes Committer::registers_now() {
    auto now = engine_.registers();
    return now ? std::move(*now) : SecretBytes();
}

Task<Result<void>> Committer::commit(SecretBytes registers, ByteView command, ByteView answer) {
    const std::uint32_t code = tpm::peek_header(command).code;
    const CommitPatience patience = patience_for(command);
    move(DurabilityEvent::change);
    auto saved = co_await save(patience);
    Fate fate = saved || on_record_ ? Fate::durable : Fate::not_known;
    Error why{};
    if (!saved) {
        why = std::move(saved).error();
    }
    if (fate != Fate::durable && !is_past(why.code)) {
        fate = co_await find_fate(why, patience);
    }
    if (fate == Fate::durable) {
        went_well();
        orderly_ = is_shutdown(engine_.version(), code) && tpm::peek_header(answer).code == 0;
        co_return Result<void>{};
    }
    if (is_past(why.code)) {
        co_return lose(std::move(why));
    }
    if (fate == Fate::not_known) {
        auto withdrawn = co_await image_.withdraw();
        if (!withdrawn) {
            // Neither yes nor no would be the truth.
            co_return lose(in_context(std::move(withdrawn).error(), "the manager does not answer, and the disk fails"));
        }
        in_doubt_.reset();
    }
    note_guess(command, answer);
    auto back = co_await put_back(std::move(registers));
    if (!back) {
        co_return lose(std::move(back).error());
    }
    move(fate == Fate::never ? DurabilityEvent::failed : DurabilityEvent::no_answer);
    note_trouble(why);
    try_again();
    why.code = Errc::unavailable;
    co_return why;
}

/// A wrong authorisation, where that is counted. TPM_RC_RETRY is none: the TPM asks for the same again once it has
/// noted that authorisations are being used.
void Committer::note_guess(ByteView command, ByteView answer) {
    const std::uint32_t rc = tpm::peek_header(answer).code;
    const bool retry = rc == tpm::refusal_code(engine_.version(), tpm::Refusal::retry);
    guessed_ = guessed_ || (tpm::is_authorised(engine_.version(), command) && rc != 0 && !retry);
}

Task<Result<void>> Committer::undo_if_changed(SecretBytes registers, ByteView command, ByteView answer) {
    if (!engine_.has_staged()) {
        co_return Result<void>{};
    }
    const bool only_the_clock =
        !orderly_ && tpm::peek_header(answer).code == 0 && !tpm::is_authorised(engine_.version(), command) &&
        effect_of(command) == tpm::Effect::none && !tpm::tells_clock(tpm::peek_header(command).code);
    note_guess(command, answer);
    if (only_the_clock) {
        registers.clear(); // those of now
    }
    auto back = co_await put_back(std::move(registers));
    if (!back) {
        co_return lose(std::move(back).error());
    }
    if (!only_the_clock) {
        co_return make_error(Errc::unavailable, "it would change what cannot be made durable now");
    }
    co_return Result<void>{};
}

Task<Committer::Fate> Committer::find_fate(Error& why, CommitPatience patience) {
    if (!in_doubt_) {
        co_return Fate::never; // its key was never offered
    }
    if (is_silence(why.code)) {
        co_return Fate::not_known;
    }
    auto kept = co_await ask_record(patience);
    if (!kept) {
        if (is_past(kept.error().code)) {
            why = std::move(kept).error();
        }
        co_return Fate::not_known;
    }
    const ByteView offered = in_doubt_->view().subspan(proto::hash_key_part);
    if (*kept && std::ranges::equal((*kept)->view().subspan(proto::hash_key_part), offered)) {
        (void)co_await accept();
        co_return Fate::durable;
    }
    image_.reject();
    in_doubt_.reset();
    co_return Fate::never;
}

/// The TPM as it is on the disk, with these registers (empty: those that it has).
Task<Result<void>> Committer::put_back(SecretBytes registers) {
    EngineState state;
    state.permanent = durable_.permanent.clone();
    state.save_state = durable_.save_state.clone();
    if (registers.empty()) {
        registers = registers_now();
    }
    state.volatile_state = std::move(registers);
    if (state.permanent.empty() || state.volatile_state.empty()) {
        co_return make_error(Errc::corrupt, "there is nothing to put the TPM back to");
    }
    auto on = co_await worker_.run([this, &state] { return engine_.power_on(state); });
    if (!on) {
        co_return in_context(std::move(on).error(), "putting the TPM back to what is durable");
    }
    volatile_.clear();
    saving_ = EngineState{};
    resaving_ = true;
    forget_staged();
    co_return Result<void>{};
}

/// What the TPM holds is on the disk.
void Committer::forget_staged() {
    (void)engine_.take_staged();
    engine_.staged_is_durable();
}

// --- trouble ---

void Committer::went_well() {
    move(DurabilityEvent::done);
    guessed_ = false;
    away_since_.reset();
    if (std::exchange(troubled_, false)) {
        log_.info("vTPM {}: the state is saved again, service goes on", uuid_);
    }
}

void Committer::note_trouble(const Error& why) {
    if (!std::exchange(troubled_, true)) {
        log_.error("vTPM {}: {}; until the state can be saved, what would change it is refused (TPM_RETRY, "
                   "TPM_RC_NV_UNAVAILABLE), the rest is answered",
                   uuid_, why.message);
    }
}

Error Committer::lose(Error why) {
    if (state_ != Durability::lost) {
        log_.error("vTPM {}: {}", uuid_, why.message);
        lost_ = why;
    }
    move(DurabilityEvent::superseded);
    if (on_lost_ && why.code != Errc::tombstone) {
        on_lost_();
    }
    return why;
}

void Committer::try_again() {
    if (!trying_again_ && !stopped_) {
        trying_again_ = true;
        group_.spawn("saving again", save_again());
    }
}

/// `operation` until stop(); it is cancelled then, and joined.
template <typename T>
Task<Result<T>> Committer::until_stopped(std::string what, Task<Result<T>> operation) {
    Interruption by;
    if (stopped_) {
        by.request();
    }
    struct Place {
        std::set<Interruption*>& all;
        Interruption* by;
        ~Place() { all.erase(by); }
    } place{ended_by_stop_, *ended_by_stop_.insert(&by).first};
    co_return co_await interruptible(by, std::move(what), std::move(operation));
}

/// Asks until `patience` has run out, or this is stopped. Whoever can say what is on record can take a save.
Task<bool> Committer::manager_answers(std::optional<CommitPatience> patience) {
    auto asking = patience ? ask_record(*patience) : until_stopped("the manager", manager_.load_hash_key());
    auto kept = co_await std::move(asking);
    if (!kept && is_past(kept.error().code)) {
        (void)lose(kept.error());
    }
    co_return kept.has_value();
}

Task<> Committer::await_manager(ByteView command) {
    const bool waits = away_since_ && !stopped_ && !hurried_ && state_ != Durability::lost &&
                       effect_of(command) == tpm::Effect::permanent &&
                       tpm::driver_is_patient(engine_.version(), tpm::peek_header(command).code);
    const Clock::duration left = waits ? *away_since_ + patience_for_restart - clock_.now() : Clock::duration::zero();
    if (left <= Clock::duration::zero()) {
        co_return;
    }
    const bool answers = co_await manager_answers(CommitPatience{.linked = patience_.linked, .unlinked = left});
    if (answers) {
        co_await save_once_more();
    }
}

Task<> Committer::save_again() {
    Clock::duration wait = first_pause;
    while (!stopped_ && state_ != Durability::lost && !calm()) {
        auto sleep = [](Clock& clock, Clock::duration d) -> Task<Result<void>> {
            (void)co_await clock.sleep_for(d);
            co_return Result<void>{};
        };
        (void)co_await until_stopped("a pause", sleep(clock_, wait));
        wait = std::min(2 * wait, longest_pause);
        const bool answers = co_await manager_answers(std::nullopt); // nobody's command waits for this
        if (answers && !stopped_) {
            auto turn = co_await lock_.acquire();
            if (turn && !stopped_ && !calm()) {
                co_await save_once_more();
            }
        }
    }
    trying_again_ = false;
}

Task<> Committer::save_once_more() {
    if (!in_doubt_) {
        engine_.staged_failed(); // all of it is written again
    }
    auto saved = co_await save(patience_);
    if (saved || (on_record_ && resaving_)) {
        went_well();
        co_return;
    }
    if (is_past(saved.error().code)) {
        (void)lose(std::move(saved).error());
        co_return;
    }
    if (resaving_) {
        forget_staged();
    }
    move(in_doubt_ ? DurabilityEvent::no_answer : DurabilityEvent::failed);
}

Task<Result<void>> Committer::unless_stopped(Task<Result<void>> operation) {
    auto done = co_await until_stopped("the manager", std::move(operation));
    if (!done && stopped_ && done.error().code == Errc::timed_out) {
        co_return make_error(Errc::unavailable, "{}", done.error().message);
    }
    co_return done;
}

void Committer::stop() {
    stopped_ = true;
    for (Interruption* waiting : std::vector(ended_by_stop_.begin(), ended_by_stop_.end())) {
        waiting->request();
    }
}

// --- what is on the disk ---

void Committer::began_with(const EngineState& state) {
    durable_.permanent = state.permanent.clone();
    durable_.save_state = state.save_state.clone();
}

void Committer::keep_volatile(SecretBytes state) {
    volatile_ = std::move(state);
    engine_.staged_failed(); // the same permanent state has to be written again, with this beside it
}

void Committer::keep_given_out(SecretBytes given) {
    given_out_ = std::move(given);
    engine_.staged_failed();
}

void Committer::keep_unconfirmed(SecretBytes token) {
    unconfirmed_ = std::move(token);
    engine_.staged_failed();
}

} // namespace vtpmd::instance
