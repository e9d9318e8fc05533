#include "manager/instances/child_process.hpp"

#include "util/last_words.hpp"

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <fcntl.h>
#include <spawn.h>
#include <string_view>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

extern char** environ;

namespace vtpmd::manager {

namespace {

constexpr int child_fd = 3;
constexpr int last_words_fd = 4;
constexpr std::size_t last_words_limit = 1024;

/// A copy that is close-on-exec and out of the way of what the child is given, whose numbers are dup2()ed over.
UniqueFd out_of_the_way(int fd) { return UniqueFd(::fcntl(fd, F_DUPFD_CLOEXEC, last_words_fd + 1)); }

/// Where the child leaves why it ends (util/last_words.hpp). Memory, not a pipe: nobody waits for who reads it, and it has a bound.
UniqueFd make_last_words() {
    UniqueFd fd(::memfd_create("last words", MFD_CLOEXEC | MFD_ALLOW_SEALING));
    if (!fd || ::ftruncate(fd.get(), last_words_limit) != 0 ||
        ::fcntl(fd.get(), F_ADD_SEALS, F_SEAL_GROW | F_SEAL_SHRINK | F_SEAL_SEAL) != 0) {
        return {};
    }
    return fd;
}

/// What a process wrote that is not trusted: one line of printable text.
std::string read_last_words(int fd) {
    std::string text(last_words_limit, '\0');
    const ssize_t got = ::pread(fd, text.data(), text.size(), 0);
    text.resize(got > 0 ? static_cast<std::size_t>(got) : 0);
    text.resize(std::min(text.size(), text.find('\0')));
    std::ranges::replace_if(
        text, [](unsigned char c) { return c < 0x20 || c >= 0x7f; }, ' ');
    return text;
}

class Process final : public Child {
  public:
    /// `last_words`: of a child of ours; an adopted process has none.
    Process(const asio::any_io_executor& executor, ProcessHandle process, UniqueFd last_words)
        : process_(std::move(process))
        , ended_(executor, ::fcntl(process_.pidfd->get(), F_DUPFD_CLOEXEC, 0))
        , last_words_(std::move(last_words)) {}

    [[nodiscard]] pid_t pid() const override { return process_.pid; }
    [[nodiscard]] ProcessHandle handle() const override { return process_; }

    Task<Result<ExitStatus>> wait() override {
        auto [ec] = co_await ended_.async_wait(asio::posix::stream_descriptor::wait_read, use_tuple);
        if (ec) {
            co_return make_error(Errc::canceled, "waiting for process {}: {}", process_.pid, ec.message());
        }
        if (!last_words_) {
            co_return ExitStatus{.unknown = true}; // another process's child, who alone may know
        }
        siginfo_t info{};
        if (::waitid(static_cast<idtype_t>(P_PIDFD), static_cast<id_t>(ended_.native_handle()), &info, WEXITED) != 0) {
            co_return errno_error(errno, fmt::format("waiting for process {}", process_.pid));
        }
        bool exited = info.si_code == CLD_EXITED;
        co_return ExitStatus{.code = exited ? info.si_status : 0, .signal = exited ? 0 : info.si_status};
    }

    void signal(int number) override {
        (void)::syscall(SYS_pidfd_send_signal, ended_.native_handle(), number, nullptr, 0);
    }

    [[nodiscard]] std::string last_words() const override {
        return last_words_ ? read_last_words(last_words_.get()) : std::string();
    }

  private:
    const ProcessHandle process_;
    asio::posix::stream_descriptor ended_; ///< its pidfd, readable when the process has ended
    const UniqueFd last_words_;
};

/// posix_spawn's two attribute objects.
struct SpawnSetup {
    posix_spawn_file_actions_t actions{};
    posix_spawnattr_t attributes{};
    int error = 0;

    SpawnSetup(int inherited, int last_words) {
        ::posix_spawn_file_actions_init(&actions);
        ::posix_spawnattr_init(&attributes);
        sigset_t none;
        sigset_t all;
        sigemptyset(&none);
        sigfillset(&all);
        // Whatever else is open here, and made by whomever, ends with us.
        for (int e : {::posix_spawn_file_actions_adddup2(&actions, inherited, child_fd),
                      ::posix_spawn_file_actions_adddup2(&actions, last_words, last_words_fd),
                      ::posix_spawn_file_actions_addclosefrom_np(&actions, last_words_fd + 1),
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
        const UniqueFd link = out_of_the_way(inherited.get());
        UniqueFd last_words = make_last_words();
        const UniqueFd last_words_out = out_of_the_way(last_words.get());
        if (!link || !last_words || !last_words_out) {
            return errno_error(errno, executable);
        }
        inherited.reset();
        SpawnSetup setup(link.get(), last_words_out.get());
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
            const std::string_view text(*variable);
            if (!text.starts_with("NOTIFY_SOCKET=") && !text.starts_with(last_words_variable)) {
                environment.push_back(*variable);
            }
        }
        std::string where = fmt::format("{}={}", last_words_variable, last_words_fd);
        environment.push_back(where.data());
        environment.push_back(nullptr);
        pid_t pid = 0;
        if (int err = ::posix_spawn(&pid, executable.c_str(), &setup.actions, &setup.attributes, argv.data(),
                                    environment.data())) {
            return errno_error(err, executable);
        }
        ProcessHandle process = open_process(pid);
        if (!process.known()) {
            Error e = errno_error(errno, fmt::format("pidfd_open of process {}", pid));
            (void)::kill(pid, SIGKILL); // it is our child and not reaped: the number is still its
            (void)::waitpid(pid, nullptr, 0);
            return e;
        }
        return std::make_unique<Process>(executor_, std::move(process), std::move(last_words));
    }

    std::unique_ptr<Child> adopt(ProcessHandle process) override {
        return std::make_unique<Process>(executor_, std::move(process), UniqueFd());
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
