#include "hwtpm/queue/hardware_thread.hpp"

#include <algorithm>
#include <pthread.h>
#include <signal.h>

namespace vtpmd::hwtpm {

namespace {
/// Signals are the loop thread's: the new thread starts with all of them blocked.
class BlockedSignals {
  public:
    BlockedSignals() {
        sigset_t all;
        sigfillset(&all);
        pthread_sigmask(SIG_SETMASK, &all, &before_);
    }
    BlockedSignals(const BlockedSignals&) = delete;
    BlockedSignals& operator=(const BlockedSignals&) = delete;
    ~BlockedSignals() { pthread_sigmask(SIG_SETMASK, &before_, nullptr); }

  private:
    sigset_t before_{};
};
} // namespace

HardwareThread::HardwareThread(asio::any_io_executor executor, Config config, Hooks hooks)
    : core_(std::make_shared<Core>())
    , hooks_(std::move(hooks)) {
    core_->executor = std::move(executor);
    core_->config = config;
    BlockedSignals blocked;
    thread_ = std::thread([this] { serve(); });
    pthread_setname_np(thread_.native_handle(), "hwtpm");
}

HardwareThread::~HardwareThread() {
    {
        std::lock_guard lock(core_->mutex);
        core_->stop = true;
    }
    core_->wake.notify_one();
    thread_.join();
}

Task<Result<void>> HardwareThread::Core::admit(std::size_t urgency) {
    if (closing) {
        co_return make_error(Errc::closed, "the hardware TPM is being closed");
    }
    // Whoever waits for room is served first, also when a place is free at this moment.
    while (in_flight[urgency] >= config.queue_limit || !waiting[urgency].empty()) {
        asio::steady_timer room(executor, asio::steady_timer::time_point::max());
        auto it = waiting[urgency].insert(waiting[urgency].end(), &room);
        (void)co_await room.async_wait(use_tuple);
        // leave() has taken us off the list and reserved our place, unless it was we who were cancelled.
        if (*it != nullptr) {
            waiting[urgency].erase(it);
            co_return make_error(Errc::canceled, "the caller was asked to stop while it waited for the hardware TPM");
        }
        waiting[urgency].erase(it);
        co_return Result<void>();
    }
    ++in_flight[urgency];
    co_return Result<void>();
}

void HardwareThread::Core::leave(std::size_t urgency) {
    // The place goes to the oldest that waits, without becoming free in between.
    for (asio::steady_timer*& timer : waiting[urgency]) {
        if (timer != nullptr) {
            timer->cancel();
            timer = nullptr;
            return;
        }
    }
    --in_flight[urgency];
    if (in_flight[0] + in_flight[1] == 0 && drained) {
        drained->cancel();
    }
}

void HardwareThread::Core::count(std::size_t urgency, std::chrono::steady_clock::duration latency) {
    ++(urgency == static_cast<std::size_t>(Urgency::urgent) ? counted.urgent_jobs : counted.routine_jobs);
    const auto& bounds = HardwareMetrics::latency_bounds;
    ++counted
          .latency[static_cast<std::size_t>(std::lower_bound(bounds.begin(), bounds.end(), latency) - bounds.begin())];
    counted.latency_sum += latency;
}

HardwareMetrics HardwareThread::metrics() const {
    HardwareMetrics out = core_->counted;
    const auto jobs = [this](Urgency u) {
        const auto i = static_cast<std::size_t>(u);
        return core_->in_flight[i] + core_->waiting[i].size();
    };
    out.urgent_waiting = jobs(Urgency::urgent);
    out.routine_waiting = jobs(Urgency::routine);
    out.batches = core_->batches.load(std::memory_order_relaxed);
    out.largest_batch = core_->largest_batch.load(std::memory_order_relaxed);
    return out;
}

void HardwareThread::Core::submit(std::size_t urgency, Queued job) {
    {
        std::lock_guard lock(mutex);
        queue[urgency].push_back(std::move(job));
    }
    wake.notify_one();
}

Task<> HardwareThread::close() {
    auto core = core_;
    core->closing = true;
    co_await asio::this_coro::reset_cancellation_state(asio::disable_cancellation());
    while (core->in_flight[0] + core->in_flight[1] != 0) {
        core->drained.emplace(core->executor, asio::steady_timer::time_point::max());
        (void)co_await core->drained->async_wait(use_tuple);
    }
}

bool HardwareThread::next(Queued& out) {
    for (auto& queue : core_->queue) {
        if (!queue.empty()) {
            out = std::move(queue.front());
            queue.pop_front();
            return true;
        }
    }
    return false;
}

void HardwareThread::serve() {
    for (;;) {
        Queued job;
        {
            std::unique_lock lock(core_->mutex);
            core_->wake.wait(lock, [&] { return core_->stop || !core_->queue[0].empty() || !core_->queue[1].empty(); });
            if (!next(job)) {
                return; // stop, and nothing left
            }
        }
        if (hooks_.begin_batch) {
            hooks_.begin_batch();
        }
        std::size_t in_batch = 0;
        for (bool more = true; more;) {
            job.job->run();
            job.job.reset();
            job.finished();
            job = Queued{};
            std::lock_guard lock(core_->mutex);
            more = ++in_batch < core_->config.batch_limit && next(job);
        }
        if (hooks_.end_batch) {
            hooks_.end_batch();
        }
        core_->batches.fetch_add(1, std::memory_order_relaxed);
        if (in_batch > core_->largest_batch.load(std::memory_order_relaxed)) {
            core_->largest_batch.store(in_batch, std::memory_order_relaxed);
        }
    }
}

} // namespace vtpmd::hwtpm
