#include "util/task_group.hpp"

#include <boost/system/system_error.hpp>
#include <cstdlib>

namespace vtpmd {

TaskGroup::TaskGroup(asio::any_io_executor executor, const Log& log)
    : executor_(executor)
    , log_(log)
    , emptied_(executor, asio::steady_timer::time_point::max()) {}

TaskGroup::~TaskGroup() {
    if (!entries_.empty()) {
        for (const Entry& e : entries_) {
            log_.error("task group destroyed while '{}' is running", e.name);
        }
        std::abort();
    }
}

void TaskGroup::spawn(std::string name, Task<> task) {
    auto it = entries_.emplace(entries_.end());
    it->name = std::move(name);
    asio::co_spawn(executor_, std::move(task),
                   asio::bind_cancellation_slot(it->signal.slot(),
                                                [this, it](std::exception_ptr e) { finished(it, std::move(e)); }));
}

void TaskGroup::finished(std::list<Entry>::iterator it, std::exception_ptr e) {
    std::string name = std::move(it->name);
    entries_.erase(it);
    if (e) {
        try {
            std::rethrow_exception(e);
        } catch (const boost::system::system_error& error) {
            if (error.code() == asio::error::operation_aborted) {
                e = nullptr;
            } else {
                log_.error("{}: {}", name, error.what());
            }
        } catch (const std::exception& error) {
            log_.error("{}: {}", name, error.what());
        } catch (...) {
            log_.error("{}: unknown exception", name);
        }
    }
    if (e) {
        if (!failure_) {
            failure_ = e;
        }
        if (on_failure_) {
            on_failure_(name);
        }
    }
    if (entries_.empty()) {
        emptied_.cancel();
    }
}

void TaskGroup::cancel() {
    // A task that ends inside emit() removes itself: take the next one first.
    for (auto it = entries_.begin(); it != entries_.end();) {
        auto next = std::next(it);
        it->signal.emit(asio::cancellation_type::terminal);
        it = next;
    }
}

Task<> TaskGroup::join() {
    co_await asio::this_coro::reset_cancellation_state(asio::disable_cancellation());
    while (!entries_.empty()) {
        co_await emptied_.async_wait(use_tuple);
    }
}

std::vector<std::string> TaskGroup::names() const {
    std::vector<std::string> out;
    for (const Entry& e : entries_) {
        out.push_back(e.name);
    }
    return out;
}

} // namespace vtpmd
