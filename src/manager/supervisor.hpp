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
#include <unordered_map>
#include <vector>

namespace vtpmd::manager {

struct SupervisorCounters {
    std::uint64_t started = 0;
    std::uint64_t failed = 0; ///< ended other than in good order, or could not be started
    std::uint64_t given_up = 0;
    std::uint64_t adopted = 0;
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
    /// Begins to keep `uuid` running.
    void keep(Uuid uuid);
    /// SIGTERM to all children; returns when they are gone, at the latest `patience` later by SIGKILL.
    Task<> stop(Clock::duration patience);

    [[nodiscard]] std::size_t running() const noexcept { return children_.size(); }
    [[nodiscard]] const SupervisorCounters& counters() const noexcept { return counters_; }

  private:
    Task<> run(Uuid uuid);
    Task<bool> wait_until_free(Uuid uuid);
    struct Outcome {
        ExitStatus status;
        Clock::duration served{};
    };
    Task<Result<Outcome>> run_child(Uuid uuid);
    Task<bool> pause(Clock::duration d);
    [[nodiscard]] std::string image_of(const Uuid& uuid) const;
    [[nodiscard]] std::vector<std::string> arguments_of(const Uuid& uuid) const;

    const SpawnOptions options_;
    const std::string listen_path_;
    Parts parts_;
    const RestartPolicy policy_{};

    TaskGroup group_;
    StopSignal stopping_;
    std::unordered_map<Uuid, Child*> children_;
    SupervisorCounters counters_;
};

} // namespace vtpmd::manager
