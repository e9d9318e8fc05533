#include "util/log_output.hpp"

#include "util/fd.hpp"

#include <cerrno>
#include <csignal>
#include <cstdlib>
#include <ctime>
#include <fcntl.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

namespace vtpmd {

namespace {

constexpr int last_wait_ms = 200;

int priority(LogLevel level) {
    switch (level) {
    case LogLevel::error:
        return 3;
    case LogLevel::warning:
        return 4;
    case LogLevel::info:
        return 6;
    case LogLevel::debug:
        break;
    }
    return 7;
}

std::string_view name(LogLevel level) {
    switch (level) {
    case LogLevel::error:
        return "error";
    case LogLevel::warning:
        return "warning";
    case LogLevel::info:
        return "info";
    case LogLevel::debug:
        break;
    }
    return "debug";
}

bool is_pipe_or_terminal(int fd) {
    struct stat file {};
    return ::fstat(fd, &file) == 0 && (S_ISFIFO(file.st_mode) || (S_ISCHR(file.st_mode) && ::isatty(fd) == 1));
}

bool is_socket(int fd) {
    struct stat file {};
    return ::fstat(fd, &file) == 0 && S_ISSOCK(file.st_mode);
}

/// The variable may be inherited by one whose standard error goes elsewhere (systemd.exec(5)).
bool is_journal(int fd) {
    const char* const journal = std::getenv("JOURNAL_STREAM");
    struct stat file {};
    return journal != nullptr && ::fstat(fd, &file) == 0 && fmt::format("{}:{}", file.st_dev, file.st_ino) == journal;
}

bool can_write_now(int fd, int wait_ms) {
    pollfd asked{.fd = fd, .events = POLLOUT, .revents = 0};
    return ::poll(&asked, 1, wait_ms) == 1;
}

} // namespace

void own_standard_error() {
    std::signal(SIGTTOU, SIG_IGN); // NOLINT(bugprone-signal-handler): ignoring, not handling
    if (!is_pipe_or_terminal(STDERR_FILENO)) {
        return;
    }
    const UniqueFd again(::open("/proc/self/fd/2", O_WRONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC));
    if (again) {
        (void)::dup2(again.get(), STDERR_FILENO);
    }
}

LogOutput::LogOutput(int fd)
    : fd_(fd)
    , how_(is_socket(fd)                                                         ? How::send
           : is_pipe_or_terminal(fd) && (::fcntl(fd, F_GETFL) & O_NONBLOCK) == 0 ? How::ask
                                                                                 : How::write)
    , terminal_(::isatty(fd) == 1)
    , journal_(is_journal(fd)) {}

std::string LogOutput::dress(LogLevel level, std::string_view text) const {
    if (journal_) {
        return fmt::format("<{}>{}\n", priority(level), text);
    }
    timespec now{};
    tm parts{};
    clock_gettime(CLOCK_REALTIME, &now);
    gmtime_r(&now.tv_sec, &parts);
    return fmt::format("{:04}-{:02}-{:02}T{:02}:{:02}:{:02}.{:03}Z {}: {}\n", parts.tm_year + 1900, parts.tm_mon + 1,
                       parts.tm_mday, parts.tm_hour, parts.tm_min, parts.tm_sec, now.tv_nsec / 1'000'000, name(level),
                       text);
}

LogOutput::Written LogOutput::write_some(std::string_view& text) const {
    while (!text.empty()) {
        ssize_t n = -1;
        switch (how_) {
        case How::write:
            n = ::write(fd_, text.data(), text.size());
            break;
        case How::send:
            n = ::send(fd_, text.data(), text.size(), MSG_DONTWAIT | MSG_NOSIGNAL);
            break;
        case How::ask: {
            const iovec part{const_cast<char*>(text.data()), text.size()}; // NOLINT: what is written is not changed
            n = ::pwritev2(fd_, &part, 1, -1, RWF_NOWAIT);
            if (n >= 0 || errno != EOPNOTSUPP) {
                break;
            }
            // An older kernel, or a terminal. A pipe that takes something takes a line, a terminal perhaps one byte.
            if (!can_write_now(fd_, 0)) {
                return Written::later;
            }
            n = ::write(fd_, text.data(), terminal_ ? 1 : text.size());
            break;
        }
        }
        if (n > 0) {
            text.remove_prefix(static_cast<std::size_t>(n));
        } else if (n == 0 || (errno != EINTR && errno != EAGAIN && errno != EWOULDBLOCK)) {
            return Written::never;
        } else if (errno != EINTR) {
            return Written::later;
        }
    }
    return Written::all;
}

LogOutput::Written LogOutput::settle() {
    std::string_view rest = rest_;
    auto written = write_some(rest);
    rest_.erase(0, rest_.size() - rest.size());
    if (written != Written::all || dropped_ == 0) {
        return written;
    }
    const std::string count =
        dress(LogLevel::warning, fmt::format("{} lines of this log were dropped: nobody took them", dropped_));
    std::string_view text = count;
    written = write_some(text);
    if (text.size() == count.size()) {
        return written;
    }
    dropped_ = 0;
    rest_ = text;
    return written;
}

void LogOutput::line(LogLevel level, std::string_view line) {
    const std::string whole = dress(level, line);
    bool tell = false;
    {
        const std::scoped_lock lock(mutex_);
        auto written = settle();
        std::string_view text = whole;
        if (written == Written::all) {
            written = write_some(text);
        }
        if (text.size() == whole.size()) {
            ++dropped_;
        } else {
            rest_ = text;
        }
        if (written == Written::later && !told_) {
            tell = told_ = true;
        }
    }
    if (tell && when_dropping_) {
        when_dropping_();
    }
}

bool LogOutput::catch_up() {
    const std::scoped_lock lock(mutex_);
    const auto written = settle();
    if (written != Written::later) {
        told_ = false;
        return true;
    }
    return false;
}

void LogOutput::finish() {
    if (!catch_up() && can_write_now(fd_, last_wait_ms)) {
        (void)catch_up();
    }
}

} // namespace vtpmd
