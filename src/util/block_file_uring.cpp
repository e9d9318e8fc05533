// The ring: at most `entries` requests are with the kernel, the rest wait here. Completions ring an eventfd, which the
// loop watches only while there is something to wait for, so that an idle process has nothing pending.
#include "util/block_file_queue.hpp"
#include "util/fd.hpp"
#include "util/ring_restrictions.hpp"

#include <cerrno>
#include <cstring>
#include <deque>
#include <liburing.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <vector>

namespace vtpmd {

namespace {

constexpr unsigned entries = 64;
/// The second request of a write_sync is told from the first by the lowest bit of the address that comes back.
constexpr std::uintptr_t second_request = 1;
static_assert(alignof(BlockOperation) > second_request);

class UringQueue final : public BlockQueue, public std::enable_shared_from_this<UringQueue> {
  public:
    explicit UringQueue(asio::any_io_executor executor)
        : executor_(executor)
        , event_(executor) {}
    UringQueue(const UringQueue&) = delete;
    UringQueue& operator=(const UringQueue&) = delete;
    ~UringQueue() override {
        if (ring_open_) {
            io_uring_queue_exit(&ring_);
        }
    }

    Result<void> start() {
        if (int rc = restricted_queue_init(entries, &ring_, 0); rc < 0) {
            return io_uring_refused(-rc);
        }
        ring_open_ = true;
        quiet_write_ = (ring_.features & IORING_FEAT_CQE_SKIP) != 0;
        const int fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
        if (fd < 0) {
            return errno_error(errno, "eventfd");
        }
        event_.assign(fd);
        if (int rc = io_uring_register_eventfd(&ring_, fd); rc < 0) {
            return io_uring_refused(-rc);
        }
        return {};
    }

    void submit(BlockOperation& op) override {
        waiting_.push_back(&op);
        pump();
    }

    void abandon() override {
        // The kernel may be writing into buffers that are about to go: wait for it first.
        std::vector<BlockOperation*> forgotten(waiting_.begin(), waiting_.end());
        waiting_.clear();
        while (in_kernel_ > 0) {
            io_uring_submit(&ring_);
            io_uring_cqe* cqe = nullptr;
            if (io_uring_wait_cqe(&ring_, &cqe) == 0) {
                reap(forgotten);
            }
        }
        event_.cancel();
        for (BlockOperation* op : forgotten) {
            // The handler owns the coroutine in whose frame the operation lives.
            auto handler = std::move(op->done);
        }
    }

  private:
    static unsigned requests(const BlockOperation& op) { return op.kind == BlockOperation::Kind::write_sync ? 2 : 1; }

    void pump() {
        while (!waiting_.empty() && in_kernel_ + requests(*waiting_.front()) <= entries) {
            prepare(*waiting_.front());
            waiting_.pop_front();
        }
        const int rc = io_uring_submit(&ring_);
        if (rc < 0 && in_kernel_ > 0) {
            // EAGAIN, EBUSY, EINTR: the requests stay queued in the ring; ask again on the loop's next turn.
            asio::post(executor_, [self = shared_from_this()] { self->pump(); });
        }
        watch();
    }

    void prepare(BlockOperation& op) {
        using Kind = BlockOperation::Kind;
        io_uring_sqe* sqe = io_uring_get_sqe(&ring_); // never null: in_kernel_ bounds what is queued
        op.outcome = {};
        in_kernel_ += requests(op);
        const auto size = static_cast<unsigned>(op.size);
        switch (op.kind) {
        case Kind::read:
            io_uring_prep_read(sqe, op.fd, op.data, size, op.offset);
            break;
        case Kind::write:
        case Kind::write_sync:
            io_uring_prep_write(sqe, op.fd, op.data, size, op.offset);
            break;
        case Kind::sync:
            io_uring_prep_fsync(sqe, op.fd, IORING_FSYNC_DATASYNC);
            break;
        case Kind::allocate:
            io_uring_prep_fallocate(sqe, op.fd, 0, static_cast<off_t>(op.offset), static_cast<off_t>(op.size));
            break;
        }
        io_uring_sqe_set_data(sqe, &op);
        op.pending = 1;
        if (op.kind == Kind::write_sync) {
            // With IOSQE_CQE_SKIP_SUCCESS one completion comes: the sync's if the write was whole, else the write's,
            // and then the kernel says nothing of the sync that it cancels (io_uring_enter(2)).
            sqe->flags |= IOSQE_IO_LINK | (quiet_write_ ? IOSQE_CQE_SKIP_SUCCESS : 0U);
            op.pending = quiet_write_ ? 1 : 2;
            op.outcome = {static_cast<int>(op.size), -ECANCELED};
            io_uring_sqe* sync = io_uring_get_sqe(&ring_);
            io_uring_prep_fsync(sync, op.fd, IORING_FSYNC_DATASYNC);
            io_uring_sqe_set_data64(sync, reinterpret_cast<std::uintptr_t>(&op) | second_request);
        }
    }

