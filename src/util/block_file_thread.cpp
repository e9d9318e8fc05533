// Where io_uring is forbidden: one thread does the operations, in order, with the ordinary system calls.
#include "util/block_file_queue.hpp"

#include <cerrno>
#include <condition_variable>
#include <deque>
#include <fcntl.h>
#include <mutex>
#include <thread>
#include <unistd.h>

namespace vtpmd {

namespace {

class ThreadQueue final : public BlockQueue {
  public:
    explicit ThreadQueue(asio::any_io_executor executor)
        : executor_(std::move(executor)) {}
    ThreadQueue(const ThreadQueue&) = delete;
    ThreadQueue& operator=(const ThreadQueue&) = delete;
    ~ThreadQueue() override { stop(); }

    void submit(BlockOperation& op) override {
        if (!thread_.joinable()) {
            thread_ = std::thread([this] { work(); });
        }
        {
            const std::lock_guard lock(mutex_);
            // The loop must not run dry while the thread works for it.
            waiting_.push_back({&op, asio::make_work_guard(executor_)});
        }
        wake_.notify_one();
    }

    void abandon() override {
        stop();
        for (Item& item : waiting_) {
            auto handler = std::move(item.op->done);
        }
        waiting_.clear();
    }

  private:
    struct Item {
        BlockOperation* op;
        asio::executor_work_guard<asio::any_io_executor> guard;
    };

    void stop() {
        {
            const std::lock_guard lock(mutex_);
            stop_ = true;
        }
        wake_.notify_one();
        if (thread_.joinable()) {
            thread_.join();
        }
    }

    void work() {
        std::unique_lock lock(mutex_);
        for (;;) {
            wake_.wait(lock, [this] { return stop_ || !waiting_.empty(); });
            if (stop_) {
                return;
            }
            Item item = std::move(waiting_.front());
            waiting_.pop_front();
            lock.unlock();
            BlockOperation& op = *item.op;
            op.outcome = perform(op);
            // The handler and the coroutine behind it are the loop's: hand them over, run nothing here.
            asio::post(executor_,
                       [handler = std::move(op.done), outcome = op.outcome]() mutable { std::move(handler)(outcome); });
            item.guard.reset();
            lock.lock();
        }
    }

    static int result(ssize_t rc) { return rc < 0 ? -errno : static_cast<int>(rc); }

    static BlockOutcome perform(const BlockOperation& op) {
        using Kind = BlockOperation::Kind;
        const auto offset = static_cast<off_t>(op.offset);
        switch (op.kind) {
        case Kind::read:
            return {result(::pread(op.fd, op.data, op.size, offset)), 0};
        case Kind::write:
            return {result(::pwrite(op.fd, op.data, op.size, offset)), 0};
        case Kind::sync:
            return {result(::fdatasync(op.fd)), 0};
        case Kind::allocate:
            return {result(::fallocate(op.fd, 0, offset, static_cast<off_t>(op.size))), 0};
        case Kind::write_sync: {
            const int written = result(::pwrite(op.fd, op.data, op.size, offset));
            const bool whole = written >= 0 && static_cast<std::uint64_t>(written) == op.size;
            return {written, whole ? result(::fdatasync(op.fd)) : -ECANCELED};
        }
        }
        return {-EINVAL, 0};
    }

    asio::any_io_executor executor_;
    std::thread thread_;

    std::mutex mutex_; ///< for what is below
    std::condition_variable wake_;
    std::deque<Item> waiting_;
    bool stop_ = false;
};

} // namespace

std::shared_ptr<BlockQueue> make_thread_queue(asio::any_io_executor executor) {
    return std::make_shared<ThreadQueue>(std::move(executor));
}

} // namespace vtpmd
