// One vTPM: takes commands from its guests' endpoints, one at a time in the order they came, and lets nobody see an answer
// before what the command changed is durable.
//
// Fast commands run on the loop; long ones on the worker thread. Whatever must not stop half-way (a long command, a commit)
// runs in the instance's own task group, so that a guest that disconnects leaves nothing behind.
//
// A change that cannot be made durable has not happened: the TPM goes back and its guest is told (committer.hpp).
// While nothing can be made durable, what would change it is refused before it runs, and the rest is answered
// (durability.hpp).
//
// The class is written in instance.cpp (commands, the control channel's wishes), power.cpp (from start to close), quotes.cpp and
// migration.cpp (state that goes out and comes in, the handover).
#pragma once

#include "engine/engine.hpp"
#include "guest/tpm_service.hpp"
#include "instance/guest_figures.hpp"
#include "instance/life.hpp"
#include "instance/migration/handover.hpp"
#include "instance/options.hpp"
#include "instance/screen.hpp"
#include "instance/state/committer.hpp"
#include "tpm/commands.hpp"
#include "util/fifo_lock.hpp"
#include "util/log.hpp"
#include "util/shielded.hpp"
#include "util/worker.hpp"

#include <functional>

namespace vtpmd::instance {

struct InstanceConfig {
    Uuid uuid;
    Startup startup = Startup::clear;
    std::vector<unsigned> hwinitpcrs;
    bool maintenance_commands = false;
    std::vector<std::uint16_t> pcr_banks; ///< of a new TPM 2.0 (TPM_ALG_ID); empty: all that libtpms has
    bool ek_certificates = false;         ///< a new TPM has its endorsement keys certified by the manager
    /// SET_STATEBLOB makes the guest's TPM what it was before. This makes that a feature (snapshots) instead of an attack.
    bool allow_rollback = false;
    /// The vTPM comes from another host: the first state that is set is its own.
    bool incoming = false;
    Clock::duration stop_patience = std::chrono::seconds(10); ///< for the last save
};

/// What an instance works with; all of it outlives the instance.
struct InstanceParts {
    asio::any_io_executor executor;
    Engine& engine;
    store::StateImage& image;
    proto::ManagerClient& manager;
    Clock& clock;
    const Log& log;
    std::function<void()> request_shutdown; ///< CMD_SHUTDOWN
    /// With `incoming`: asks the host that has had this vTPM to let go of it. Empty: nobody is asked.
    std::function<Task<Result<void>>(store::Digest)> confirm_incoming;
};

class Instance final : public guest::TpmService {
  public:
    Instance(InstanceConfig config, InstanceParts parts);
    ~Instance() override = default;

    /// Powers on and starts the TPM; empty permanent state makes a fresh one. Durable on return.
    Task<Result<void>> start(EngineState state);
    /// The end is near: what waits for a manager that is away is answered soon.
    void hurry() { committer_.hurry(); }
    /// Finishes what runs, shuts the TPM down in order, saves, powers off. An error: what a guest was never told of is not
    /// saved. Not itself cancellable; nothing may be called afterwards. With `keep_registers` the running TPM is stored as it is,
    /// for a guest that may come back (Startup::save); any other start shuts it down in order first.
    Task<Result<void>> close(bool keep_registers = false);
    /// Another host asks for this vTPM (handover.hpp). Errc::permission: it does not get it, and the TPM goes on here.
    Task<Result<void>> hand_over(TakeRequest request);

    /// A deep quote for the host's operator, without the guest's owner (operator_quote.hpp). Errc::usage: PCRs that this TPM does not
    /// have; unavailable: it is off, or shut down or stored by its guest, for whom it has to stay as it is; else as the
    /// manager and the TPM have it. Runs to its end also if the caller is cancelled.
    Task<Result<Bytes>> quote_for_operator(proto::AskQuote question);

    Task<Bytes> execute(Bytes command, std::uint8_t locality) override;
    void cancel() override;
    [[nodiscard]] TpmVersion version() const override { return engine_.version(); }
    [[nodiscard]] bool running() const override { return engine_.running(); }
    [[nodiscard]] bool handed_over() const override { return life_.owner() == Owner::elsewhere; }
    Task<Result<void>> init(bool delete_volatile, guest::ControlPeer peer) override;
    Task<Result<void>> stop() override;
    void shutdown() override { request_shutdown_(); }
    Task<Result<bool>> established() override;
    Task<Result<void>> reset_established(std::uint8_t locality) override;
    Task<Result<void>> hash_start() override;
    Task<Result<void>> hash_data(Bytes data) override;
    Task<Result<void>> hash_end() override;
    Task<Result<void>> store_volatile() override;
    Task<Result<BufferSize>> buffer_size(std::uint32_t wanted) override;
    Task<std::string> info(std::uint64_t flags) override;
    Task<Result<Bytes>> get_blob(std::uint32_t type) override;
    Task<Result<void>> set_blob(std::uint32_t type, Bytes blob, guest::ControlPeer peer) override;
    void control_gone(guest::ControlPeer peer) override;

