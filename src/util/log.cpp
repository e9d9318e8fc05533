#include "util/log.hpp"

#include <cstdlib>
#include <ctime>
#include <unistd.h>

namespace vtpmd {

namespace {

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

void write_stderr(bool journal, LogLevel level, std::string_view line) {
    std::string text;
    if (journal) {
        text = fmt::format("<{}>{}\n", priority(level), line);
    } else {
        timespec now{};
        tm parts{};
        clock_gettime(CLOCK_REALTIME, &now);
        gmtime_r(&now.tv_sec, &parts);
        text = fmt::format("{:04}-{:02}-{:02}T{:02}:{:02}:{:02}.{:03}Z {}: {}\n", parts.tm_year + 1900,
                           parts.tm_mon + 1, parts.tm_mday, parts.tm_hour, parts.tm_min, parts.tm_sec,
                           now.tv_nsec / 1'000'000, name(level), line);
    }
    // One write a line, so that lines of several processes do not mix; a full or closed pipe must not stop a vTPM.
    (void)!::write(STDERR_FILENO, text.data(), text.size());
}

} // namespace

Log::Log(LogLevel level)
    : level_(level)
    , sink_([journal = std::getenv("JOURNAL_STREAM") != nullptr](LogLevel l, std::string_view line) {
        write_stderr(journal, l, line);
    }) {}

Log::Log(LogLevel level, Sink sink)
    : level_(level)
    , sink_(std::move(sink)) {}

RateLimit::Verdict RateLimit::allow(std::chrono::steady_clock::time_point now) {
    if (!started_ || now - window_start_ >= config_.interval) {
        started_ = true;
        window_start_ = now;
        in_window_ = 0;
    }
    if (in_window_ >= config_.burst) {
        ++suppressed_;
        return {false, suppressed_};
    }
    ++in_window_;
    return {true, std::exchange(suppressed_, 0)};
}

} // namespace vtpmd
