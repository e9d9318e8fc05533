// Runs coroutines of a test on a loop of its own, with bounded waits.
#pragma once

#include "fake_clock.hpp"
#include "util/asio.hpp"
#include "util/log.hpp"

#include <functional>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

namespace vtpmd::fakes {

/// A task that was started: cancel it, look whether it has ended.
template <typename T>
struct Started {
    asio::cancellation_signal signal;
    std::optional<T> value;
    std::exception_ptr thrown;
    bool done = false;
    void cancel() { signal.emit(asio::cancellation_type::terminal); }
};

class Loop {
  public:
    Loop()
        : clock(io.get_executor()) {}

    /// Runs what is ready, until nothing is or `rounds` handlers ran.
    void settle(std::size_t rounds = 100000) {
        io.restart();
        while (rounds-- > 0 && io.poll_one() > 0) {
        }
    }
    /// Runs the loop (real I/O, threads) until `done` or 20 s have passed.
    bool until(const std::function<bool()>& done) {
        const auto give_up = std::chrono::steady_clock::now() + std::chrono::seconds(20);
        while (!done()) {
            if (std::chrono::steady_clock::now() > give_up) {
                return false;
            }
            io.restart();
            if (io.poll() == 0) {
                io.run_one_for(std::chrono::milliseconds(1));
            }
        }
        return true;
    }

    template <typename T>
    std::shared_ptr<Started<T>> start(Task<T> task) {
        auto s = std::make_shared<Started<T>>();
        asio::co_spawn(io, std::move(task),
                       asio::bind_cancellation_slot(s->signal.slot(), [s](std::exception_ptr e, T v) {
                           s->thrown = std::move(e);
                           if (!s->thrown) {
                               s->value.emplace(std::move(v));
                           }
                           s->done = true;
                       }));
        return s;
    }
    std::shared_ptr<Started<bool>> start(Task<> task) { return start(as_bool(std::move(task))); }

    /// The task's value; time passes (fake) as far as the task sleeps when `let_time_pass`.
    template <typename T>
    T run(Task<T> task, bool let_time_pass = true) {
        auto s = start(std::move(task));
        if (!wait(*s, let_time_pass)) {
            throw std::runtime_error("a task of the test hangs");
        }
        if (s->thrown) {
            std::rethrow_exception(s->thrown);
        }
        return std::move(*s->value);
    }
    void run(Task<> task) { (void)run(as_bool(std::move(task))); }

    template <typename T>
    bool wait(Started<T>& s, bool let_time_pass = true) {
        return until([&] {
            if (!s.done && let_time_pass) {
                settle();
                if (!s.done && clock.next_due() > clock.now()) {
                    clock.advance(clock.next_due() - clock.now());
                }
            }
            return s.done;
        });
    }

    [[nodiscard]] bool logged(std::string_view part) const {
        for (const auto& l : lines) {
            if (l.find(part) != std::string::npos) {
                return true;
            }
        }
        return false;
    }

    asio::io_context io;
    FakeClock clock;
    std::vector<std::string> lines;
    Log log{LogLevel::debug, [this](LogLevel, std::string_view line) { lines.emplace_back(line); }};

  private:
    static Task<bool> as_bool(Task<> task) {
        co_await std::move(task);
        co_return true;
    }
};

} // namespace vtpmd::fakes
