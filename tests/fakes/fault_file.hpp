// A disk in memory that fails, tears and loses power on purpose.
//
// Every write, sync and allocation has a number (write_sync counts as two). A plan says at which number what goes wrong. Two
// kinds of fault:
//   fail: that one operation returns an error; the program lives on. A failed write may have left its first bytes, a failed
//         sync may have dropped any of the pages that were to be synced: they read back, but are not on the disk.
//   die:  power goes at that operation: it and all later ones return an error and change nothing. after_crash() gives
//         what can be on the disk then: what was synced, and of what was not nothing, all, a prefix or any sectors.
#pragma once

#include "util/block_file.hpp"

#include <limits>
#include <memory>
#include <optional>
#include <string>

namespace vtpmd::test {

inline constexpr std::uint64_t never = std::numeric_limits<std::uint64_t>::max();

struct FaultPlan {
    std::uint64_t die_at = never;
    std::uint64_t fail_at = never;
    std::uint64_t fail_until = 0; ///< operations [fail_at, fail_until) fail; 0: just one
    Errc error = Errc::io;
    std::size_t fail_prefix = 0; ///< bytes that a failing write leaves
    std::uint32_t drop_seed = 0; ///< which sectors a failing sync drops; 0: all of them
    bool fail_reads = false;     ///< reads fail where writes would
};

class FaultDisk {
  public:
    explicit FaultDisk(Bytes content = {}, bool device = false);

    FaultPlan plan;

    /// A handle on the disk; the disk outlives it. Each operation takes a turn of the loop.
    std::unique_ptr<BlockFile> open();

    /// What a program sees (the page cache).
    [[nodiscard]] const Bytes& content() const { return cache_; }
    [[nodiscard]] std::uint64_t operations() const { return operations_; }
    [[nodiscard]] std::uint64_t syncs() const { return syncs_; }
    [[nodiscard]] bool dead() const { return dead_; }
    /// True if nothing waits for a sync.
    [[nodiscard]] bool clean() const { return unsynced_.empty(); }

    enum class Loss {
        all,     ///< nothing unsynced is there
        none,    ///< everything is
        prefix,  ///< everything but the last write, of which the first `parameter` bytes are
        sectors, ///< any set of the sectors of all that was not synced (`parameter` is the seed)
    };
    [[nodiscard]] Bytes after_crash(Loss loss, std::size_t parameter = 0) const;
    /// Bytes of the write the power went in; 0 if it was another operation.
    [[nodiscard]] std::size_t last_write_size() const;

  private:
    friend class FaultFile;
    struct Write {
        std::uint64_t offset;
        Bytes data;
    };
    enum class Fate { works, fails, dead };
    Fate next_operation();
    /// Before the cache changes for the first time: what is durable is what it holds until then.
    void diverge();
    Result<void> write(std::uint64_t offset, ByteView data);
    Result<void> sync();
    Result<void> allocate(std::uint64_t end);
    Result<void> read(std::uint64_t offset, MutByteView into);
    [[nodiscard]] Error injected(std::string_view what) const;

    bool device_;
    Bytes cache_;
    std::optional<Bytes> durable_; ///< nothing: the same as the cache
    std::vector<Write> unsynced_;
    std::uint64_t operations_ = 0;
    std::uint64_t syncs_ = 0;
    bool dead_ = false;
    bool died_in_write_ = false;
};

} // namespace vtpmd::test
