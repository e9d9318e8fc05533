// Makes what the engine staged durable, in this order: encrypt and write to the image's other slot, offer the key to the
// manager, accept the slot when the manager said its durable yes. Only then may a guest see the answer.
//
// Once a slot is written and its key offered, an error tells nothing about what the manager has on its disk. Then the
// manager is asked, or the very same key is offered again; no slot is written before that is settled.
//
// A guest's command waits for this as long as CommitPatience says. If it turns out not to be durable, or if nobody
// can say in time, the command has not happened: the save is withdrawn on the disk if its key was offered
// (StateImage::withdraw), the TPM goes back to what is durable, with the registers of before the command, and the
// guest is told. From then on the committer saves what the TPM holds again and again, until that is durable;
// durability.hpp has the states.
#pragma once

#include "engine/engine.hpp"
#include "instance/counters.hpp"
#include "instance/state/durability.hpp"
#include "proto/link/client.hpp"
#include "store/state_image.hpp"
#include "util/fifo_lock.hpp"
#include "util/interruption.hpp"
#include "util/log.hpp"
#include "util/task_group.hpp"
#include "util/worker.hpp"

#include <functional>
#include <optional>
#include <set>

namespace vtpmd::instance {

/// How long a save is waited for; of a command whose driver is not patient (tpm/driver_patience.hpp).
struct CommitPatience {
    Clock::duration linked = std::chrono::milliseconds(1500);  ///< while the manager, or the disk, is at it
    Clock::duration unlinked = std::chrono::milliseconds(500); ///< while there is no manager
};

/// A manager that is started again is back within this time, and no guest meets an error for it, where the driver waits.
inline constexpr Clock::duration patience_for_restart = std::chrono::seconds(12);

/// Of what is no command: a power cycle, a state that is given out. (The end does not wait so long: hurry().) What starts
/// has none: it waits as one that finds no manager does (proto::ClientOptions).
inline constexpr CommitPatience patience_of_power{.linked = std::chrono::seconds(8), .unlinked = patience_for_restart};

class Committer {
  public:
    /// All of it outlives the committer, whose tasks run in `group`.
    struct Parts {
        Engine& engine;
        store::StateImage& image;
        proto::ManagerClient& manager;
        InstanceCounters& counters;
        Clock& clock;
        const Log& log;
        FifoLock& lock; ///< held by whoever uses the engine and calls this
        Worker& worker;
        TaskGroup& group;
        Uuid uuid;
        std::function<void()> on_lost; ///< nothing is answered any more; not where the vTPM was reset or is gone
    };
    explicit Committer(Parts parts);

    [[nodiscard]] Durability state() const { return state_; }
    /// True if the TPM may be ahead of the disk: a save of an earlier step, which was not a command, did not succeed.
    [[nodiscard]] bool dirty() const { return (in_doubt_.has_value() && !resaving_) || engine_.has_staged(); }
    /// Why nothing is answered any more, if so.
    [[nodiscard]] const std::optional<Error>& lost() const { return lost_; }
    /// Nothing is dirty and the last save went well.
    [[nodiscard]] bool calm() const { return state_ == Durability::durable && !dirty(); }

    /// Returns once nothing is dirty any more; an error leaves it dirty, and the next call goes on where this one failed.
    /// Not to be called twice at a time. May be cancelled at any point.
    Task<Result<void>> settle(std::optional<CommitPatience> patience = std::nullopt);

    // --- a command ---

    /// What `command` can do, as far as can be told before it runs.
    [[nodiscard]] tpm::Effect effect_of(ByteView command) const;
    [[nodiscard]] Admission admission(ByteView command) const;
    /// The registers as they are, if they may be needed again: empty before a command that is expected to leave the
    /// permanent state alone, whose registers of afterwards do as well.
    [[nodiscard]] SecretBytes before(ByteView command, Admission how);
    /// After a command that may have changed something. On return that is durable, or it has not happened, as if the
    /// command had never come. `registers` are those of before(). `answer` is the TPM's.
    Task<Result<void>> commit(SecretBytes registers, ByteView command, ByteView answer);
    /// Where calm() is not, for want of a manager: waits for it, if `command` changes something and its driver waits.
    /// Refused is what comes later than patience_for_restart.
    Task<> await_manager(ByteView command);
    /// After a command that was run with Admission::watch. Errc::unavailable: it had to be undone.
    Task<Result<void>> undo_if_changed(SecretBytes registers, ByteView command, ByteView answer);

    // --- what is on the disk ---

