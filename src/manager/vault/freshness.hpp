// Rollback protection: the journal says how new it is by a value of the hardware TPM's counter, which never goes back.
//
// A step: a record with counter + 1 becomes durable, then the hardware counter moves. So at any moment the journal is level
// with the counter, or one ahead of it by a step that a crash (or a TPM that did not answer) left unfinished; the next start
// finishes it. Anything else is not the newest copy of this store.
//
// Steps are made at start, at a clean stop, with a delete or a policy change, and
//   window:S  when there were commits that no step covers yet, at most once in S seconds; a TPM that does not answer is tried
//             again and holds up nobody
//   strict    once a batch: its first record is counter + 1, its callers are told after the hardware moved. Before the next
//             batch is taken those who have just been told get a sixteenth of that step's time to come back: else they would
//             wait for the whole next step, and half of the vTPMs would share one
//   off       never, and nothing is checked
// A commit is covered once a freshness record that comes after it in the journal has been stepped.
#pragma once

#include "hwtpm/root_of_trust.hpp"
#include "manager/options.hpp"
#include "manager/vault/notice.hpp"
#include "manager/vault/registry.hpp"
#include "util/clock.hpp"
#include "util/fifo_lock.hpp"
#include "util/log.hpp"

#include <functional>
#include <optional>

namespace vtpmd::manager {

/// What the two values say at start (pure).
enum class StartVerdict {
    level,       ///< journal == hardware
    finish_step, ///< journal == hardware + 1: the one unfinished step
    old_copy,    ///< journal < hardware: a newer copy of this store exists, or existed
    lost_counter ///< journal > hardware + 1: this is not the counter that the store knew
};
[[nodiscard]] StartVerdict judge_start(std::uint64_t journal, std::uint64_t hardware) noexcept;

/// What the TPM says of the counter that the store names.
enum class CounterFound {
    none_named, ///< the store names none: it was made without freshness
    there,      ///< it has a value
    not_there,  ///< the TPM says for certain that it has no such counter
    unknown     ///< it could not be read: never taken for "there is none"
};
struct CounterFacts {
    bool off = false; ///< Mode::off
    CounterFound found = CounterFound::unknown;
    StartVerdict verdict = StartVerdict::level; ///< if it is there
    bool accept_none = false;                   ///< --accept-counter=none
};
/// What a start does about it (pure). A counter that can be compared is compared, whatever was said:
///
///                              | without the word | --accept-counter=none
///   off                        | unprotected      | unprotected
///   there, comparable          | compare          | refuse_word
///   there, but another counter | refuse           | make_new
///   not there, none named      | refuse           | make_new
///   unknown                    | fail             | fail
enum class CounterPlan {
    unprotected,
    compare,
    refuse_word, ///< a word that would hold for the next rollback, too, does not stay in a configuration
    refuse,
    make_new,
    fail
};
[[nodiscard]] CounterPlan plan_counter(const CounterFacts& facts) noexcept;

/// When the next lazy step of Mode::window is due (pure).
class LazySteps {
  public:
    explicit LazySteps(std::chrono::seconds window)
        : window_(window) {}
    void committed() noexcept { uncovered_ = true; }
    /// A freshness record was handed to the journal: it covers what was committed until now.
    void covering() noexcept { uncovered_ = false; }
    void stepped(Clock::time_point now) noexcept { last_ = now; }
    /// nullopt: nothing to cover. A time in the past: now.
    [[nodiscard]] std::optional<Clock::time_point> due() const noexcept {
        return uncovered_ ? std::optional(last_ + window_) : std::nullopt;
    }

