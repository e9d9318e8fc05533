// Nobody reads the log: each way in which a write could wait. A test that fails here does not end.
#include "util/log_output.hpp"

#include "check.hpp"
#include "util/fd.hpp"

#include <array>
#include <csignal>
#include <cstdlib>
#include <fcntl.h>
#include <string>
#include <sys/socket.h>
#include <termios.h>

namespace util_log_output_test {

using namespace vtpmd;

struct Ends {
    UniqueFd read;
    UniqueFd write;
};

Ends make_pipe(int flags) {
    std::array<int, 2> fds{};
    REQUIRE(::pipe2(fds.data(), O_CLOEXEC) == 0);
    Ends ends{UniqueFd(fds[0]), UniqueFd(fds[1])};
    REQUIRE(::fcntl(ends.write.get(), F_SETPIPE_SZ, 4096) == 4096);
    REQUIRE(::fcntl(ends.write.get(), F_SETFL, flags) == 0);
    REQUIRE(::fcntl(ends.read.get(), F_SETFL, O_NONBLOCK) == 0);
    return ends;
}

Ends make_sockets() {
    std::array<int, 2> fds{};
    REQUIRE(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds.data()) == 0);
    REQUIRE(::fcntl(fds[0], F_SETFL, O_NONBLOCK) == 0);
    return {UniqueFd(fds[0]), UniqueFd(fds[1])};
}

Ends make_terminal(int flags) {
    UniqueFd master(::posix_openpt(O_RDWR | O_NOCTTY | O_NONBLOCK | O_CLOEXEC));
    REQUIRE(master);
    REQUIRE(::grantpt(master.get()) == 0);
    REQUIRE(::unlockpt(master.get()) == 0);
    UniqueFd slave(::open(::ptsname(master.get()), O_RDWR | O_NOCTTY | O_CLOEXEC | flags));
    REQUIRE(slave);
    termios raw{};
    REQUIRE(::tcgetattr(slave.get(), &raw) == 0);
    ::cfmakeraw(&raw);
    REQUIRE(::tcsetattr(slave.get(), TCSANOW, &raw) == 0);
    return {std::move(master), std::move(slave)};
}

/// Until there is nothing more.
std::string drain(int fd) {
    std::string text;
    std::array<char, 4096> part{};
    for (;;) {
        const ssize_t n = ::read(fd, part.data(), part.size());
        if (n <= 0) {
            return text;
        }
        text.append(part.data(), static_cast<std::size_t>(n));
    }
}

/// How many lines it tells of: those that are there, and those that it says were dropped.
std::size_t lines_told(const std::string& text) {
    constexpr std::string_view dropped = " lines of this log were dropped: nobody took them";
    std::size_t lines = 0;
    std::size_t from = 0;
    for (std::size_t end; (end = text.find('\n', from)) != std::string::npos; from = end + 1) {
        const std::string line = text.substr(from, end - from);
        lines += line.ends_with(dropped) ? std::stoul(line.substr(line.find(" warning: ") + 10)) : 1;
    }
    CHECK(from == text.size()); // whole lines
    return lines;
}

constexpr unsigned many = 20'000; // more than any buffer takes

/// Writes far too much, then reads: whole lines, the count, and every line after it.
void check_unread(const Ends& ends) {
    LogOutput output(ends.write.get());
    unsigned told = 0;
    output.when_dropping([&told] { ++told; });
    for (unsigned i = 0; i < many; ++i) {
        output.line(LogLevel::info, fmt::format("line {} of many", i));
    }
    CHECK(told == 1);
    CHECK_FALSE(output.catch_up());
    std::string text = drain(ends.read.get());
    CHECK(text.find("line 0 of many\n") != std::string::npos);
    CHECK(text.find(fmt::format("line {} of many\n", many - 1)) == std::string::npos);
    CHECK(output.catch_up());
    text += drain(ends.read.get());
    CHECK(lines_told(text) == many);
    output.line(LogLevel::info, "afterwards");
    CHECK(drain(ends.read.get()).find(" info: afterwards") != std::string::npos);
    CHECK(told == 1);
    // And again.
    for (unsigned i = 0; i < many; ++i) {
        output.line(LogLevel::info, "again");
    }
    CHECK(told == 2);
}

TEST_SUITE("util") {
    TEST_CASE("log: a pipe that nobody reads, opened by us and another's") {
        check_unread(make_pipe(O_NONBLOCK));
        check_unread(make_pipe(0));
    }
    TEST_CASE("log: a socket that nobody reads") { check_unread(make_sockets()); }
    TEST_CASE("log: a terminal that nobody reads, opened by us and another's") {
        check_unread(make_terminal(O_NONBLOCK));
        check_unread(make_terminal(0));
    }
    TEST_CASE("log: a terminal that is stopped") {
        for (int flags : {O_NONBLOCK, 0}) {
            const Ends ends = make_terminal(flags);
            LogOutput output(ends.write.get());
            REQUIRE(::tcflow(ends.write.get(), TCOOFF) == 0);
            for (unsigned i = 0; i < many; ++i) {
                output.line(LogLevel::info, "stopped");
            }
            CHECK_FALSE(output.catch_up());
            REQUIRE(::tcflow(ends.write.get(), TCOON) == 0);
            std::string text = drain(ends.read.get());
            CHECK(output.catch_up());
            text += drain(ends.read.get());
            CHECK(text.find("lines of this log were dropped") != std::string::npos);
        }
    }
    TEST_CASE("log: a reader that has gone, a full device") {
        const auto old = std::signal(SIGPIPE, SIG_IGN); // NOLINT(bugprone-signal-handler): ignoring, not handling
        for (bool pipe : {true, false}) {
            Ends ends = pipe ? make_pipe(0) : make_sockets();
            LogOutput output(ends.write.get());
            unsigned told = 0;
            output.when_dropping([&told] { ++told; });
            ends.read.reset();
            for (unsigned i = 0; i < many; ++i) {
                output.line(LogLevel::info, "into the void");
            }
            CHECK(told == 0); // nothing to wait for
            CHECK(output.catch_up());
            output.finish();
        }
        const UniqueFd full(::open("/dev/full", O_WRONLY | O_CLOEXEC));
        REQUIRE(full);
        LogOutput output(full.get());
        for (unsigned i = 0; i < many; ++i) {
            output.line(LogLevel::info, "there is no room");
        }
        CHECK(output.catch_up());
        (void)std::signal(SIGPIPE, old);
    }
    TEST_CASE("log: what fits is there at once, and at the end there is nothing to do") {
        const Ends ends = make_pipe(O_NONBLOCK);
        LogOutput output(ends.write.get());
        output.line(LogLevel::error, "one");
        output.line(LogLevel::debug, "two");
        const std::string text = drain(ends.read.get());
        CHECK(text.find("Z error: one\n") != std::string::npos);
        CHECK(text.find("Z debug: two\n") != std::string::npos);
        output.finish();
        CHECK(drain(ends.read.get()).empty());
    }
}

} // namespace util_log_output_test
