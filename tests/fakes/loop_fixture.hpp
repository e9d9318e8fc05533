// An event loop for one test: runs a coroutine to its end, or gives up after a bound that only a hang reaches.
#pragma once

#include "util/asio.hpp"
#include "util/clock.hpp"
#include "util/log.hpp"

#include <chrono>
#include <stdexcept>
#include <string>
#include <vector>

namespace vtpmd::test {

class Loop {
  public:
    asio::io_context io{1};
    SystemClock clock{io.get_executor()};
    std::vector<std::string> lines; ///< what was logged, at warning and above
    Log log{LogLevel::warning, [this](LogLevel, std::string_view line) { lines.emplace_back(line); }};

    /// Throws what the task throws, and std::runtime_error if it has not ended after `bound`.
    void run(Task<> task, std::chrono::seconds bound = std::chrono::seconds(60)) {
        bool done = false;
        std::exception_ptr thrown;
        asio::co_spawn(io, std::move(task), [&](std::exception_ptr e) {
            done = true;
            thrown = std::move(e);
            io.stop();
        });
        io.restart();
        io.run_for(bound);
        if (!done) {
            throw std::runtime_error("the test's task hangs");
        }
        if (thrown) {
            std::rethrow_exception(thrown);
        }
    }
    /// Runs what is ready and what that makes ready, until `condition` holds; false after the bound.
    template <typename Condition>
    bool run_until(Condition condition, std::chrono::seconds bound = std::chrono::seconds(60)) {
        auto end = std::chrono::steady_clock::now() + bound;
        io.restart();
        while (!condition()) {
            if (io.run_one_until(end) == 0) {
                return condition();
            }
        }
        return true;
    }
};

} // namespace vtpmd::test
