// agent TERMINAL: does in a domain of the lab, or in a guest of tests/qemu, what the test asks for (lab.py). A program and no
// script: on an emulated processor each process costs some 40 ms, and a test asks for hundreds of things. Linked with none of
// the product's code.
//
// It says "@@ ready", then reads lines "NUMBER SECONDS REQUEST" and answers each with "@@ NUMBER STATUS OUTPUT", the output in
// base64, within SECONDS and the little that it takes to end a process. The requests:
//   script BASE64            a shell script, without input; STATUS is the shell's, OUTPUT what it and those it left behind
//                            have written until it ended, errors among it
//   tpm WHERE BASE64         a TPM command, to a character device or to a TCP port of this domain; OUTPUT is its answer, or with
//                            STATUS 1 why there is none
//   guest DOMAIN SECONDS REQUEST
//                            (in dom0) has the agent of a guest do it, over the guest's console, and answers what that answers.
//                            find-guest has found the console; what else is said on it goes to a log
//   guest DOMAIN             waits for the agent of a new guest
// What could not be done at all has "failed" for its STATUS, and OUTPUT says why. NUMBER 0 ends the agent.
#include <algorithm>
#include <array>
#include <cerrno>
#include <charconv>
#include <chrono>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fcntl.h>
#include <fstream>
#include <initializer_list>
#include <netinet/in.h>
#include <openssl/evp.h>
#include <poll.h>
#include <spawn.h>
#include <sstream>
#include <stdexcept>
#include <string>
#include <string_view>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <system_error>
#include <termios.h>
#include <unistd.h>
#include <vector>

namespace {

using Clock = std::chrono::steady_clock;
using Deadline = Clock::time_point;
constexpr Deadline no_deadline = Deadline::max();
constexpr auto end_patience = std::chrono::seconds(1); // from SIGTERM to SIGKILL, and from that to giving up
constexpr int status_of_signal = 128;                  // and the signal's number, as shells have it
constexpr int status_of_error = 1;
constexpr std::size_t tpm_answer_limit = 4096;
constexpr std::size_t read_size = 4096;
constexpr std::string_view mark = "@@ "; // before what agents say; base64 has none of it

[[noreturn]] void fail(const std::string& what, int error = errno) {
    throw std::system_error(error, std::generic_category(), what);
}

class Descriptor {
  public:
    Descriptor(int fd, const std::string& what)
        : fd_(fd) {
        if (fd < 0) {
            fail(what);
        }
    }
    ~Descriptor() { ::close(fd_); }
    Descriptor(const Descriptor&) = delete;
    Descriptor& operator=(const Descriptor&) = delete;
    [[nodiscard]] int get() const { return fd_; }

  private:
    int fd_;
};

/// Whether the descriptor is ready before the deadline.
bool wait_for(const Descriptor& fd, short events, Deadline deadline) {
    pollfd p{fd.get(), events, 0};
    for (;;) {
        int timeout = -1;
        if (deadline != no_deadline) {
            const auto left = std::chrono::ceil<std::chrono::milliseconds>(deadline - Clock::now()).count();
            timeout = static_cast<int>(std::max<std::int64_t>(left, 0));
        }
        if (const int n = ::poll(&p, 1, timeout); n >= 0) {
            return n > 0;
        }
        if (errno != EINTR) {
            fail("poll");
        }
    }
}

// ------------------------------------------------------------------------------------------------ base64

const unsigned char* as_bytes(const std::string& text) { return reinterpret_cast<const unsigned char*>(text.data()); }

std::string to_base64(const std::string& data) {
    std::string out((data.size() + 2) / 3 * 4 + 1, '\0'); // with the terminator that OpenSSL writes
    const int size =
        EVP_EncodeBlock(reinterpret_cast<unsigned char*>(out.data()), as_bytes(data), static_cast<int>(data.size()));
    out.resize(static_cast<std::size_t>(size));
    return out;
}

std::string from_base64(const std::string& text) {
    std::string out(text.size(), '\0');
    const int size =
        EVP_DecodeBlock(reinterpret_cast<unsigned char*>(out.data()), as_bytes(text), static_cast<int>(text.size()));
    const auto padding = static_cast<int>(std::count(text.begin(), text.end(), '=')); // decoded as bytes of zero
    if (size < padding) {
        throw std::runtime_error("this is no base64: " + text);
    }
    out.resize(static_cast<std::size_t>(size - padding));
    return out;
}

// ------------------------------------------------------------------------------------------------ terminals

/// Lines over a terminal, which it makes raw: what is written is what the other end reads, and nothing is echoed.
class Terminal {
  public:
    explicit Terminal(const std::string& path)
        : path_(path)
        , fd_(::open(path.c_str(), O_RDWR | O_NOCTTY | O_NONBLOCK | O_CLOEXEC), path) {
        termios settings{};
        if (::tcgetattr(fd_.get(), &settings) != 0) {
            fail(path);
        }
        ::cfmakeraw(&settings);
        settings.c_cc[VMIN] = 1;
        settings.c_cc[VTIME] = 0;
        if (::tcsetattr(fd_.get(), TCSANOW, &settings) != 0) {
            fail(path);
        }
    }

