// How a block file's operations reach the kernel: one request in, one completion out, on the loop's thread.
#pragma once

#include "util/asio.hpp"
#include "util/result.hpp"

#include <boost/asio/any_completion_handler.hpp>
#include <cstddef>
#include <cstdint>
#include <memory>

namespace vtpmd {

/// Byte counts, or negative errno values, as the kernel gave them.
struct BlockOutcome {
    int transfer = 0; ///< of the read, write, sync or allocation
    int sync = 0;     ///< of the sync that follows a write in write_sync; -ECANCELED if the write was short or failed
};

/// A request. Lives in the frame of the coroutine that awaits it; the kernel writes through `data` until it is done.
struct BlockOperation {
    enum class Kind { read, write, sync, write_sync, allocate };
    Kind kind;
    int fd;
    std::uint64_t offset = 0;
    std::byte* data = nullptr; ///< not written to, except by read
    std::uint64_t size = 0;

    asio::any_completion_handler<void(BlockOutcome)> done;
    BlockOutcome outcome;
    unsigned pending = 0; ///< completions still to come
};

class BlockQueue {
  public:
    virtual ~BlockQueue() = default;
    /// `op` stays where it is until its handler is called (from the loop, never from inside submit).
    virtual void submit(BlockOperation& op) = 0;
    /// Waits for what the kernel has and forgets the handlers: for a loop that is torn down with operations in flight.
    virtual void abandon() = 0;
};

/// Errc::unavailable: why the kernel refused io_uring with this errno, and what to do.
[[nodiscard]] Error io_uring_refused(int error);
/// Fails as io_uring_refused() says.
[[nodiscard]] Result<std::shared_ptr<BlockQueue>> make_uring_queue(asio::any_io_executor executor);
/// One thread that does one operation after the other.
[[nodiscard]] std::shared_ptr<BlockQueue> make_thread_queue(asio::any_io_executor executor);

} // namespace vtpmd
