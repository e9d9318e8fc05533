// One thread beside the loop, for work that takes long. It is started when it is first needed: most processes never do.
#pragma once

#include "util/asio.hpp"
#include "util/uninterrupted.hpp"

#include <boost/asio/thread_pool.hpp>
#include <optional>
#include <type_traits>

namespace vtpmd {

/// A loop that has this service does the work itself, in a turn of its own: for runs that are to be repeated exactly.
/// asio::make_service<WorkOnLoop>(context).
class WorkOnLoop final : public asio::execution_context::service {
  public:
    static inline asio::execution_context::id id;
    explicit WorkOnLoop(asio::execution_context& context)
        : asio::execution_context::service(context) {}

  private:
    void shutdown() override {}
};

class Worker {
  public:
    Worker() = default;
    Worker(const Worker&) = delete;
    Worker& operator=(const Worker&) = delete;
    /// Waits for what runs.
    ~Worker() = default;

    /// Runs `work` on the thread and comes back to the loop with what it returned. Not cancellable; what `work` refers
    /// to must outlive it. `work` must not throw.
    template <typename F>
    Task<std::invoke_result_t<F>> run(F work) {
        using R = std::invoke_result_t<F>;
        const asio::any_io_executor here = co_await asio::this_coro::executor;
        if (asio::has_service<WorkOnLoop>(asio::query(here, asio::execution::context))) {
            co_await uninterrupted(a_turn(here));
            co_return work();
        }
        if (!pool_) {
            pool_.emplace(1);
        }
        auto start = [](auto handler, asio::thread_pool* pool, F* f) {
            auto loop = asio::prefer(asio::get_associated_executor(handler), asio::execution::outstanding_work.tracked);
            asio::post(*pool, [handler = std::move(handler), loop = std::move(loop), f]() mutable {
                R result = (*f)();
                auto back = loop;
                asio::post(back, [handler = std::move(handler), loop = std::move(loop),
                                  result = std::move(result)]() mutable { std::move(handler)(std::move(result)); });
            });
        };
        co_return co_await asio::async_initiate<const asio::use_awaitable_t<>, void(R)>(start, asio::use_awaitable,
                                                                                        &*pool_, &work);
    }

  private:
    static Task<bool> a_turn(asio::any_io_executor executor) {
        co_await asio::post(executor, asio::use_awaitable);
        co_return true;
    }
    std::optional<asio::thread_pool> pool_;
};

} // namespace vtpmd
