// Runs coroutines of a RootOfTrust to their end, and keeps what was logged.
#pragma once

#include "hwtpm/root_of_trust.hpp"
#include "util/asio.hpp"
#include "util/log.hpp"

#include <exception>
#include <mutex>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

namespace vtpmd::test {

struct Loop {
    asio::io_context io{1};
    std::vector<std::string> lines;
    std::mutex lines_mutex; // the hardware thread logs too
    Log log{LogLevel::debug, [this](LogLevel, std::string_view line) {
                std::lock_guard lock(lines_mutex);
                lines.emplace_back(line);
            }};

    template <typename T>
    T run(Task<T> task) {
        std::optional<T> out;
        asio::co_spawn(io, std::move(task), [&](std::exception_ptr e, T value) {
            if (e) {
                std::rethrow_exception(e);
            }
            out.emplace(std::move(value));
        });
        io.restart();
        io.run();
        if (!out) {
            throw std::runtime_error("the task did not finish");
        }
        return std::move(*out);
    }
    void run(Task<> task) {
        asio::co_spawn(io, std::move(task), [&](std::exception_ptr e) {
            if (e) {
                std::rethrow_exception(e);
            }
        });
        io.restart();
        io.run();
    }
    bool logged(std::string_view part) {
        std::lock_guard lock(lines_mutex);
        for (const std::string& l : lines) {
            if (l.find(part) != std::string::npos) {
                return true;
            }
        }
        return false;
    }
};

/// Reserves and makes a counter.
inline Result<hwtpm::CounterRef> make_counter(Loop& loop, hwtpm::RootOfTrust& root) {
    auto reserved = loop.run(root.counter_reserve());
    return reserved ? loop.run(root.counter_create(*reserved)) : reserved;
}

} // namespace vtpmd::test
