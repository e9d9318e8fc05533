#include "util/log.hpp"

#include "util/log_output.hpp"
#include "util/text.hpp"

#include <algorithm>
#include <unistd.h>

namespace vtpmd {

Log::Log(LogLevel level)
    : Log(level, std::make_shared<LogOutput>(STDERR_FILENO)) {}

Log::Log(LogLevel level, std::shared_ptr<LogOutput> output)
    : Log(level, [to = std::move(output)](LogLevel l, std::string_view line) { to->line(l, line); }) {}

Log::Log(LogLevel level, Sink sink)
    : level_(level)
    , sink_(std::move(sink)) {}

void Log::put(LogLevel level, fmt::string_view format, fmt::format_args args, std::uint64_t held_back) const {
    if (level > level_) {
        return;
    }
    if (level != LogLevel::debug) { // who asks for these wants them all
        const std::scoped_lock lock(places_->mutex);
        const auto verdict = places_->bounds.try_emplace(format.data(), line_bound)
                                 .first->second.allow(std::chrono::steady_clock::now());
        if (!verdict.allowed) {
            return;
        }
        held_back += verdict.suppressed;
    }
    std::string line = printable(fmt::vformat(format, args), line_limit);
    if (held_back > 0) {
        line += fmt::format(" ({} such lines held back)", held_back);
    }
    sink_(level, line);
}

void Log::put_limited(const Limited& how, fmt::string_view format, fmt::format_args args) const {
    if (how.level > level_) {
        return;
    }
    if (const auto verdict = how.limit.allow(how.now); verdict.allowed) {
        put(how.level, format, args, verdict.suppressed);
    }
}

RateLimit::Verdict RateLimit::allow(time_point now) {
    if (!has_room(now)) {
        ++suppressed_;
        return {false, suppressed_};
    }
    full_at_ = full_with_one_more(now);
    return {true, std::exchange(suppressed_, 0)};
}

RateLimit::time_point RateLimit::full_with_one_more(time_point now) const {
    const std::chrono::nanoseconds interval = config_.interval;
    return std::max(full_at_, now) + interval / std::max(config_.burst, 1U);
}

} // namespace vtpmd