    void write(std::string_view text, Deadline deadline) {
        while (!text.empty()) {
            wait(POLLOUT, deadline);
            const ssize_t n = ::write(fd_.get(), text.data(), text.size());
            if (n > 0) {
                text.remove_prefix(static_cast<std::size_t>(n));
            } else if (errno != EAGAIN && errno != EINTR) {
                fail(path_);
            }
        }
    }

    std::string read_line(Deadline deadline) {
        std::size_t end = 0;
        for (std::size_t seen = 0; (end = buffer_.find('\n', seen)) == std::string::npos;) {
            seen = buffer_.size();
            wait(POLLIN, deadline);
            std::array<char, read_size> data; // NOLINT(cppcoreguidelines-pro-type-member-init): read() fills it
            const ssize_t n = ::read(fd_.get(), data.data(), data.size());
            if (n > 0) {
                buffer_.append(data.data(), static_cast<std::size_t>(n));
            } else if (n == 0) {
                throw std::runtime_error(path_ + ": nobody is at the other end any more");
            } else if (errno != EAGAIN && errno != EINTR) {
                fail(path_);
            }
        }
        std::string line = buffer_.substr(0, end);
        buffer_.erase(0, end + 1);
        return line;
    }

    /// What was read beyond the last line.
    [[nodiscard]] const std::string& rest() const { return buffer_; }

  private:
    void wait(short events, Deadline deadline) const {
        if (!wait_for(fd_, events, deadline)) {
            fail(path_, ETIMEDOUT);
        }
    }

    std::string path_;
    Descriptor fd_;
    std::string buffer_;
};

// ------------------------------------------------------------------------------------------------ processes

/// A file without a name, that a process writes to. No pipe: what a script leaves running keeps it open.
class Output {
  public:
    [[nodiscard]] int get() const { return fd_.get(); }
    [[nodiscard]] std::string text() const {
        std::string out;
        std::array<char, read_size> data; // NOLINT(cppcoreguidelines-pro-type-member-init): pread() fills it
        ssize_t n = 0;
        while ((n = ::pread(fd_.get(), data.data(), data.size(), static_cast<off_t>(out.size()))) > 0) {
            out.append(data.data(), static_cast<std::size_t>(n));
        }
        if (n < 0) {
            fail("reading a process's output");
        }
        return out;
    }

  private:
    Descriptor fd_{::memfd_create("output", MFD_CLOEXEC), "memfd_create"};
};

/// A child's status as a shell has it. At the deadline it is told to end, and then made to.
int wait_child(pid_t pid, Deadline deadline) {
    const Descriptor child(static_cast<int>(::syscall(SYS_pidfd_open, pid, 0U)), "pidfd_open");
    bool ended = wait_for(child, POLLIN, deadline);
    for (const int sig : {SIGTERM, SIGKILL}) {
        if (!ended) {
            ::kill(pid, sig);
            ended = wait_for(child, POLLIN, Clock::now() + end_patience);
        }
    }
    if (!ended) {
        throw std::runtime_error("process " + std::to_string(pid) + " does not even end when it is killed");
    }
    int status = 0;
    if (::waitpid(pid, &status, 0) != pid) {
        fail("waitpid");
    }
    return WIFSIGNALED(status) ? status_of_signal + WTERMSIG(status) : WEXITSTATUS(status);
}

std::string run_script(std::string script, Deadline deadline) {
    const Output output;
    posix_spawn_file_actions_t files{};
    posix_spawn_file_actions_init(&files);
    posix_spawn_file_actions_addopen(&files, STDIN_FILENO, "/dev/null", O_RDONLY, 0);
    posix_spawn_file_actions_adddup2(&files, output.get(), STDOUT_FILENO);
    posix_spawn_file_actions_adddup2(&files, output.get(), STDERR_FILENO);
    posix_spawnattr_t attributes{};
    posix_spawnattr_init(&attributes);
    sigset_t signals{};
    sigfillset(&signals);
    posix_spawnattr_setsigdefault(&attributes, &signals);
    sigemptyset(&signals);
    posix_spawnattr_setsigmask(&attributes, &signals);
    posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGDEF | POSIX_SPAWN_SETSIGMASK);
    std::string shell = "/bin/sh";
    std::string option = "-c"; // the shell itself becomes the script's last command
    std::array<char*, 4> arguments{shell.data(), option.data(), script.data(), nullptr};
    pid_t pid = 0;
    const int error = ::posix_spawn(&pid, shell.c_str(), &files, &attributes, arguments.data(), environ);
    posix_spawnattr_destroy(&attributes);
    posix_spawn_file_actions_destroy(&files);
    if (error != 0) {
        fail(shell, error);
    }
    const int status = wait_child(pid, deadline);
    return std::to_string(status) + " " + to_base64(output.text());
}

// ------------------------------------------------------------------------------------------------ TPM commands

std::string read_some(const Descriptor& fd, const std::string& what) {
    std::string data(tpm_answer_limit, '\0');
    const ssize_t n = ::read(fd.get(), data.data(), data.size());
    if (n < 0) {
        fail(what);
    }
    data.resize(static_cast<std::size_t>(n));
    return data;
}

