#include "process.hpp"

#include <chrono>
#include <csignal>
#include <cstring>
#include <fcntl.h>
#include <fmt/format.h>
#include <fstream>
#include <sstream>
#include <stdexcept>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <thread>
#include <time.h>
#include <unistd.h>
#include <utility>

namespace bench {

Process::Process(const std::vector<std::string>& argv, std::filesystem::path log)
    : log_(std::move(log)) {
    std::vector<char*> args;
    args.reserve(argv.size() + 1);
    for (const std::string& a : argv) {
        args.push_back(const_cast<char*>(a.c_str())); // execvp's historical signature
    }
    args.push_back(nullptr);
    const pid_t parent = getpid();
    pid_ = fork();
    if (pid_ < 0) {
        throw std::runtime_error(fmt::format("fork: {}", std::strerror(errno)));
    }
    if (pid_ == 0) {
        (void)prctl(PR_SET_PDEATHSIG, SIGKILL);
        if (getppid() != parent) {
            _exit(127);
        }
        const int out = open(log_.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
        const int in = open("/dev/null", O_RDONLY | O_CLOEXEC);
        (void)dup2(in, 0);
        (void)dup2(out, 1);
        (void)dup2(out, 2);
        execvp(args[0], args.data());
        dprintf(2, "%s: %s\n", args[0], std::strerror(errno));
        _exit(127);
    }
}

Process::Process(Process&& other) noexcept
    : pid_(std::exchange(other.pid_, -1))
    , log_(std::move(other.log_)) {}

Process& Process::operator=(Process&& other) noexcept {
    if (this != &other) {
        stop();
        pid_ = std::exchange(other.pid_, -1);
        log_ = std::move(other.log_);
    }
    return *this;
}

bool Process::running() {
    if (pid_ <= 0) {
        return false;
    }
    if (waitpid(pid_, nullptr, WNOHANG) == 0) {
        return true;
    }
    pid_ = -1;
    return false;
}

void Process::stop() noexcept {
    if (pid_ <= 0) {
        return;
    }
    kill(pid_, SIGTERM);
    for (int i = 0; i < 5000; ++i) {
        if (waitpid(pid_, nullptr, WNOHANG) != 0) {
            pid_ = -1;
            return;
        }
        std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    kill(pid_, SIGKILL);
    (void)waitpid(pid_, nullptr, 0);
    pid_ = -1;
}

std::string Process::complaint() const {
    std::ifstream in(log_);
    std::ostringstream all;
    all << in.rdbuf();
    const std::string text = all.str();
    return text.size() > 600 ? text.substr(text.size() - 600) : text;
}

std::optional<double> Process::pss_kib() const {
    std::ifstream in(fmt::format("/proc/{}/smaps_rollup", pid_));
    for (std::string line; std::getline(in, line);) {
        if (line.starts_with("Pss:")) {
            return std::stod(line.substr(4));
        }
    }
    return std::nullopt;
}

double Process::cpu_seconds() const {
    clockid_t clock{};
    timespec used{};
    if (clock_getcpuclockid(pid_, &clock) != 0 || clock_gettime(clock, &used) != 0) {
        return 0;
    }
    return static_cast<double>(used.tv_sec) + static_cast<double>(used.tv_nsec) / 1e9;
}

} // namespace bench
