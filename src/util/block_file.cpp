#include "util/block_file.hpp"

#include "util/block_file_queue.hpp"
#include "util/fd.hpp"
#include "util/file_watch.hpp"
#include "util/uninterrupted.hpp"

#include <algorithm>
#include <cerrno>
#include <fcntl.h>
#include <fstream>
#include <linux/fs.h>
#include <optional>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

namespace vtpmd {

namespace {

/// One request's size at most: completion counts are ints.
constexpr std::uint64_t max_transfer = std::uint64_t{1} << 30;

Task<BlockOutcome> perform(BlockQueue& queue, BlockOperation& op) {
    return asio::async_initiate<const asio::use_awaitable_t<>, void(BlockOutcome)>(
        [](auto handler, BlockQueue* q, BlockOperation* o) {
            o->done = std::move(handler);
            q->submit(*o);
        },
        asio::use_awaitable, &queue, &op);
}

bool again(int rc) { return rc == -EINTR || rc == -EAGAIN; }

class RealFile final : public BlockFile {
  public:
    RealFile(std::shared_ptr<BlockQueue> queue, UniqueFd fd, std::string path, std::uint64_t size, bool device)
        : queue_(std::move(queue))
        , fd_(std::move(fd))
        , path_(std::move(path))
        , size_(size)
        , device_(device) {
        if (!device_) {
            watch_.emplace(fd_.get(), path_);
        }
    }

    [[nodiscard]] const std::string& path() const override { return path_; }
    [[nodiscard]] std::uint64_t size() const override { return size_; }
    [[nodiscard]] bool fixed_size() const override { return device_; }

    Task<Result<void>> read(std::uint64_t offset, MutByteView into) override {
        return uninterrupted(do_read(offset, into));
    }
    Task<Result<void>> write(std::uint64_t offset, ByteView data) override {
        return uninterrupted(do_write(BlockOperation::Kind::write, offset, data));
    }
    Task<Result<void>> write_sync(std::uint64_t offset, ByteView data) override {
        return uninterrupted(do_write(BlockOperation::Kind::write_sync, offset, data));
    }
    Task<Result<void>> sync() override { return uninterrupted(do_sync()); }
    Task<Result<void>> allocate(std::uint64_t offset, std::uint64_t length) override {
        return uninterrupted(do_allocate(offset, length));
    }

  private:
    using Kind = BlockOperation::Kind;

    Task<Result<void>> do_read(std::uint64_t offset, MutByteView into) {
        const std::uint64_t from = offset;
        const MutByteView whole = into;
        while (!into.empty()) {
            BlockOperation op{Kind::read, fd_.get(), offset, into.data(), std::min(into.size(), max_transfer),
                              {},         {},        0};
            const BlockOutcome outcome = co_await perform(*queue_, op);
            if (again(outcome.transfer)) {
                continue;
            }
            if (outcome.transfer < 0) {
                co_return errno_error(-outcome.transfer, fmt::format("{}: read at offset {}", path_, offset));
            }
            if (outcome.transfer == 0) {
                co_return make_error(Errc::io, "{}: ends at offset {}, {} bytes are missing", path_, offset,
                                     into.size());
            }
            offset += static_cast<unsigned>(outcome.transfer);
            into = into.subspan(static_cast<unsigned>(outcome.transfer));
        }
        if (watch_) {
            watch_->read(from, whole);
        }
        co_return Result<void>{};
    }

    /// Still the file at its path: what was synced can be told of.
    [[nodiscard]] Result<void> in_place() { return watch_ ? watch_->check(size_) : Result<void>{}; }

    Task<Result<void>> do_write(Kind kind, std::uint64_t offset, ByteView data) {
        if (watch_) {
            if (auto there = watch_->may_write(); !there) {
                co_return there;
            }
        }
        auto written = co_await write_all(kind, offset, data);
        if (watch_) {
            written ? watch_->wrote(offset, data) : watch_->failed();
        }
        co_return written&& kind == Kind::write_sync ? in_place() : written;
    }

    Task<Result<void>> write_all(Kind kind, std::uint64_t offset, ByteView data) {
        const std::uint64_t end = offset + data.size();
        while (!data.empty()) {
            // The kernel only reads through the pointer; the request's type has one for both directions.
            auto* bytes = const_cast<std::byte*>(data.data()); // NOLINT(cppcoreguidelines-pro-type-const-cast)
            BlockOperation op{kind, fd_.get(), offset, bytes, std::min(data.size(), max_transfer), {}, {}, 0};
            const BlockOutcome outcome = co_await perform(*queue_, op);
            if (again(outcome.transfer)) {
                continue;
            }
            if (outcome.transfer <= 0) {
                co_return errno_error(outcome.transfer < 0 ? -outcome.transfer : ENOSPC,
                                      fmt::format("{}: write at offset {}", path_, offset));
            }
            // A short write broke the link, so its sync did not happen: the next round's covers both.
            offset += static_cast<unsigned>(outcome.transfer);
            data = data.subspan(static_cast<unsigned>(outcome.transfer));
            if (data.empty() && kind == Kind::write_sync && outcome.sync < 0) {
                co_return errno_error(-outcome.sync, fmt::format("{}: sync", path_));
            }
        }
        size_ = std::max(size_, end);
        co_return Result<void>{};
    }

