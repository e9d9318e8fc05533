// A process of the simulated host: a loop that is stepped by hand, a clock, and whether it lives. What is dead is let run to its
// end with a disk, a TPM and links that do nothing any more: nothing that it does then is seen by anybody.
#pragma once

#include "fake_clock.hpp"
#include "util/log.hpp"
#include "util/worker.hpp"

#include <deque>
#include <functional>
#include <string>
#include <vector>

namespace vtpmd::sim {

struct Process {
    explicit Process(std::string its_name, std::function<void(const std::string&)> tell)
        : name(std::move(its_name))
        , clock(io.get_executor())
        , log(LogLevel::info, [this, tell = std::move(tell)](LogLevel level, std::string_view line) {
            tell(fmt::format("{}: {}{}", name, level == LogLevel::error ? "ERROR " : "", line));
        }) {
        asio::make_service<WorkOnLoop>(io);
    }

    ~Process() {
        for (const auto& tell : at_end) {
            tell();
        }
    }
    Process(const Process&) = delete;
    Process& operator=(const Process&) = delete;

    const std::string name;
    asio::io_context io;
    fakes::FakeClock clock;
    Log log;
    bool dead = false;
    std::vector<std::function<void()>> at_end; ///< while the loop is still there

    /// Runs one handler; false: nothing is ready.
    bool turn() {
        if (io.stopped()) {
            io.restart();
        }
        return io.poll_one() > 0;
    }
    [[nodiscard]] asio::any_io_executor executor() { return io.get_executor(); }
};

} // namespace vtpmd::sim
