// Structured concurrency: every coroutine lives in a task group, whose destructor asserts that it is empty.
//
//   TaskGroup group(executor, log);
//   group.spawn("accept", accept_loop());
//   ...
//   group.cancel();             // asks every task to stop
//   co_await group.join();      // waits for all of them; only then may what they use be destroyed
#pragma once

#include "util/asio.hpp"
#include "util/log.hpp"

#include <exception>
#include <functional>
#include <list>
#include <string>
#include <vector>

namespace vtpmd {

class TaskGroup {
  public:
    TaskGroup(asio::any_io_executor executor, const Log& log);
    TaskGroup(const TaskGroup&) = delete;
    TaskGroup& operator=(const TaskGroup&) = delete;
    /// Terminates the program if a task is still alive: its captures are about to dangle.
    ~TaskGroup();

    /// Starts the task on the group's executor. An exception that escapes the task is logged and kept (see failure()),
    /// and on_failure is called; cancellation (operation_aborted) is not a failure.
    void spawn(std::string name, Task<> task);
    /// Asks every task to stop (terminal cancellation). Tasks spawned later are not affected.
    void cancel();
    /// Until the group is empty. Not itself cancellable: joining is what makes destruction safe.
    Task<> join();

    [[nodiscard]] bool empty() const noexcept { return entries_.empty(); }
    [[nodiscard]] std::size_t size() const noexcept { return entries_.size(); }
    [[nodiscard]] std::vector<std::string> names() const;
    [[nodiscard]] std::exception_ptr failure() const noexcept { return failure_; }
    /// Called, once for each, when a task ends by an exception.
    void on_failure(std::function<void(const std::string& name)> f) { on_failure_ = std::move(f); }

  private:
    struct Entry {
        std::string name;
        asio::cancellation_signal signal;
    };
    void finished(std::list<Entry>::iterator it, std::exception_ptr e);

    asio::any_io_executor executor_;
    const Log& log_;

    std::list<Entry> entries_;
    asio::steady_timer emptied_; ///< never expires; cancelled when the last task ends
    std::exception_ptr failure_;
    std::function<void(const std::string&)> on_failure_;
};

} // namespace vtpmd
