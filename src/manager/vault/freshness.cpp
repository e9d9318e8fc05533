#include "manager/vault/freshness.hpp"

#include "util/deadline.hpp"

#include <algorithm>

namespace vtpmd::manager {

namespace {
constexpr auto first_retry = std::chrono::seconds(1);
constexpr auto longest_retry = std::chrono::seconds(60);
constexpr int gather_share = 16; // of the step that has just been made
constexpr auto longest_gather = std::chrono::milliseconds(250);

Clock::duration retry_wait(unsigned failures) {
    return std::min<Clock::duration>(first_retry * (1U << std::min(failures, 10U)), longest_retry);
}

Bytes freshness_record(std::uint64_t counter) { return encode(FreshnessRecord{.counter = counter}); }
} // namespace

StartVerdict judge_start(std::uint64_t journal, std::uint64_t hardware) noexcept {
    if (journal == hardware) {
        return StartVerdict::level;
    }
    if (journal < hardware) {
        return StartVerdict::old_copy;
    }
    return journal - hardware == 1 ? StartVerdict::finish_step : StartVerdict::lost_counter;
}

CounterPlan plan_counter(const CounterFacts& facts) noexcept {
    if (facts.off) {
        return CounterPlan::unprotected;
    }
    if (facts.found == CounterFound::unknown) {
        return CounterPlan::fail;
    }
    if (facts.found == CounterFound::there && facts.verdict != StartVerdict::lost_counter) {
        return facts.accept_none ? CounterPlan::refuse_word : CounterPlan::compare;
    }
    return facts.accept_none ? CounterPlan::make_new : CounterPlan::refuse;
}

Freshness::Freshness(FreshnessPolicy policy, Counter counter, Parts parts)
    : policy_(policy)
    , counter_(std::move(counter))
    , parts_(std::move(parts))
    , hardware_lock_(parts_.executor)
    , news_(parts_.executor)
    , lazy_(policy.window) {}

bool Freshness::owed() const noexcept { return policy_.mode != Mode::off && journal() > hardware_; }

Task<Result<void>> Freshness::check(std::optional<std::uint64_t> accept_counter) {
    if (policy_.mode == Mode::off) {
        parts_.log.warning("freshness is off: an older copy of the store put back would not be noticed");
        co_return Result<void>{};
    }
    auto read = co_await read_counter();
    if (!read) {
        co_return in_context(read.error(), "reading the freshness counter");
    }
    hardware_ = *read;
    if (auto accepted = judge(hardware_, accept_counter); !accepted) {
        co_return accepted;
    }
    switch (judge_start(journal(), hardware_)) {
    case StartVerdict::level:
    case StartVerdict::lost_counter: // not accepted
        co_return Result<void>{};
    case StartVerdict::finish_step:
        parts_.log.info("finishing the freshness step from {} to {}", hardware_, journal());
        co_return co_await finish();
    case StartVerdict::old_copy:
        break;
    }
    parts_.log.warning("accepting an old copy of the store, written at counter value {} and now at {}, as told",
                       journal(), hardware_);
    std::vector<Bytes> level{freshness_record(hardware_)};
    co_return co_await parts_.append(std::move(level));
}

Result<void> Freshness::judge(std::uint64_t hardware, std::optional<std::uint64_t> accept_counter) const {
    switch (judge_start(journal(), hardware)) {
    case StartVerdict::level:
    case StartVerdict::finish_step:
        return {};
    case StartVerdict::lost_counter:
        return make_error(
            Errc::rollback,
            "the store was written at counter value {}, but the TPM's counter stands at {}, which that "
            "counter never can again: this is another counter. Put back the TPM; if it is gone, and this is the newest "
            "copy of the store, start once with --accept-counter=none",
            journal(), hardware);
    case StartVerdict::old_copy:
        break;
    }
    if (accept_counter == hardware) {
        return {};
    }
    return make_error(
        Errc::rollback,
        "this is an old copy of the store: it was written at counter value {}, the TPM's counter stands at "
        "{}. Put the newest copy back; if there is none, and losing what happened since is accepted, start "
        "once with --accept-counter={}",
        journal(), hardware, hardware);
}

Task<Result<void>> Freshness::step(std::vector<Bytes> records) {
    if (policy_.mode == Mode::off) {
        if (records.empty()) {
            co_return Result<void>{};
        }
        co_return co_await parts_.append(std::move(records));
    }
    if (policy_.mode == Mode::strict) {
        // Every batch brings its own step; this record only makes sure that there is a batch. A lower value than the
        // journal's says nothing, so it cannot be overtaken.
        records.push_back(freshness_record(hardware_));
        gather_until_ = {}; // whoever asks for a step waits for nobody
        co_return co_await parts_.append(std::move(records));
    }
    auto held = co_await hardware_lock_.acquire();
    if (!held) {
        co_return held.error();
    }
    if (owed()) {
        if (auto done = co_await finish(); !done) {
            co_return done.error();
        }
    }
    records.push_back(freshness_record(hardware_ + 1));
    lazy_.covering();
    if (auto appended = co_await parts_.append(std::move(records)); !appended) {
        lazy_.committed();
        co_return appended.error();
    }
    co_return co_await finish();
}

void Freshness::committing() {
    if (policy_.mode == Mode::window) {
        lazy_.committed();
        news_.set();
    }
}

Task<> Freshness::gather(Task<Result<void>> everyone) {
    const auto left = gather_until_ - parts_.clock.now();
    if (left > Clock::duration::zero()) {
        (void)co_await with_deadline(parts_.clock, left, "the callers of the last batch", std::move(everyone));
    }
}

std::vector<Bytes> Freshness::prologue() {
    if (policy_.mode != Mode::strict) {
        return {};
    }
    // While a step is owed there is no telling this batch from the one before it, so it cannot have a value of its own.
    batch_uncovered_ = owed();
    if (batch_uncovered_) {
        return {};
    }
    return {freshness_record(hardware_ + 1)};
}

Task<Result<void>> Freshness::before_acknowledge() {
    if (policy_.mode != Mode::strict) {
        co_return Result<void>{};
    }
    auto held = co_await hardware_lock_.acquire();
    if (!held) {
        co_return held.error();
    }
    bool uncovered = std::exchange(batch_uncovered_, false);
    const auto begun = parts_.clock.now();
    if (auto done = co_await finish(); !done) {
        news_.set();
        co_return done.error();
    }
    const auto ended = parts_.clock.now();
    gather_until_ = ended + std::min<Clock::duration>((ended - begun) / gather_share, longest_gather);
    if (uncovered) {
        co_return make_error(Errc::unavailable, "the freshness counter has just come back: try again");
    }
    co_return Result<void>{};
}

/// Moves the hardware up to the journal, if it is behind. The lock is held, but for check().
Task<Result<void>> Freshness::finish() {
    if (fatal_) {
        co_return *fatal_;
    }
    if (!owed()) {
        co_return Result<void>{};
    }
    auto done = co_await move_hardware(journal());
    if (done) {
        retries_ = 0;
        lazy_.stepped(parts_.clock.now());
        co_return done;
    }
    if (!fatal_) {
        ++counters_.failures;
        retry_at_ = parts_.clock.now() + retry_wait(retries_++);
        news_.set();
        co_return Error{Errc::unavailable, fmt::format("stepping the freshness counter: {}", done.error().message),
                        done.error().detail};
    }
    co_return done;
}

Task<Result<std::uint64_t>> Freshness::read_counter() {
    auto read = co_await parts_.root.counter_read(counter_.ref);
    if (!read) {
        co_return read;
    }
    counters_.hardware = *read;
    co_return *read + counter_.base;
}

void Freshness::stepped() {
    ++counters_.steps;
    const auto now = parts_.clock.now();
    if (!pace_.allow(now).allowed) {
        ++counters_.beyond;
        parts_.log.warning_limited(alarm_, now,
                                   "the hardware TPM's counter was stepped {} times within a day, and more: each wears "
                                   "its part, whose counter stands at {}; --freshness=window steps it less often, "
                                   "strict:CHANGES bounds what each vTPM may cause",
                                   steps_a_day.burst, counters_.hardware);
    }
}

Task<Result<void>> Freshness::move_hardware(std::uint64_t target) {
    if (unsure_) {
        auto read = co_await read_counter();
        if (!read) {
            co_return read.error();
        }
        unsure_ = false;
        if (*read == target) { // it had happened after all
            hardware_ = target;
            stepped();
            co_return Result<void>{};
        }
        if (*read + 1 != target) {
            co_return fail_for_good(*read);
        }
    }
    unsure_ = true; // until we have its answer, even if we are cancelled meanwhile
    auto value = co_await parts_.root.counter_increment(counter_.ref);
    if (!value) {
        co_return value.error();
    }
    unsure_ = false;
    stepped();
    counters_.hardware = *value;
    if (*value + counter_.base != target) {
        co_return fail_for_good(*value + counter_.base);
    }
    hardware_ = target;
    co_return Result<void>{};
}

Error Freshness::fail_for_good(std::uint64_t found) {
    fatal_ =
        make_error(Errc::rollback,
                   "the freshness counter stands at {} where {} was expected: another program steps it. Is a second "
                   "manager running on a copy of this store?",
                   found, journal());
    if (on_fatal_) {
        on_fatal_(*fatal_);
    }
    return *fatal_;
}

std::optional<Clock::time_point> Freshness::next_action() const {
    if (policy_.mode == Mode::off || fatal_) {
        return std::nullopt;
    }
    // With the lock held a step is on its way, and is not owed to anybody yet; its end is news.
    if (owed() && !hardware_lock_.held()) {
        return retry_at_;
    }
    return policy_.mode == Mode::window ? lazy_.due() : std::nullopt;
}

Task<> Freshness::run() {
    for (;;) {
        auto when = next_action();
        if (!when) {
            if (!co_await news_.wait()) {
                co_return;
            }
            continue;
        }
        if (parts_.clock.now() < *when) {
            if (auto ec = co_await parts_.clock.sleep_until(*when)) {
                co_return;
            }
            continue;
        }
        Result<void> done;
        if (owed()) {
            auto held = co_await hardware_lock_.acquire();
            if (!held) {
                co_return;
            }
            done = co_await finish();
        } else {
            done = co_await step();
        }
        if (!done && !fatal_) {
            parts_.log.warning("{}; the vTPMs are served meanwhile, next try in {} s", done.error().message,
                               std::chrono::duration_cast<std::chrono::seconds>(retry_wait(retries_)).count());
            if (!owed()) { // the journal did not take it
                retry_at_ = parts_.clock.now() + retry_wait(retries_++);
                if (auto ec = co_await parts_.clock.sleep_until(retry_at_)) {
                    co_return;
                }
            }
        }
    }
}

} // namespace vtpmd::manager
