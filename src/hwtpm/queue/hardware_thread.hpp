// The one thread that talks to the hardware TPM. Coroutines on the loop hand it jobs and await their results; urgent
// ones (a vTPM that waits to start) go before routine ones, first come first served within each. Jobs that wait
// together are run as one batch, between one begin and one end hook (claim and release of the locality).
//
// A caller that is cancelled stops waiting; its job is run all the same, for a TPM command cannot be half done. The
// queue is
// bounded: a caller that finds it full waits for room.
#pragma once

#include "hwtpm/root_of_trust.hpp"
#include "util/asio.hpp"
#include "util/result.hpp"

#include <atomic>
#include <condition_variable>
#include <deque>
#include <functional>
#include <list>
#include <memory>
#include <mutex>
#include <optional>
#include <thread>
#include <type_traits>

namespace vtpmd::hwtpm {

enum class Urgency { urgent, routine };

class HardwareThread {
  public:
    struct Config {
        std::size_t queue_limit = 1024; ///< jobs of one urgency, queued or running
        std::size_t batch_limit = 64;   ///< jobs between one claim and release, so that other owners get their turn
    };
    struct Hooks {
        std::function<void()> begin_batch; ///< on the hardware thread
        std::function<void()> end_batch;
    };
    HardwareThread(asio::any_io_executor executor, Config config, Hooks hooks);
    HardwareThread(const HardwareThread&) = delete;
    HardwareThread& operator=(const HardwareThread&) = delete;
    /// Runs what is queued, then joins the thread; nobody may be waiting any more.
    ~HardwareThread();

    /// Runs `work`, a move-only callable that returns a Result, on the hardware thread. Errc::canceled if the awaiting
    /// task is cancelled, Errc::closed after close().
    template <typename F>
    auto run(Urgency urgency, F&& work) -> Task<std::invoke_result_t<std::decay_t<F>&>> {
        using R = std::invoke_result_t<std::decay_t<F>&>;
        std::shared_ptr<Call<R>> call =
            std::make_shared<CallOf<R, std::decay_t<F>>>(core_->executor, std::forward<F>(work));
        return wait(core_, urgency, std::move(call));
    }

    /// For start-up and tests: runs `work` and blocks the caller until it is done. Not from the hardware thread.
    template <typename F>
    auto run_blocking(F&& work) -> std::invoke_result_t<std::decay_t<F>&>;

    /// No new jobs; returns when all that were accepted are done.
    Task<> close();

    /// Jobs, batches and latencies. Loop thread.
    [[nodiscard]] HardwareMetrics metrics() const;
    /// Jobs accepted and not yet done. Loop thread.
    [[nodiscard]] std::size_t in_flight() const noexcept { return core_->in_flight[0] + core_->in_flight[1]; }

  private:
    struct Job {
        virtual ~Job() = default;
        virtual void run() = 0; ///< on the hardware thread
    };
    template <typename R>
    struct Call : Job {
        explicit Call(const asio::any_io_executor& executor)
            : done(executor, asio::steady_timer::time_point::max()) {}
        asio::steady_timer done; ///< never expires; cancelled on the loop when the result is there
        std::optional<R> result; ///< written and read on the loop only
        std::optional<R> fresh;  ///< the hardware thread's, until it posts
    };
    template <typename R, typename F>
    struct CallOf final : Call<R> {
        CallOf(const asio::any_io_executor& executor, F f)
            : Call<R>(executor)
            , work(std::move(f)) {}
        void run() override {
            try {
                this->fresh.emplace(work());
            } catch (const std::exception& e) {
                this->fresh.emplace(make_error(Errc::unavailable, "hardware TPM: {}", e.what()));
            }
        }
        F work;
    };
    struct Queued {
        std::shared_ptr<Job> job;
        std::function<void()> finished; ///< on the hardware thread, after run()
    };
    /// Shared with completions that are still on their way to the loop.
    struct Core {
        asio::any_io_executor executor;
        Config config;

        // loop thread only
        bool closing = false;
        std::size_t in_flight[2] = {0, 0};
        std::list<asio::steady_timer*> waiting[2]; ///< for room, oldest first
        std::optional<asio::steady_timer> drained;
        HardwareMetrics counted;

        // written by the hardware thread
        std::atomic<std::uint64_t> batches = 0;
        std::atomic<std::uint64_t> largest_batch = 0;

        // under the mutex
        std::mutex mutex;
        std::condition_variable wake;
        std::deque<Queued> queue[2];
        bool stop = false;

        Task<Result<void>> admit(std::size_t urgency);
        void leave(std::size_t urgency);
        void submit(std::size_t urgency, Queued job);
        void count(std::size_t urgency, std::chrono::steady_clock::duration latency);
    };

    template <typename R>
    static Task<R> wait(std::shared_ptr<Core> core, Urgency urgency, std::shared_ptr<Call<R>> call) {
        const auto u = static_cast<std::size_t>(urgency);
        auto admitted = co_await core->admit(u);
        if (!admitted) {
            co_return admitted.error();
        }
        Queued queued;
        queued.job = call;
        const auto accepted = std::chrono::steady_clock::now();
        // Moves its references on to the loop, so that the call dies there.
        queued.finished = [core, call, u, accepted]() mutable {
            asio::any_io_executor executor = core->executor;
            asio::post(executor, [core = std::move(core), call = std::move(call), u, accepted] {
                core->count(u, std::chrono::steady_clock::now() - accepted);
                call->result = std::move(call->fresh);
                call->done.cancel();
                core->leave(u);
            });
        };
        core->submit(u, std::move(queued));
        (void)co_await call->done.async_wait(use_tuple);
        if (!call->result) {
            co_return make_error(Errc::canceled, "the caller was asked to stop while the hardware TPM worked");
        }
        co_return std::move(*call->result);
    }

    void serve();
    bool next(Queued& out);

    std::shared_ptr<Core> core_;
    Hooks hooks_;
    std::thread thread_;
};

template <typename F>
auto HardwareThread::run_blocking(F&& work) -> std::invoke_result_t<std::decay_t<F>&> {
    using R = std::invoke_result_t<std::decay_t<F>&>;
    struct Blocking final : Job {
        explicit Blocking(std::decay_t<F> f)
            : work(std::move(f)) {}
        void run() override { result.emplace(work()); }
        std::decay_t<F> work;
        std::optional<R> result;
    };
    auto job = std::make_shared<Blocking>(std::forward<F>(work));
    std::mutex mutex;
    std::condition_variable done;
    bool ready = false;
    Queued queued;
    queued.job = job;
    queued.finished = [&] {
        std::lock_guard lock(mutex);
        ready = true;
        done.notify_one();
    };
    core_->submit(static_cast<std::size_t>(Urgency::urgent), std::move(queued));
    std::unique_lock lock(mutex);
    done.wait(lock, [&] { return ready; });
    return std::move(*job->result);
}

} // namespace vtpmd::hwtpm
