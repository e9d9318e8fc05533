// Which process has which vTPM, as far as this manager knows, and what it leaves for the next manager to know.
//
// A vTPM is at rest only if no process has it: its link may have broken while the process lives on, and a manager that was just
// started has no links yet. So every process that comes by a link, or is started here, is kept by its pidfd until it has ended, and
// noted in a file, RUN_DIR/instances/UUID (lines NAME=VALUE: pid, process, and of one that a manager started guest, startup, once).
// The folder is this manager's own, and is gone after a reboot as the processes are. The next manager takes the notes up: where the
// kernel tells that a process is the very same (its pidfd's inode, else its start time and the boot), it is known at once; where it
// does not, the vTPM counts as in use for as long as a living instance may take to come back.
#pragma once

#include "util/clock.hpp"
#include "util/fd.hpp"
#include "util/log.hpp"
#include "util/result.hpp"
#include "util/uuid.hpp"

#include <functional>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <sys/types.h>
#include <unordered_map>
#include <vector>

namespace vtpmd::manager {

/// A process by its pidfd: the number cannot come to mean another one.
struct ProcessHandle {
    pid_t pid = 0;
    std::shared_ptr<const UniqueFd> pidfd; ///< null: there is none (another PID namespace, another domain)
    [[nodiscard]] bool known() const noexcept { return pidfd != nullptr; }
    /// False if it is not known.
    [[nodiscard]] bool alive() const;
    void signal(int number) const;
};
/// At the other end of a connected Unix socket (SO_PEERPIDFD, else the pid of SO_PEERCRED while the connection stands).
[[nodiscard]] ProcessHandle peer_process(int socket);
[[nodiscard]] ProcessHandle open_process(pid_t pid);
/// What only this process of this host has; empty: the kernel does not tell.
[[nodiscard]] std::string identity_of(const ProcessHandle& process);

/// Whose rights it has, for people: "user 1880000000, no capabilities, no new privileges, seccomp", or what of it it has not.
[[nodiscard]] std::string rights_of(const ProcessHandle& process);

class Processes {
  public:
    /// How a manager started an instance; an instance that somebody else started has none.
    struct Spawned {
        std::string guest;   ///< its --guest
        std::string startup; ///< its --startup; empty: none
        uid_t user = 0;      ///< of its own; 0: none
    };
    struct Use {
        pid_t pid = 0; ///< 0: not known
        std::string why;
    };
    /// How long an instance may take to come to a new manager: its longest pause (proto/link/backoff.hpp), and some.
    static constexpr Clock::duration settle_time = std::chrono::seconds(15);

    /// Whether a process has the lock of the vTPM's image, where this manager keeps images.
    using ImageHeld = std::function<bool(const Uuid&)>;
    /// `run_dir` empty: nothing is noted. `clock` and `log` outlive this.
    Processes(std::string run_dir, ImageHeld image_held, Clock& clock, const Log& log);

    struct Found {
        Uuid uuid;
        std::optional<Spawned> spawned;
    };
    /// Reads what the last manager left, once, at the start; those that it started and that may still run are returned.
    std::vector<Found> take_up();

    void started(const Uuid& uuid, ProcessHandle process, Spawned how);
    /// By its link. What is known of how it was started stays, if it is the same process or may be.
    void opened(const Uuid& uuid, ProcessHandle process);
    void ended(const Uuid& uuid);
    /// Looks at its image once, at the start: one that is held is looked at again whenever it is asked about.
    void look(const Uuid& uuid);

    /// A process that is known and lives; else one without a pidfd.
    [[nodiscard]] ProcessHandle find(const Uuid& uuid) const;
    /// The vTPM that a manager spawned this very process for; nullopt: it is none of those that are known.
    [[nodiscard]] std::optional<Uuid> spawned_for(const ProcessHandle& process) const;
    /// Those that processes have which a manager spawned and which may live.
    [[nodiscard]] std::set<uid_t> users() const;
    /// Why it may not be taken for stopped; nullopt: nothing is known against it. Cheap: for lists of all vTPMs.
    [[nodiscard]] std::optional<Use> in_use(const Uuid& uuid) const;
    /// The same, and looks at its image in any case.
    [[nodiscard]] std::optional<Use> in_use_now(const Uuid& uuid) const;

  private:
    struct Entry {
        ProcessHandle process;
        bool uncertain = false;  ///< the last manager's note, and the kernel does not tell whether it is that process
        bool image_held = false; ///< it was when it was looked at
        std::optional<Spawned> spawned;
    };
    [[nodiscard]] std::optional<Use> held(const Uuid& uuid) const;
    void note(const Uuid& uuid, const Entry& entry);
    void forget(const Uuid& uuid);
    [[nodiscard]] std::string path_of(const Uuid& uuid) const;
    [[nodiscard]] std::optional<Entry> read_note(const std::string& path) const;

    const std::string dir_; ///< empty: none
    const ImageHeld image_held_;
    Clock& clock_;
    const Log& log_;
    const Clock::time_point begun_;
    std::unordered_map<Uuid, Entry> entries_;
    bool warned_ = false;
};

} // namespace vtpmd::manager
