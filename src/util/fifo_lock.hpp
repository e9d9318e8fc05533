// A lock for coroutines of one loop thread, given out in the order it was asked for.
//
//   auto held = co_await lock.acquire();   // Result<FifoLock::Guard>; Errc::canceled if the task was cancelled
#pragma once

#include "util/asio.hpp"
#include "util/result.hpp"

#include <list>
#include <utility>

namespace vtpmd {

class FifoLock {
  public:
    class Guard {
      public:
        Guard() noexcept = default;
        explicit Guard(FifoLock& lock) noexcept
            : lock_(&lock) {}
        Guard(Guard&& o) noexcept
            : lock_(std::exchange(o.lock_, nullptr)) {}
        Guard& operator=(Guard&& o) noexcept {
            if (this != &o) {
                release();
                lock_ = std::exchange(o.lock_, nullptr);
            }
            return *this;
        }
        Guard(const Guard&) = delete;
        Guard& operator=(const Guard&) = delete;
        ~Guard() { release(); }
        void release() noexcept {
            if (lock_ != nullptr) {
                std::exchange(lock_, nullptr)->unlock();
            }
        }

      private:
        FifoLock* lock_ = nullptr;
    };

    explicit FifoLock(asio::any_io_executor executor)
        : executor_(std::move(executor)) {}
    FifoLock(const FifoLock&) = delete;
    FifoLock& operator=(const FifoLock&) = delete;

    Task<Result<Guard>> acquire();
    [[nodiscard]] bool held() const noexcept { return held_; }
    [[nodiscard]] std::size_t waiting() const noexcept { return waiters_.size(); }

  private:
    struct Waiter {
        asio::steady_timer wake; ///< never expires; cancelled when the lock is handed over
        bool granted = false;
    };
    void unlock() noexcept;

    asio::any_io_executor executor_;
    bool held_ = false;
    std::list<Waiter*> waiters_;
};

} // namespace vtpmd
