// One coroutine waits for news, others bring it. News that comes before the wait is not lost, several count as one.
#pragma once

#include "util/asio.hpp"

#include <utility>

namespace vtpmd::manager {

class Notice {
  public:
    explicit Notice(const asio::any_io_executor& executor)
        : timer_(executor, asio::steady_timer::time_point::max()) {}

    void set() {
        set_ = true;
        timer_.cancel();
    }
    /// True: there is news. False: the awaiting task is cancelled, and should end.
    Task<bool> wait() {
        if (!set_) {
            (void)co_await timer_.async_wait(use_tuple);
        }
        co_return std::exchange(set_, false);
    }

  private:
    asio::steady_timer timer_; ///< never expires; cancelled when there is news
    bool set_ = false;
};

} // namespace vtpmd::manager
