// The log: one line an event, to standard error. Under systemd (JOURNAL_STREAM) lines carry the priority prefix <N> and
// no time; elsewhere they start with an RFC 3339 time in UTC.
//
// Levels by consequence: error, we failed a request; warning, a peer or guest did something wrong (rate-limited by the
// caller with RateLimit); info, life cycle; debug, the rest. Never buffers, authorisation values, keys or blobs.
#pragma once

#include <chrono>
#include <cstdint>
#include <fmt/format.h>
#include <functional>
#include <string>
#include <string_view>
#include <utility>

namespace vtpmd {

enum class LogLevel { error, warning, info, debug };

class Log {
  public:
    using Sink = std::function<void(LogLevel, std::string_view line)>;

    /// To standard error.
    explicit Log(LogLevel level = LogLevel::info);
    /// To a sink of the caller's (tests).
    Log(LogLevel level, Sink sink);

    template <typename... Args>
    void error(fmt::format_string<Args...> f, Args&&... args) const {
        write(LogLevel::error, f, std::forward<Args>(args)...);
    }
    template <typename... Args>
    void warning(fmt::format_string<Args...> f, Args&&... args) const {
        write(LogLevel::warning, f, std::forward<Args>(args)...);
    }
    template <typename... Args>
    void info(fmt::format_string<Args...> f, Args&&... args) const {
        write(LogLevel::info, f, std::forward<Args>(args)...);
    }
    template <typename... Args>
    void debug(fmt::format_string<Args...> f, Args&&... args) const {
        write(LogLevel::debug, f, std::forward<Args>(args)...);
    }

    [[nodiscard]] LogLevel level() const noexcept { return level_; }

  private:
    template <typename... Args>
    void write(LogLevel level, fmt::format_string<Args...> f, Args&&... args) const {
        if (level <= level_) {
            sink_(level, fmt::format(f, std::forward<Args>(args)...));
        }
    }

    LogLevel level_;
    Sink sink_;
};

/// Lets at most `burst` events through per interval, so that a guest cannot fill the log. allow() tells whether to
/// write the line, and how many were held back before it.
class RateLimit {
  public:
    struct Config {
        unsigned burst = 5;
        std::chrono::seconds interval{60};
    };
    RateLimit() = default;
    explicit RateLimit(Config config)
        : config_(config) {}

    struct Verdict {
        bool allowed;
        std::uint64_t suppressed; ///< lines held back since the last one allowed
    };
    [[nodiscard]] Verdict allow(std::chrono::steady_clock::time_point now);

  private:
    Config config_{};
    std::chrono::steady_clock::time_point window_start_{};
    unsigned in_window_ = 0;
    std::uint64_t suppressed_ = 0;
    bool started_ = false;
};

} // namespace vtpmd