    Task<Result<void>> do_sync() {
        for (;;) {
            BlockOperation op{Kind::sync, fd_.get(), 0, nullptr, 0, {}, {}, 0};
            const BlockOutcome outcome = co_await perform(*queue_, op);
            if (outcome.transfer == 0) {
                co_return in_place();
            }
            if (outcome.transfer != -EINTR) {
                co_return errno_error(-outcome.transfer, fmt::format("{}: sync", path_));
            }
        }
    }

    Task<Result<void>> do_allocate(std::uint64_t offset, std::uint64_t length) {
        if (device_) {
            (void)::ioctl(fd_.get(), BLKGETSIZE64, &size_); // it may have been made larger
            if (length > size_ || offset > size_ - length) {
                co_return make_error(Errc::no_space, "{}: the device has {} bytes, {} are needed", path_, size_,
                                     offset + length);
            }
            co_return Result<void>{};
        }
        if (watch_) {
            if (auto there = watch_->may_write(); !there) {
                co_return there;
            }
        }
        int rc = -EINTR;
        while (again(rc)) {
            BlockOperation op{Kind::allocate, fd_.get(), offset, nullptr, length, {}, {}, 0};
            rc = (co_await perform(*queue_, op)).transfer;
        }
        if (watch_) {
            watch_->grew();
        }
        if (rc == -EOPNOTSUPP) {
            co_return co_await extend_with_zeros(offset + length);
        }
        if (rc < 0) {
            co_return errno_error(-rc, fmt::format("{}: allocating {} bytes at offset {}", path_, length, offset));
        }
        size_ = std::max(size_, offset + length);
        co_return Result<void>{};
    }

    /// For file systems without fallocate: what lies beyond the end is written.
    Task<Result<void>> extend_with_zeros(std::uint64_t end) {
        const Bytes zeros(std::size_t{64} * 1024);
        while (size_ < end) {
            const auto n = static_cast<std::size_t>(std::min<std::uint64_t>(zeros.size(), end - size_));
            auto written = co_await do_write(Kind::write, size_, ByteView(zeros).first(n));
            if (!written) {
                co_return written;
            }
        }
        co_return Result<void>{};
    }

