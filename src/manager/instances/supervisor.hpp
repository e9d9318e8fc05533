// Keeps instances running, for whoever wants them: --spawn, autostart, `vtpmctl start`, Xen's devices.
//
// Instances outlive their manager, however it ends (their guests go on), and come back to the listening socket. So an image that is
// in use is not started: its process is taken up as soon as it is known (processes.hpp), watched and stopped as a child is, and
// replaced by a child once it has ended. managed_instance.hpp has the machine; this does what it says.
#pragma once

#include "manager/instances/child_process.hpp"
#include "manager/instances/image_keeper.hpp"
#include "manager/instances/managed_instance.hpp"
#include "manager/instances/processes.hpp"
#include "manager/options.hpp"
#include "manager/vault/registry.hpp"
#include "util/clock.hpp"
#include "util/log.hpp"
#include "util/runtime.hpp"
#include "util/task_group.hpp"

#include <functional>
#include <memory>
#include <unordered_map>
#include <unordered_set>
#include <vector>

namespace vtpmd::manager {

struct SupervisorCounters {
    std::uint64_t started = 0;
    std::uint64_t failed = 0; ///< ended other than in good order, or could not be started
    std::uint64_t given_up = 0;
    std::uint64_t adopted = 0;
};

/// One instance to keep running.
struct Charge {
    Charge(const asio::any_io_executor& executor, const Uuid& vtpm, std::string endpoint)
        : uuid(vtpm)
        , guest(std::move(endpoint))
        , released(executor)
        , ended(executor) {}
    const Uuid uuid;
    const std::string guest;          ///< its --guest
    bool restored = false;            ///< a saved guest comes back for its TPM's registers
    std::string startup;              ///< its --startup; empty: as restored says
    std::optional<TpmVersion> create; ///< it was registered on purpose and has no state yet: made as this
    StopSignal released;              ///< it is wanted no more
    StopSignal ended;                 ///< keep() is done with it

    // The supervisor's.
    ManagedInstance machine;
    std::unique_ptr<Child> process;              ///< that runs
    std::unique_ptr<ImageKeeper> image;          ///< while it does
    bool watched = false;                        ///< serve() waits for its end
    std::optional<ManagedInstance::Action> news; ///< what an event from outside asks serve() to do
    std::shared_ptr<asio::steady_timer> wake;    ///< of serve(), while it pauses
    std::size_t failures = 0;                    ///< since it is kept, all
};

/// Why an instance ended other than in good order, or was not started.
struct LastFailure {
    std::string why;
    std::uint64_t when = 0; ///< seconds since 1970
    bool final = false;     ///< it is not tried again
};

class Supervisor {
  public:
    /// All of it outlives the supervisor.
    struct Parts {
        asio::any_io_executor executor;
        Spawner& spawner;
        Clock& clock;
        const Log& log;
        /// Serves the manager's end of a child's socket.
        std::function<void(UniqueFd, const Uuid&, pid_t)> serve_link;
        Processes* processes = nullptr; ///< null: only the images' locks tell
        std::function<std::uint64_t()> unix_time = {};
    };
    Supervisor(SpawnOptions options, std::string listen_path, Parts parts);

