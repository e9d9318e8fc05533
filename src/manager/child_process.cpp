#include "manager/child_process.hpp"

#include <cerrno>
#include <csignal>
#include <fcntl.h>
#include <spawn.h>
#include <string_view>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

extern char** environ;

namespace vtpmd::manager {

namespace {

constexpr int child_fd = 3;

UniqueFd open_pidfd(pid_t pid) { return UniqueFd(static_cast<int>(::syscall(SYS_pidfd_open, pid, 0))); }

class Process final : public Child {
  public:
    Process(const asio::any_io_executor& executor, pid_t pid, UniqueFd pidfd)
        : pid_(pid)
        , ended_(executor, pidfd.release()) {}

    [[nodiscard]] pid_t pid() const override { return pid_; }

    Task<Result<ExitStatus>> wait() override {
        auto [ec] = co_await ended_.async_wait(asio::posix::stream_descriptor::wait_read, use_tuple);
        if (ec) {
            co_return make_error(Errc::canceled, "waiting for process {}: {}", pid_, ec.message());
        }
        siginfo_t info{};
        if (::waitid(static_cast<idtype_t>(P_PIDFD), static_cast<id_t>(ended_.native_handle()), &info, WEXITED) != 0) {
            co_return errno_error(errno, fmt::format("waiting for process {}", pid_));
        }
        bool exited = info.si_code == CLD_EXITED;
        co_return ExitStatus{.code = exited ? info.si_status : 0, .signal = exited ? 0 : info.si_status};
    }

    void signal(int number) override {
        (void)::syscall(SYS_pidfd_send_signal, ended_.native_handle(), number, nullptr, 0);
    }

  private:
    const pid_t pid_;
    asio::posix::stream_descriptor ended_; ///< the pidfd, readable when the process has ended
};

/// posix_spawn's two attribute objects.
struct SpawnSetup {
    posix_spawn_file_actions_t actions{};
    posix_spawnattr_t attributes{};
    int error = 0;

    explicit SpawnSetup(int inherited) {
        ::posix_spawn_file_actions_init(&actions);
        ::posix_spawnattr_init(&attributes);
        sigset_t none;
        sigset_t all;
        sigemptyset(&none);
        sigfillset(&all);
        for (int e : {::posix_spawn_file_actions_adddup2(&actions, inherited, child_fd),
                      ::posix_spawnattr_setsigmask(&attributes, &none),
                      ::posix_spawnattr_setsigdefault(&attributes, &all), ::posix_spawnattr_setpgroup(&attributes, 0),
                      ::posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF |
                                                                  POSIX_SPAWN_SETPGROUP)}) {
            error = error != 0 ? error : e;
        }
    }
    SpawnSetup(const SpawnSetup&) = delete;
    SpawnSetup& operator=(const SpawnSetup&) = delete;
    ~SpawnSetup() {
        ::posix_spawn_file_actions_destroy(&actions);
        ::posix_spawnattr_destroy(&attributes);
    }
};

class PosixSpawner final : public Spawner {
  public:
    explicit PosixSpawner(asio::any_io_executor executor)
        : executor_(std::move(executor)) {}

    Result<std::unique_ptr<Child>> spawn(const std::string& executable, const std::vector<std::string>& arguments,
                                         UniqueFd inherited) override {
        SpawnSetup setup(inherited.get());
        if (setup.error != 0) {
            return errno_error(setup.error, executable);
        }
        std::vector<std::string> words{"vtpmd"};
        words.insert(words.end(), arguments.begin(), arguments.end());
        std::vector<char*> argv;
        argv.reserve(words.size() + 1);
        for (std::string& w : words) {
            argv.push_back(w.data());
        }
        argv.push_back(nullptr);
        // The service manager's socket is ours: it would take an instance's "ready" and "stopping" for the manager's own, where
        // its unit says NotifyAccess=all.
        std::vector<char*> environment;
        for (char** variable = environ; *variable != nullptr; ++variable) {
            if (!std::string_view(*variable).starts_with("NOTIFY_SOCKET=")) {
                environment.push_back(*variable);
            }
        }
        environment.push_back(nullptr);
        pid_t pid = 0;
        if (int err = ::posix_spawn(&pid, executable.c_str(), &setup.actions, &setup.attributes, argv.data(),
                                    environment.data())) {
            return errno_error(err, executable);
        }
        UniqueFd pidfd = open_pidfd(pid);
        if (!pidfd) {
            Error e = errno_error(errno, fmt::format("pidfd_open of process {}", pid));
            (void)::kill(pid, SIGKILL); // it is our child and not reaped: the number is still its
            (void)::waitpid(pid, nullptr, 0);
            return e;
        }
        return std::make_unique<Process>(executor_, pid, std::move(pidfd));
    }

    [[nodiscard]] bool image_in_use(const std::string& path) override {
        UniqueFd fd(::open(path.c_str(), O_RDWR | O_CLOEXEC));
        if (!fd) {
            return false;
        }
        struct flock lock {};
        lock.l_type = F_WRLCK;
        lock.l_whence = SEEK_SET;
        return ::fcntl(fd.get(), F_OFD_GETLK, &lock) == 0 && lock.l_type != F_UNLCK;
    }

    [[nodiscard]] bool image_exists(const std::string& path) override { return ::access(path.c_str(), F_OK) == 0; }

  private:
    asio::any_io_executor executor_;
};

} // namespace

std::unique_ptr<Spawner> make_spawner(asio::any_io_executor executor) {
    return std::make_unique<PosixSpawner>(std::move(executor));
}

} // namespace vtpmd::manager
