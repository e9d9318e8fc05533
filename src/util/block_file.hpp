// Durable storage as the stores see it: a fixed run of bytes (a regular file or a block device) that is read, written
// and synced asynchronously. The implementation is a small io_uring of our own (Asio has no asynchronous fsync); a
// thread stands in where the kernel forbids io_uring and the program was built for epoll. tests/fakes has one that
// fails, tears and cuts short.
#pragma once

#include "util/asio.hpp"
#include "util/bytes.hpp"
#include "util/result.hpp"

#include <memory>
#include <string>

namespace vtpmd {

/// One coroutine at a time uses a BlockFile. An operation is never abandoned: when the awaiting task is cancelled it
/// still waits for the disk, returns what happened, and the cancellation shows at the caller's next co_await.
class BlockFile {
  public:
    virtual ~BlockFile() = default;

    /// For messages.
    [[nodiscard]] virtual const std::string& path() const = 0;
    /// Bytes; of a block device its fixed size.
    [[nodiscard]] virtual std::uint64_t size() const = 0;
    /// True for a block device, whose size cannot change.
    [[nodiscard]] virtual bool fixed_size() const = 0;

    /// Exactly `into.size()` bytes at `offset`; a short read is Errc::io.
    virtual Task<Result<void>> read(std::uint64_t offset, MutByteView into) = 0;
    /// All of `data` at `offset`, not yet durable. ENOSPC is Errc::no_space.
    virtual Task<Result<void>> write(std::uint64_t offset, ByteView data) = 0;
    /// Everything written before is on stable storage (fdatasync). After a failed sync the kernel may have dropped the
    /// dirty pages: the caller must write again what it needs, never just sync again.
    /// Also an error, here and below: the file is not the one at its path any more, or another program wrote into it;
    /// then pulled_away() (file_watch.hpp), and the message names the way to rescue what it holds.
    virtual Task<Result<void>> sync() = 0;
    /// write, then sync, as one linked request.
    virtual Task<Result<void>> write_sync(std::uint64_t offset, ByteView data) = 0;
    /// `length` bytes at `offset` exist and have their place on the disk (fallocate), so that writing them cannot fail
    /// for want of room; what was not there reads as zero. The file grows as needed. A block device: Errc::no_space if
    /// the range is not inside it, else nothing.
    virtual Task<Result<void>> allocate(std::uint64_t offset, std::uint64_t length) = 0;
};

enum class OpenMode {
    existing, ///< Errc::not_found if there is none
    look,     ///< the same, to be read only; others may look at the same time, and nobody may have it open to write
    create,   ///< a new file, mode 0600, its directory entry durable. One that is there already is opened as it is: the
              ///< store looks whether it holds anything (a creation that was cut short is taken up again).
};

/// Runs the I/O of every BlockFile of the process; owns the ring. Outlives its files and goes before the loop does.
class BlockIo {
  public:
    virtual ~BlockIo() = default;
    /// Opens and locks (open file description lock; a device also with flock, and O_EXCL against mounts): Errc::busy
    /// names the file and, where the kernel tells, the process that holds it. The lock goes with the process, but only
    /// once the kernel has finished its last requests: until then it is Errc::lingering.
    virtual Result<std::unique_ptr<BlockFile>> open(const std::string& path, OpenMode mode) = 0;
};

/// Errc::unsupported, saying what to do, if io_uring is needed and the kernel refuses it.
[[nodiscard]] Result<std::unique_ptr<BlockIo>> make_block_io(asio::any_io_executor executor);

} // namespace vtpmd
