// One coroutine waits, others wake it. The wake is sticky: one that comes before the wait is not lost, several count as
// one. Costs a post to the loop, no timer and no descriptor, so a thousand idle waiters cost nothing.
#pragma once

#include "util/asio.hpp"

#include <boost/asio/experimental/channel.hpp>
#include <boost/asio/experimental/channel_error.hpp>

namespace vtpmd {

class Wake {
  public:
    explicit Wake(const asio::any_io_executor& executor)
        : token_(executor, 1) {}

    /// Wakes the waiter, or the next one.
    void set() { (void)token_.try_send(error_code{}); }
    /// Ends this and every later wait with asio::error::eof.
    void close() {
        clear();
        closed_ = true;
        token_.cancel();
    }
    void clear() {
        (void)token_.try_receive([](const error_code&) {});
    }
    [[nodiscard]] bool is_set() const noexcept { return token_.ready(); }
    [[nodiscard]] bool closed() const noexcept { return closed_; }

    /// Until set(): no error. eof after close(); operation_aborted when the awaiting task is cancelled. One waiter at a
    /// time.
    Task<error_code> wait() {
        if (closed_) {
            co_return error_code{asio::error::eof};
        }
        auto [ec] = co_await token_.async_receive(use_tuple);
        if (ec) {
            co_return closed_ ? error_code{asio::error::eof} : error_code{asio::error::operation_aborted};
        }
        co_return error_code{};
    }

  private:
    asio::experimental::channel<void(error_code)> token_;
    bool closed_ = false;
};

} // namespace vtpmd