  private:
    std::chrono::seconds window_;
    bool uncovered_ = false;
    Clock::time_point last_{};
};

/// More is said in the log. Counters of discrete parts are made for some 100,000 to 1,000,000 writes.
inline constexpr RateLimit::Config steps_a_day{.burst = 20'000, .interval = std::chrono::hours{24}};

struct FreshnessCounters {
    std::uint64_t steps = 0;    ///< of the hardware counter, by us
    std::uint64_t failures = 0; ///< steps that the TPM refused or did not answer
    std::uint64_t hardware = 0; ///< the counter, as last seen: the wear of the part
    std::uint64_t beyond = 0;   ///< steps beyond steps_a_day
};

/// Interprets the rules above. Everything outlives it.
class Freshness {
  public:
    struct Parts {
        asio::any_io_executor executor;
        hwtpm::RootOfTrust& root;
        const Registry& registry; ///< registry.freshness() is the journal's value
        Clock& clock;
        const Log& log;
        /// Durable and applied on return (ManagerImage::append_all).
        std::function<Task<Result<void>>(std::vector<Bytes>)> append;
    };
    /// Counter values here are the TPM's plus `base` (Keyring::counter_base).
    struct Counter {
        hwtpm::CounterRef ref;
        std::uint64_t base = 0;
    };
    Freshness(FreshnessPolicy policy, Counter counter, Parts parts);

    /// What check() would say of this value of the hardware's, with nothing done.
    [[nodiscard]] Result<void> judge(std::uint64_t hardware, std::optional<std::uint64_t> accept_counter) const;
    /// Compares and finishes an unfinished step. Errc::rollback names both values and the way out. With `accept_counter` equal
    /// to the hardware's value an old copy is taken as it is. Makes no step of its own.
    Task<Result<void>> check(std::optional<std::uint64_t> accept_counter);
    /// Appends `records` and makes a step that covers them: when it returns, no copy of the store from before is accepted. An
    /// error after the records are durable is Errc::unavailable; the step is then owed, and run() goes on trying.
    Task<Result<void>> step(std::vector<Bytes> records = {});
    /// Makes the lazy steps and those that are owed; until cancelled.
    Task<> run();

    /// A record is about to be appended.
    void committing();
    /// JournalClient::gather, prologue and before_acknowledge.
    Task<> gather(Task<Result<void>> everyone);
    [[nodiscard]] std::vector<Bytes> prologue();
    Task<Result<void>> before_acknowledge();

    /// A value that the hardware counter has reached: no copy of the store that is older is accepted. 0: there is no counter.
    [[nodiscard]] std::uint64_t reached() const noexcept { return policy_.mode == Mode::off || fatal_ ? 0 : hardware_; }
    /// True while the journal is ahead of the hardware.
    [[nodiscard]] bool owed() const noexcept;
    /// Another program moved our counter: what is acknowledged from now on could not be told from an older copy.
    [[nodiscard]] const std::optional<Error>& fatal() const noexcept { return fatal_; }
    /// Called once, when fatal() comes up.
    void on_fatal(std::function<void(const Error&)> f) { on_fatal_ = std::move(f); }
    [[nodiscard]] const FreshnessCounters& counters() const noexcept { return counters_; }
    [[nodiscard]] const FreshnessPolicy& policy() const noexcept { return policy_; }

  private:
    using Mode = FreshnessPolicy::Mode;
    [[nodiscard]] std::uint64_t journal() const noexcept { return parts_.registry.freshness().value_or(0); }
    Task<Result<void>> finish();
    Task<Result<void>> move_hardware(std::uint64_t target);
    Task<Result<std::uint64_t>> read_counter();
    [[nodiscard]] std::optional<Clock::time_point> next_action() const;
    void stepped();
    Error fail_for_good(std::uint64_t found);

    FreshnessPolicy policy_;
    Counter counter_;
    Parts parts_;

    FifoLock hardware_lock_; ///< one step of the hardware at a time
    Notice news_;
    LazySteps lazy_;
    std::uint64_t hardware_ = 0;       ///< as last seen
    bool unsure_ = false;              ///< a step may or may not have happened: read before the next
    bool batch_uncovered_ = false;     ///< strict: the batch in flight has no freshness record of its own
    Clock::time_point gather_until_{}; ///< strict: in the past but for a moment after a step
    Clock::time_point retry_at_{};     ///< for what is owed
    unsigned retries_ = 0;
    std::optional<Error> fatal_;
    std::function<void(const Error&)> on_fatal_;
    FreshnessCounters counters_;
    RateLimit pace_{steps_a_day};
    RateLimit alarm_{{.burst = 1, .interval = std::chrono::hours{1}}};
};

} // namespace vtpmd::manager
