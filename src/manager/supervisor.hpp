// --spawn: keeps an instance running for every vTPM that has its image in the state directory.
//
// Instances outlive a manager that dies (their guests go on) and come back to the listening socket. So an image that is in use
// is not started: its instance is left alone ("adopted") until it lets go of the image, and only then replaced by a child.
#pragma once

#include "manager/child_process.hpp"
#include "manager/options.hpp"
#include "manager/registry.hpp"
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
    pid_t pid = 0;                    ///< of the child that runs; 0: none
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
    };
    Supervisor(SpawnOptions options, std::string listen_path, Parts parts);

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
    /// Of the child that runs; 0: none.
    [[nodiscard]] pid_t pid_of(const Uuid& uuid) const;
    /// Keeps an instance running until release(). False if it ended before, in a way that trying again does not cure. A
    /// caller that is cancelled leaves the instance running, for another manager to find. One charge a vTPM at a time.
    Task<bool> serve(std::shared_ptr<Charge> charge);
    /// Asks it to end in good order; serve() returns when it has.
    void release(Charge& charge);
    /// Until keep() is done with it. Errc::timed_out.
    Task<Result<void>> wait_ended(std::shared_ptr<Charge> charge, Clock::duration patience);
    /// SIGTERM to all children; returns when they are gone, at the latest `patience` later by SIGKILL.
    Task<> stop(Clock::duration patience);

    [[nodiscard]] std::size_t running() const noexcept { return children_.size(); }
    [[nodiscard]] const SupervisorCounters& counters() const noexcept { return counters_; }

  private:
    Task<bool> wait_until_free(Charge& charge);
    struct Outcome {
        ExitStatus status;
        Clock::duration served{};
    };
    Task<Result<Outcome>> run_child(Charge& charge);
    Task<bool> pause(Charge& charge, Clock::duration d);
    [[nodiscard]] std::string image_of(const Uuid& uuid) const;
    [[nodiscard]] std::vector<std::string> arguments_of(const Charge& charge) const;

    const SpawnOptions options_;
    const std::string listen_path_;
    Parts parts_;
    const RestartPolicy policy_{};

    TaskGroup group_;
    std::unordered_multimap<Uuid, Charge*> charges_;
    std::unordered_map<Uuid, std::shared_ptr<Charge>> kept_;
    bool stopping_ = false;
    std::unordered_map<Uuid, Child*> children_;
    SupervisorCounters counters_;
};

} // namespace vtpmd::manager