    /// There is a durable state.
    [[nodiscard]] bool began() const { return !durable_.permanent.empty(); }
    /// A TPM was powered on with what the disk has.
    void began_with(const EngineState& state);
    /// The end has begun: a manager that is away is not waited for any longer than CommitPatience says.
    void hurry() { hurried_ = true; }
    /// Ends the attempts to save again. Nothing is committed afterwards but by settle().
    void stop();
    [[nodiscard]] bool has_stopped() const { return stopped_; }
    /// What stop() ends too. Errc::unavailable: it did.
    Task<Result<void>> unless_stopped(Task<Result<void>> operation);

    /// Volatile state to keep beside the rest (empty: none); durable with the next settle(), which then always writes.
    void keep_volatile(SecretBytes state);
    /// Of a state that came from another host: not to be run before that is asked (empty: it may run). As above.
    void keep_unconfirmed(SecretBytes token);
    [[nodiscard]] const SecretBytes& unconfirmed() const { return unconfirmed_; }
    /// What is remembered of the state that was given out last (empty: nothing). As above.
    void keep_given_out(SecretBytes given);
    [[nodiscard]] const SecretBytes& kept_given_out() const { return given_out_; }
    /// Something of a moment that passes with the next command is kept beside the state.
    [[nodiscard]] bool keeps_a_moment() const { return !volatile_.empty() || !given_out_.empty(); }
    void keep_stored_given_out(SecretBytes given) { given_out_ = std::move(given); }
    /// Of what the disk has already.
    void keep_stored_unconfirmed(SecretBytes token) { unconfirmed_ = std::move(token); }
    /// The same, of what the disk has already.
    void keep_stored(SecretBytes state) { volatile_ = std::move(state); }
    [[nodiscard]] const SecretBytes& kept_volatile() const { return volatile_; }

  private:
    enum class Fate { durable, never, not_known };

    [[nodiscard]] CommitPatience patience_for(ByteView command) const;
    class Wait;
    Task<Result<std::optional<SecretBytes>>> ask_record(CommitPatience patience);
    Task<Result<void>> save(std::optional<CommitPatience> patience);
    Task<Result<void>> write_slot(std::optional<CommitPatience> patience);
    Task<Result<SecretBytes>> prepare_within(Clock::duration limit, SecretBytes blob);
    Task<Result<void>> offer_key(std::optional<CommitPatience> patience);
    Task<Result<void>> accept();
    /// What became of a save that failed. What the manager says about the vTPM itself goes to `why`.
    Task<Fate> find_fate(Error& why, CommitPatience patience);
    Task<Result<void>> put_back(SecretBytes registers);
    [[nodiscard]] SecretBytes registers_now();
    void forget_staged();
    void note_guess(ByteView command, ByteView answer);
    void went_well();
    void note_trouble(const Error& why);
    Error lose(Error why);
    void try_again();
    Task<bool> manager_answers(std::optional<CommitPatience> patience);
    Task<> save_again();
    Task<> save_once_more();
    template <typename T>
    Task<Result<T>> until_stopped(std::string what, Task<Result<T>> operation);
    void move(DurabilityEvent event);

    InstanceCounters& counters_;
    Engine& engine_;
    store::StateImage& image_;
    proto::ManagerClient& manager_;
    Clock& clock_;
    const Log& log_;
    FifoLock& lock_;
    Worker& worker_;
    TaskGroup& group_;
    const Uuid uuid_;
    const std::function<void()> on_lost_;
    const CommitPatience patience_{};

    Durability state_ = Durability::durable;
    EngineState durable_;                 ///< permanent and saved state as last made durable
    EngineState saving_;                  ///< what the save under way makes durable
    std::optional<SecretBytes> in_doubt_; ///< the key of a slot that is written and perhaps not yet the manager's
    std::optional<Error> lost_;
    bool on_record_ = false;                      ///< the last save came that far
    bool troubled_ = false;                       ///< for the log
    bool hurried_ = false;                        ///< by hurry()
    std::optional<Clock::time_point> away_since_; ///< the manager, as a save found; none went well since
    bool writing_ = false;                        ///< a slot; outlives the patience for it
    bool abandoned_ = false;                      ///< what is being written is not wanted any more
    bool resaving_ = false;                       ///< the TPM holds what is durable; it is to be saved again
    bool trying_again_ = false;                   ///< save_again() runs
    bool guessed_ = false;                        ///< a wrong authorisation could not be counted
    bool orderly_ = false;                        ///< shut down: the next command may change that
    bool stopped_ = false;
    std::set<Interruption*> ended_by_stop_;
    SecretBytes volatile_;
    SecretBytes unconfirmed_;
    SecretBytes given_out_;
};

} // namespace vtpmd::instance