    std::shared_ptr<BlockQueue> queue_;
    UniqueFd fd_;
    std::string path_;
    std::uint64_t size_;
    bool device_;
    std::optional<FileWatch> watch_; ///< of a regular file
};

/// The process that holds an flock on this inode, from /proc/locks; 0 if it is not told.
pid_t flock_holder(const struct stat& st) {
    const std::string inode = fmt::format("{:02x}:{:02x}:{}", major(st.st_dev), minor(st.st_dev), st.st_ino);
    std::ifstream locks("/proc/locks");
    // "1: OFDLCK ADVISORY  WRITE -1 08:02:1234 0 EOF", an optional "->" after the number for a waiter.
    std::string number, type, mode, access, pid, where;
    for (std::string rest; locks >> number >> type >> mode >> access >> pid >> where && std::getline(locks, rest);) {
        if (where == inode && type == "FLOCK") {
            return static_cast<pid_t>(std::strtol(pid.c_str(), nullptr, 10));
        }
    }
    return 0;
}

Error busy_error(const std::string& path, pid_t holder) {
    if (holder > 0) {
        return make_error(Errc::busy, "{}: in use by another process (pid {})", path, holder);
    }
    return make_error(Errc::busy, "{}: in use by another process", path);
}

// Two locks, on ranges of their own, far beyond any content. The open file description's decides: it is there as long
// as anything can still write through it, so also while the kernel finishes the requests of a process that was killed.
// The process' own, on one byte behind it, tells who that is; it goes at once when the process ends, before the other.
constexpr off_t marker_at = off_t{1} << 62;

struct flock write_lock(off_t from, off_t length, short type = F_WRLCK) {
    struct flock lock {};
    lock.l_type = type;
    lock.l_whence = SEEK_SET;
    lock.l_start = from;
    lock.l_len = length;
    return lock;
}

Error held_by_another(int fd, const std::string& path, const struct stat& st) {
    struct flock marker = write_lock(marker_at, 1);
    if (::fcntl(fd, F_OFD_GETLK, &marker) == 0 && marker.l_type == F_UNLCK) {
        return make_error(Errc::lingering,
                          "{}: a process that has ended holds it still, its last requests are not done", path);
    }
    return busy_error(path, marker.l_pid > 0 ? marker.l_pid : flock_holder(st));
}

/// That nobody writes it, for who only looks. On devices others of vtpmd's are kept out, who only use this one.
Result<void> lock_to_look(int fd, const std::string& path, const struct stat& st) {
    struct flock whole = write_lock(0, marker_at, F_RDLCK);
    if (::fcntl(fd, F_OFD_SETLK, &whole) < 0) {
        return errno == EAGAIN || errno == EACCES ? held_by_another(fd, path, st) : errno_error(errno, path + ": lock");
    }
    return {};
}

Result<void> lock(int fd, const std::string& path, const struct stat& st) {
    if (S_ISBLK(st.st_mode) && ::flock(fd, LOCK_EX | LOCK_NB) < 0) {
        return errno == EWOULDBLOCK ? held_by_another(fd, path, st) : errno_error(errno, path + ": flock");
    }
    struct flock whole = write_lock(0, marker_at);
    if (::fcntl(fd, F_OFD_SETLK, &whole) < 0) {
        return errno == EAGAIN || errno == EACCES ? held_by_another(fd, path, st) : errno_error(errno, path + ": lock");
    }
    struct flock marker = write_lock(marker_at, 1);
    if (::fcntl(fd, F_SETLK, &marker) < 0) {
        return errno == EAGAIN || errno == EACCES ? held_by_another(fd, path, st) : errno_error(errno, path + ": lock");
    }
    return {};
}

Result<void> sync_parent(const std::string& path) {
    const std::size_t slash = path.rfind('/');
    const std::string parent = slash == std::string::npos ? "." : slash == 0 ? "/" : path.substr(0, slash);
    const UniqueFd dir(::open(parent.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    if (!dir || ::fsync(dir.get()) < 0) {
        return errno_error(errno, parent + ": sync");
    }
    return {};
}

class RealBlockIo final : public BlockIo {
  public:
    explicit RealBlockIo(std::shared_ptr<BlockQueue> queue)
        : queue_(std::move(queue)) {}
    RealBlockIo(const RealBlockIo&) = delete;
    RealBlockIo& operator=(const RealBlockIo&) = delete;
    ~RealBlockIo() override { queue_->abandon(); }

    Result<std::unique_ptr<BlockFile>> open(const std::string& path, OpenMode mode) override {
        const int flags = (mode == OpenMode::look ? O_RDONLY : O_RDWR) | O_CLOEXEC | O_NONBLOCK | O_NOCTTY;
        struct stat st {};
        // O_EXCL without O_CREAT means something for block devices only: nobody has it mounted.
        const bool device = ::stat(path.c_str(), &st) == 0 && S_ISBLK(st.st_mode);
        UniqueFd fd;
        if (mode == OpenMode::create && !device) {
            fd.reset(::open(path.c_str(), flags | O_CREAT, 0600));
        } else {
            fd.reset(::open(path.c_str(), flags | (device && mode != OpenMode::look ? O_EXCL : 0)));
        }
        if (!fd) {
            if (errno == EBUSY) {
                return make_error(Errc::busy, "{}: the device is mounted or in use", path);
            }
            return errno_error(errno, path);
        }
        if (::fstat(fd.get(), &st) < 0) {
            return errno_error(errno, path);
        }
        if (!S_ISREG(st.st_mode) && !S_ISBLK(st.st_mode)) {
            return make_error(Errc::usage, "{}: neither a regular file nor a block device", path);
        }
        auto locked = mode == OpenMode::look ? lock_to_look(fd.get(), path, st) : lock(fd.get(), path, st);
        if (!locked) {
            return locked.error();
        }
        auto size = static_cast<std::uint64_t>(st.st_size);
        if (S_ISBLK(st.st_mode) && ::ioctl(fd.get(), BLKGETSIZE64, &size) < 0) {
            return errno_error(errno, path + ": BLKGETSIZE64");
        }
        if (mode == OpenMode::create && !device) {
            if (auto synced = sync_parent(path); !synced) {
                return synced.error();
            }
        }
        return std::unique_ptr<BlockFile>(
            std::make_unique<RealFile>(queue_, std::move(fd), path, size, S_ISBLK(st.st_mode)));
    }

  private:
    std::shared_ptr<BlockQueue> queue_;
};

} // namespace

Result<std::unique_ptr<BlockIo>> make_block_io(asio::any_io_executor executor) {
    auto ring = make_uring_queue(executor);
    if (ring) {
        return std::unique_ptr<BlockIo>(std::make_unique<RealBlockIo>(std::move(*ring)));
    }
#ifndef BOOST_ASIO_HAS_IO_URING
    return std::unique_ptr<BlockIo>(std::make_unique<RealBlockIo>(make_thread_queue(std::move(executor))));
#else
    return ring.error();
#endif
}

} // namespace vtpmd