    [[nodiscard]] const InstanceCounters& counters() const noexcept { return counters_; }
    [[nodiscard]] GuestFigures& figures() noexcept { return figures_; }
    [[nodiscard]] bool dirty() const { return committer_.dirty(); }

  private:
    using Turn = FifoLock::Guard;
    using Step = std::function<Result<void>()>;

    /// A guest's command, for the figures.
    struct Arrival {
        std::uint32_t code = 0;
        Clock::time_point at;
    };
    void note(const Arrival& arrival, Outcome outcome);
    void note(const Arrival& arrival, ByteView answer);
    Task<Bytes> slow_command(Turn turn, Arrival arrival, Bytes command, std::uint8_t locality);
    /// TPM_ORD_DeepQuote and TPM_ORD_ParentSignEK, which libtpms does not have.
    Task<Bytes> owner_quote(Turn turn, Bytes command, std::uint8_t locality);
    /// The same of a TPM 2.0.
    Task<Bytes> own_quote(Turn turn, Bytes command);
    Task<Result<Bytes>> operator_quote(Turn turn, proto::AskQuote question);
    /// A command that has run.
    struct Ran {
        Bytes command, answer;
        SecretBytes registers; ///< as Committer::before() has them
        Admission how = Admission::run;
    };
    Task<Bytes> commit_answer(Turn turn, Arrival arrival, Ran ran);
    /// Committer::commit() where there is something to commit.
    Task<Result<void>> commit_if_changed(SecretBytes registers, ByteView command, ByteView answer);
    Bytes refuse_not_durable(std::uint32_t code);
    /// Takes a turn and runs `step` on the TPM; what it changed is durable on return, or it has not happened.
    Task<Result<void>> with_tpm(std::string what, Event event, Step step);
    Task<Result<void>> do_step(Turn turn, Event event, Step step);
    Task<Result<void>> do_start(EngineState state);
    Task<Result<void>> do_init(Turn turn, guest::ControlPeer peer);
    Task<Result<void>> start_over();
    Task<Result<void>> start_with(Origin origin, guest::ControlPeer peer);
    Task<Result<void>> do_stop(Turn turn);
    Task<Result<void>> do_hand_over(Turn turn, TakeRequest request);
    Task<Result<void>> confirm();
    Task<Result<void>> settle_first(Turn turn);
    /// Runs `operation` to its end in the group whatever happens to the caller.
    Task<Result<void>> to_the_end(std::string what, Task<Result<void>> operation);

    /// How the power comes.
    struct PowerOn {
        const EngineState& state;
        Origin origin = Origin::own;
        bool must_save = false; ///< the disk does not have this state
        bool try_only = false;  ///< what is kept beside the state stays: the power goes again at once
    };
    Task<Result<void>> power_on(PowerOn how);
    /// Ends the running TPM's power in order and holds what the next one starts with. `cycle`: as Life::ending().
    Task<Result<void>> power_off(bool cycle);
    Task<Result<void>> end_power(bool cycle);
    void shut_down(tpm::StartupMode mode);
    void remember_given_out();
    Result<void> start_tpm(const EngineState& state);
    [[nodiscard]] bool may_resume(const EngineState& state) const;
    Task<Result<void>> preset_host_pcrs();
    Result<void> hold_state();
    Task<Result<void>> settle();
    Task<Result<void>> orderly_end(bool keep_registers);
    Task<Result<void>> last_save(std::string_view what);
    void retire(EngineState& state);
    void forget_the_moment();
    Bytes run(ByteView command, std::uint8_t locality);
    Bytes refuse(tpm::Refusal why);
    void warn(std::string_view what);

    const InstanceConfig config_;
    const ScreenPolicy screen_;

    Engine& engine_;
    proto::ManagerClient& manager_;
    Clock& clock_;
    const Log& log_;
    const std::function<void()> request_shutdown_;

    InstanceCounters counters_;
    GuestFigures figures_;
    Committer committer_;
    Life life_;
    EngineState held_;             ///< while powered off: what the TPM starts with next
    bool disk_may_differ_ = false; ///< held_ has to be saved again: another state may have come to the disk
    EngineState came_;             ///< what life_'s setter has set
    SecretBytes given_registers_;  ///< as long as life_ says that they were given out
    const std::function<Task<Result<void>>(store::Digest)> confirm_incoming_;
    bool resumed_ = false;   ///< the last start brought back saved registers
    bool starting_ = false;  ///< start() runs
    bool made_here_ = false; ///< this process made the TPM, with its endorsement key (1.2)
    unsigned runs_ = 0;      ///< power-ons with a guest; 1: the first since the process began
    RateLimit limit_;
    FifoLock lock_;
    Worker worker_;
    TaskGroup group_;
};

} // namespace vtpmd::instance