    /// The socket that instances find a manager by, after it was restarted. Those that are started from now on are told.
    void come_back_to(std::string path) { return_path_ = std::move(path); }
    /// The vTPMs to keep running: those of SpawnOptions::only, else all that are registered and have an image.
    [[nodiscard]] std::vector<Uuid> choose(const Registry& registry) const;
    /// Begins to keep `uuid` running, for guests that come by its socket, until stop() or release(). `create`: it is registered
    /// and was never started, so its TPM is to be made. Not if kept(uuid).
    void keep(Uuid uuid, std::optional<TpmVersion> create = std::nullopt);
    /// The same, for whoever wants more than the default.
    struct Keeping {
        std::optional<TpmVersion> create = std::nullopt;
        std::string guest;   ///< --guest; empty: a socket named by the UUID
        std::string startup; ///< --startup; empty: none
    };
    void keep(Uuid uuid, Keeping how);
    /// The charge that keep() made; null: there is none (any more).
    [[nodiscard]] std::shared_ptr<Charge> kept(const Uuid& uuid) const;
    /// True if any charge has it, a Xen device's among them.
    [[nodiscard]] bool in_charge(const Uuid& uuid) const;
    /// Of the process that runs, a child or one that was taken up; 0: none, or not known.
    [[nodiscard]] pid_t pid_of(const Uuid& uuid) const;
    /// It is in charge, and a process that is not known (yet) has its image.
    [[nodiscard]] bool is_unknown(const Uuid& uuid) const;
    /// An instance came by its link.
    void met(const Uuid& uuid, const ProcessHandle& process);
    [[nodiscard]] std::string image_of(const Uuid& uuid) const;
    [[nodiscard]] bool image_held(const Uuid& uuid) { return parts_.spawner.image_in_use(image_of(uuid)); }
    /// Since it was last asked to start; null: none.
    [[nodiscard]] const LastFailure* last_failure(const Uuid& uuid) const;
    /// It is gone for good.
    void forget(const Uuid& uuid) { failures_.erase(uuid); }
    /// Keeps an instance running until release(). False if it ended before, in a way that trying again does not cure. A
    /// caller that is cancelled leaves the instance running, for another manager to find. One charge a vTPM at a time.
    Task<bool> serve(std::shared_ptr<Charge> charge);
    /// Until it is cancelled: what happens to the images of those that run is noticed at once, not only at their ends.
    Task<> look_after_images();
    /// Asks it to end in good order; serve() returns when it has.
    void release(Charge& charge);
    /// Until keep() is done with it. Errc::timed_out.
    Task<Result<void>> wait_ended(std::shared_ptr<Charge> charge, Clock::duration patience);
    /// SIGTERM to all processes; returns when they are gone, at the latest `patience` later by SIGKILL.
    Task<> stop(Clock::duration patience);
    /// Leaves them to the next manager; returns at once.
    Task<> leave();
    /// How many processes leave() would leave.
    [[nodiscard]] std::size_t running() const noexcept { return running_.size(); }
    [[nodiscard]] const SupervisorCounters& counters() const noexcept { return counters_; }

  private:
    using Machine = ManagedInstance;
    struct Life; ///< what serve() remembers between steps
    /// What happened while the machine's last word was done.
    Machine::Event look(Charge& charge);
    Machine::Event start(Charge& charge, Life& life);
    void take_up(Charge& charge, const ProcessHandle& process);
    Task<Machine::Event> watch(std::shared_ptr<Charge> charge, Life& life);
    Task<std::optional<Machine::Event>> pause(std::shared_ptr<Charge> charge, Clock::duration d);
    Machine::Event judge(Charge& charge, Life& life, ExitStatus status, Clock::duration served, std::string why);
    void runs(Charge& charge, std::unique_ptr<Child> process);
    /// An event from outside serve().
    void tell(Charge& charge, Machine::Event event);
    [[nodiscard]] std::vector<std::string> arguments_of(const Charge& charge, std::optional<uid_t> user) const;
    [[nodiscard]] std::optional<uid_t> free_user() const;

    const SpawnOptions options_;
    const std::string listen_path_;
    std::string return_path_; ///< empty: listen_path_
    Parts parts_;
    const RestartPolicy policy_{};

    TaskGroup group_;
    std::unordered_multimap<Uuid, Charge*> charges_;
    std::unordered_map<Uuid, std::shared_ptr<Charge>> kept_;
    bool stopping_ = false;
    bool abandoning_ = false;                   ///< stop() waits no longer for those whose process is not known
    std::unordered_map<Uuid, Charge*> running_; ///< those that have a process
    std::unordered_map<Uuid, LastFailure> failures_;
    SupervisorCounters counters_;
};

} // namespace vtpmd::manager
