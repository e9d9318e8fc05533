// Instances as processes: started by posix_spawn (never fork: the loop is live), waited for by their pidfd.
#pragma once

#include "manager/instances/processes.hpp"
#include "manager/instances/restart_policy.hpp"
#include "util/asio.hpp"
#include "util/fd.hpp"
#include "util/result.hpp"

#include <memory>
#include <string>
#include <sys/types.h>
#include <vector>

namespace vtpmd::manager {

class Child {
  public:
    virtual ~Child() = default;
    [[nodiscard]] virtual pid_t pid() const = 0;
    /// Reaps it. Once.
    virtual Task<Result<ExitStatus>> wait() = 0;
    virtual void signal(int number) = 0;
    [[nodiscard]] virtual ProcessHandle handle() const = 0;
    /// Once it has ended: what it said of why, one line; empty: nothing.
    [[nodiscard]] virtual std::string last_words() const = 0;
};

class Spawner {
  public:
    virtual ~Spawner() = default;
    /// `inherited` becomes descriptor 3 of the child, which has no other but 0 to 2 and 4, its last words. It runs in a process group of its own, so
    /// that a terminal's interrupt reaches it through the manager, and it outlives a manager that dies.
    virtual Result<std::unique_ptr<Child>> spawn(const std::string& executable,
                                                 const std::vector<std::string>& arguments, UniqueFd inherited) = 0;
    /// A process that somebody else started: its end is known, but not how it ended. Precondition: process.known().
    virtual std::unique_ptr<Child> adopt(ProcessHandle process) = 0;
    /// True if a process has the image open (its lock).
    [[nodiscard]] virtual bool image_in_use(const std::string& path) = 0;
    [[nodiscard]] virtual bool image_exists(const std::string& path) = 0;
};

[[nodiscard]] std::unique_ptr<Spawner> make_spawner(asio::any_io_executor executor);

} // namespace vtpmd::manager