    void watch() {
        if (watching_ || in_kernel_ == 0) {
            return;
        }
        watching_ = true;
        event_.async_wait(asio::posix::stream_descriptor::wait_read, [self = shared_from_this()](error_code ec) {
            self->watching_ = false;
            if (!ec) {
                self->rung();
            }
        });
    }

    void rung() {
        eventfd_t count = 0;
        (void)eventfd_read(event_.native_handle(), &count);
        std::vector<BlockOperation*> finished;
        reap(finished);
        pump();
        // Each resumes a coroutine, which may submit again or end this queue: nothing of ours is touched after that.
        for (BlockOperation* op : finished) {
            asio::post(executor_, [handler = std::move(op->done), outcome = op->outcome]() mutable {
                std::move(handler)(outcome);
            });
        }
    }

    void reap(std::vector<BlockOperation*>& finished) {
        io_uring_cqe* cqe = nullptr;
        while (io_uring_peek_cqe(&ring_, &cqe) == 0) {
            const std::uintptr_t tag = io_uring_cqe_get_data64(cqe);
            auto* op = reinterpret_cast<BlockOperation*>(tag & ~second_request); // NOLINT(performance-no-int-to-ptr)
            ((tag & second_request) != 0 ? op->outcome.sync : op->outcome.transfer) = cqe->res;
            io_uring_cqe_seen(&ring_, cqe);
            if (--op->pending == 0) {
                in_kernel_ -= requests(*op);
                finished.push_back(op);
            }
        }
    }

    asio::any_io_executor executor_;
    asio::posix::stream_descriptor event_; ///< owns the eventfd
    io_uring ring_{};
    bool ring_open_ = false;
    bool quiet_write_ = false; ///< the kernel can leave out the completion of a write that a sync follows (Linux 5.17)

    std::deque<BlockOperation*> waiting_;
    unsigned in_kernel_ = 0; ///< requests prepared and not yet completed
    bool watching_ = false;
};

} // namespace

Error io_uring_refused(int error) {
    rlimit locked{};
    if (error == ENOMEM && ::getrlimit(RLIMIT_MEMLOCK, &locked) == 0 && locked.rlim_cur != RLIM_INFINITY) {
        return make_error(Errc::unavailable,
                          "the kernel has no memory for io_uring: all processes of this user may lock {} KiB together; "
                          "raise RLIMIT_MEMLOCK to 8 MiB or more (LimitMEMLOCK= of the service, ulimit -l)",
                          locked.rlim_cur / 1024);
    }
    return make_error(Errc::unavailable,
                      "the kernel refuses io_uring ({}): allow it (sysctl kernel.io_uring_disabled=0, the service's "
                      "SystemCallFilter=, the container's seccomp profile), or use a vtpmd built with -Dloop=epoll",
                      std::strerror(error));
}

Result<std::shared_ptr<BlockQueue>> make_uring_queue(asio::any_io_executor executor) {
    auto queue = std::make_shared<UringQueue>(std::move(executor));
    if (auto started = queue->start(); !started) {
        return std::move(started).error();
    }
    return std::shared_ptr<BlockQueue>(std::move(queue));
}

} // namespace vtpmd
