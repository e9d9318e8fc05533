#include "util/log.hpp"

#include "check.hpp"

#include <string>
#include <vector>

namespace util_log_test {

using namespace vtpmd;
using namespace std::chrono_literals;

struct Kept {
    std::vector<std::string> lines;
    Log log{LogLevel::info, [this](LogLevel, std::string_view line) { lines.emplace_back(line); }};
};

TEST_SUITE("util") {
    TEST_CASE("log: a limit lets a burst through, then one for each part of the interval") {
        RateLimit limit({.burst = 5, .interval = 60s});
        const RateLimit::time_point start{1000s};
        for (unsigned i = 0; i < 5; ++i) {
            CHECK(limit.allow(start).allowed);
        }
        CHECK_FALSE(limit.allow(start).allowed);
        CHECK(limit.allow(start + 11s).suppressed == 2);
        auto next = limit.allow(start + 12s);
        CHECK(next.allowed);
        CHECK(next.suppressed == 2);
        CHECK_FALSE(limit.allow(start + 12s).allowed);
        // Full again after an interval of rest, and never fuller.
        for (unsigned i = 0; i < 5; ++i) {
            CHECK(limit.allow(start + 1000s).allowed);
        }
        CHECK_FALSE(limit.allow(start + 1000s).allowed);
    }
    TEST_CASE("log: over a long time there is no more than the limit, whatever the rate") {
        RateLimit limit({.burst = 5, .interval = 60s});
        unsigned lines = 0;
        for (int ms = 0; ms < 600'000; ms += 7) {
            lines += limit.allow(RateLimit::time_point{std::chrono::milliseconds(ms)}).allowed ? 1 : 0;
        }
        CHECK(lines >= 50);
        CHECK(lines <= 55);
    }
    TEST_CASE("log: what is held back is said with the next line") {
        Kept kept;
        RateLimit limit({.burst = 1, .interval = 10s});
        const RateLimit::time_point start{1000s};
        for (unsigned i = 0; i < 4; ++i) {
            kept.log.warning_limited(limit, start, "guest {}", i);
        }
        kept.log.error_limited(limit, start + 10s, "guest {}", 9);
        CHECK(kept.lines == std::vector<std::string>{"guest 0", "guest 9 (3 such lines held back)"});
    }
    TEST_CASE("log: no place in the program can flood it, and none takes another's share") {
        Kept kept;
        for (unsigned i = 0; i < 3 * line_bound.burst; ++i) {
            kept.log.info("a peer did this {} times", i);
            RateLimit fresh; // of a peer that connects again
            kept.log.warning_limited(fresh, RateLimit::time_point{1000s}, "or that {} times", i);
        }
        CHECK(kept.lines.size() >= 2 * line_bound.burst);
        CHECK(kept.lines.size() <= 2 * line_bound.burst + 60); // two a second
        kept.log.error("another place");
        CHECK(kept.lines.back() == "another place");
    }
    TEST_CASE("log: a peer writes no line of its own, no escape sequence, no malformed text") {
        Kept kept;
        kept.log.info("it said: {}", "x\nerror: forged\x1b[31m\x9b"
                                     "31m\xff \xe2\x80\xae");
        CHECK(kept.lines.back() == "it said: x\\x0aerror: forged\\x1b[31m\\x9b31m\\xff \\xe2\\x80\\xae");
        kept.log.info("vTPM {}", "Zürich 日本語");
        CHECK(kept.lines.back() == "vTPM Zürich 日本語");
    }
    TEST_CASE("log: a line has an end") {
        Kept kept;
        kept.log.info("{}", std::string(100'000, 'x'));
        CHECK(kept.lines.back().size() == line_limit + 3);
    }
    TEST_CASE("log: what the level leaves out costs nothing of a bound") {
        Kept kept;
        RateLimit limit({.burst = 1, .interval = 10s});
        const Log quiet(LogLevel::error, [](LogLevel, std::string_view) {});
        quiet.warning_limited(limit, RateLimit::time_point{1000s}, "not written");
        kept.log.warning_limited(limit, RateLimit::time_point{1000s}, "written");
        CHECK(kept.lines == std::vector<std::string>{"written"});
    }
}

} // namespace util_log_test
