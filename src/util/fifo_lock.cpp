#include "util/fifo_lock.hpp"

namespace vtpmd {

Task<Result<FifoLock::Guard>> FifoLock::acquire() {
    if (!held_) {
        held_ = true;
        co_return Guard(*this);
    }
    Waiter self{asio::steady_timer(executor_, asio::steady_timer::time_point::max())};
    auto place = waiters_.insert(waiters_.end(), &self);
    // A cancelled task may be handed the lock in the same turn; then it has it, and gives it back like
    // everybody.
    struct Leave {
        std::list<Waiter*>& waiters;
        std::list<Waiter*>::iterator place;
        Waiter& self;
        ~Leave() {
            if (!self.granted) {
                waiters.erase(place);
            }
        }
    } leave{waiters_, place, self};
    (void)co_await self.wake.async_wait(use_tuple);
    if (self.granted) {
        co_return Guard(*this);
    }
    co_return make_error(Errc::canceled, "cancelled while waiting for its turn");
}

void FifoLock::unlock() noexcept {
    if (waiters_.empty()) {
        held_ = false;
        return;
    }
    Waiter* next = waiters_.front();
    waiters_.pop_front();
    next->granted = true; // the lock stays held, on its behalf
    next->wake.cancel();
}

} // namespace vtpmd
