// The log: one line an event, to standard error. Under systemd (JOURNAL_STREAM) lines carry the priority prefix <N> and
// no time; elsewhere they start with an RFC 3339 time in UTC. Who reads them, or does not, stops nobody
// (log_output.hpp).
//
// Levels by consequence: error, we failed a request; warning, a peer or guest did something wrong; info, life cycle;
// debug, the rest. Never buffers, authorisation values, keys or blobs.
//
// No peer can fill it: each place in the program that logs has a bound, which nothing but a flood reaches (line_bound);
// and what a peer or a guest causes at will goes through the _limited forms, with a RateLimit of whoever knows whose
// doing it is. Nor can a peer write lines of its own making: a line is printable text (text.hpp), cut at line_limit.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <fmt/format.h>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <utility>

namespace vtpmd {

class LogOutput;

enum class LogLevel { error, warning, info, debug };

/// A bucket of `burst` events that fills again within `interval`: so many at once, and no more than that over time.
/// allow() tells whether to write the line, and how many were held back before it.
class RateLimit {
  public:
    using time_point = std::chrono::steady_clock::time_point;
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
    [[nodiscard]] Verdict allow(time_point now);
    /// Whether allow() would; nothing is taken.
    [[nodiscard]] bool has_room(time_point now) const { return full_with_one_more(now) - now <= config_.interval; }

  private:
    [[nodiscard]] time_point full_with_one_more(time_point now) const;

    Config config_{};
    time_point full_at_{}; ///< when the bucket is full again, if nothing more is taken
    std::uint64_t suppressed_ = 0;
};

/// What one place in the program may log: two lines a second over time. A host of 1,000 vTPMs that starts stays below.
inline constexpr RateLimit::Config line_bound{.burst = 1000, .interval = std::chrono::seconds{500}};
/// A line is cut here. With its time it is one write that a pipe takes whole or not at all (PIPE_BUF).
inline constexpr std::size_t line_limit = 4000;

class Log {
  public:
    using Sink = std::function<void(LogLevel, std::string_view line)>;
    using time_point = RateLimit::time_point;

    /// To standard error.
    explicit Log(LogLevel level = LogLevel::info);
    Log(LogLevel level, std::shared_ptr<LogOutput> output);
    /// To a sink of the caller's (tests).
    Log(LogLevel level, Sink sink);

    template <typename... Args>
    void error(fmt::format_string<Args...> f, Args&&... args) const {
        put(LogLevel::error, f, fmt::make_format_args(args...));
    }
    template <typename... Args>
    void warning(fmt::format_string<Args...> f, Args&&... args) const {
        put(LogLevel::warning, f, fmt::make_format_args(args...));
    }
    template <typename... Args>
    void info(fmt::format_string<Args...> f, Args&&... args) const {
        put(LogLevel::info, f, fmt::make_format_args(args...));
    }
    template <typename... Args>
    void debug(fmt::format_string<Args...> f, Args&&... args) const {
        put(LogLevel::debug, f, fmt::make_format_args(args...));
    }

    /// Where `limit` allows it. The line says how many were held back before it.
    template <typename... Args>
    void error_limited(RateLimit& limit, time_point now, fmt::format_string<Args...> f, Args&&... args) const {
        put_limited({LogLevel::error, limit, now}, f, fmt::make_format_args(args...));
    }
    template <typename... Args>
    void warning_limited(RateLimit& limit, time_point now, fmt::format_string<Args...> f, Args&&... args) const {
        put_limited({LogLevel::warning, limit, now}, f, fmt::make_format_args(args...));
    }
    template <typename... Args>
    void info_limited(RateLimit& limit, time_point now, fmt::format_string<Args...> f, Args&&... args) const {
        put_limited({LogLevel::info, limit, now}, f, fmt::make_format_args(args...));
    }

    [[nodiscard]] LogLevel level() const noexcept { return level_; }

  private:
    struct Limited {
        LogLevel level;
        RateLimit& limit;
        time_point now;
    };
    /// One bound for each place that logs, which is known by its format string. Lines come from several threads.
    struct Places {
        std::mutex mutex;
        std::map<const char*, RateLimit> bounds;
    };

    void put(LogLevel level, fmt::string_view format, fmt::format_args args, std::uint64_t held_back = 0) const;
    void put_limited(const Limited& how, fmt::string_view format, fmt::format_args args) const;

    LogLevel level_;
    Sink sink_;
    std::shared_ptr<Places> places_ = std::make_shared<Places>();
};

} // namespace vtpmd