std::string send_to_device(const std::string& path, const std::string& command) {
    const Descriptor device(::open(path.c_str(), O_RDWR | O_CLOEXEC), path);
    if (::write(device.get(), command.data(), command.size()) != static_cast<ssize_t>(command.size())) {
        fail(path);
    }
    return read_some(device, path);
}

std::string send_to_port(std::uint16_t port, const std::string& command) {
    const std::string what = "port " + std::to_string(port);
    const Descriptor sock(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), what);
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(port);
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (::connect(sock.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)) != 0 ||
        ::send(sock.get(), command.data(), command.size(), MSG_NOSIGNAL) != static_cast<ssize_t>(command.size()) ||
        ::shutdown(sock.get(), SHUT_WR) != 0) {
        fail(what);
    }
    std::string answer;
    for (std::string part; !(part = read_some(sock, what)).empty();) {
        answer += part;
    }
    return answer;
}

std::string send_command(const std::string& where, const std::string& command) {
    if (where.starts_with('/')) {
        return send_to_device(where, command);
    }
    std::uint16_t port = 0;
    const auto [end, error] = std::from_chars(where.data(), where.data() + where.size(), port);
    if (error != std::errc() || end != where.data() + where.size()) {
        throw std::runtime_error("neither a device nor a port: " + where);
    }
    return send_to_port(port, command);
}

/// In a process of its own: drivers of TPMs wait in write(), whatever flags their device is opened with, and the kernel's
/// poll() of one waits as long. Without exec that costs next to nothing.
std::string run_command(const std::string& where, const std::string& command, Deadline deadline) {
    const Output output;
    const pid_t pid = ::fork();
    if (pid < 0) {
        fail("fork");
    }
    if (pid == 0) {
        std::string text;
        int status = EXIT_SUCCESS;
        try {
            text = send_command(where, command);
        } catch (const std::exception& e) {
            text = e.what();
            status = status_of_error;
        }
        const bool written = ::write(output.get(), text.data(), text.size()) == static_cast<ssize_t>(text.size());
        ::_exit(written ? status : status_of_error);
    }
    const int status = wait_child(pid, deadline);
    return std::to_string(status) + " " + to_base64(output.text());
}

// ------------------------------------------------------------------------------------------------ guests

/// What a guest's agent answers to a request, or that it is there if there is none.
std::string ask_guest(const std::string& domain, const std::string& number, const std::string& request,
                      Deadline deadline) {
    std::string terminal;
    if (!std::getline(std::ifstream("/run/" + domain + ".tty"), terminal)) {
        throw std::runtime_error("nobody has found the console of " + domain);
    }
    Terminal console(terminal);
    std::ofstream log;
    log.exceptions(std::ios::badbit | std::ios::failbit);
    log.open("/run/log/" + domain + ".console", std::ios::app);
    std::string wanted(mark);
    wanted += request.empty() ? "ready" : number + " ";
    if (!request.empty()) {
        console.write(number + " " + request + "\n", deadline);
    }
    for (;;) {
        const std::string line = console.read_line(deadline);
        const std::size_t at = line.rfind(wanted); // a kernel's message may stand before it
        if (at == std::string::npos) {
            log << line << '\n' << std::flush;
            continue;
        }
        log << line.substr(0, at) << '\n' << console.rest();
        return request.empty() ? "0" : line.substr(at + wanted.size());
    }
}

// ------------------------------------------------------------------------------------------------ requests

std::string obey(const std::string& number, Deadline deadline, std::istream& words) {
    std::string verb;
    std::string where;
    std::string text;
    words >> verb;
    if (verb == "script" && words >> text) {
        return run_script(from_base64(text), deadline);
    }
    if (verb == "tpm" && words >> where >> text) {
        return run_command(where, from_base64(text), deadline);
    }
    if (verb == "guest" && words >> where) {
        std::getline(words >> std::ws, text);
        return ask_guest(where, number, text, deadline);
    }
    throw std::runtime_error("this is no request: " + verb);
}

void serve(Terminal& terminal) {
    terminal.write(std::string(mark) + "ready\n", no_deadline);
    for (;;) {
        std::istringstream words(terminal.read_line(no_deadline));
        unsigned long number = 0;
        unsigned seconds = 0;
        if (!(words >> number >> seconds)) {
            continue; // noise
        }
        if (number == 0) {
            return;
        }
        std::string answer;
        try {
            answer = obey(std::to_string(number), Clock::now() + std::chrono::seconds(seconds), words);
        } catch (const std::exception& e) {
            answer = "failed " + to_base64(e.what());
        }
        terminal.write(std::string(mark) + std::to_string(number) + " " + answer + "\n", no_deadline);
    }
}

} // namespace

int main(int argc, char** argv) {
    if (argc != 2) {
        std::fprintf(stderr, "agent TERMINAL\n");
        return EXIT_FAILURE;
    }
    try {
        Terminal terminal(argv[1]);
        serve(terminal);
    } catch (const std::exception& e) {
        std::fprintf(stderr, "agent: %s\n", e.what());
        return EXIT_FAILURE;
    }
}
