// The manager's image: a superblock (opaque to this room: the sealed keys and where the counter is) and an append-only
// journal of AEAD records chained by hash in one of two halves, with a checkpoint into the other half when it fills.
//
// The journal drives a state machine: apply() is called for every record once it is durable, in order, both when the
// image is opened and while it runs, so that memory is always exactly what the disk says. Layout: journal.cpp.
#pragma once

#include "store/image_copy.hpp"
#include "store/journal_state.hpp"
#include "util/block_file.hpp"
#include "util/log.hpp"
#include "util/secret_bytes.hpp"
#include "util/uuid.hpp"

#include <array>
#include <functional>
#include <memory>
#include <span>
#include <vector>

namespace vtpmd::store {

/// The manager's registry, as the journal sees it.
class JournalClient {
  public:
    virtual ~JournalClient() = default;
    /// A record that is now durable. An error while opening (a record this version does not know) refuses the image; later it
    /// stops the journal, so check() must not let it come to that.
    virtual Result<void> apply(ByteView record) = 0;
    /// Calls `emit` for records that rebuild everything apply() was ever given. Called between batches.
    virtual void snapshot(const std::function<void(ByteView record)>& emit) = 0;
    /// The same as it will be after these records too, which are checked and not applied.
    virtual void snapshot_after(std::span<const ByteView> records, const std::function<void(ByteView)>& emit) = 0;
    /// The last snapshot is durable, and what it left out is gone for good.
    virtual void checkpointed() {}

    /// A batch begins. `room`: a checkpoint holds a snapshot whose records are that many bytes, each counted with 4 more.
    virtual void begin_batch(std::uint64_t /*room*/) {}
    /// The records of one caller, which apply() will be given one after the other, behind those of this batch that were checked
    /// before. An error is that caller's answer, and none of its records is written; the others' are.
    virtual Result<void> check(std::span<const Bytes> /*records*/) { return {}; }
    /// Whether a checkpoint would make room: asked when check() said Errc::no_space.
    virtual bool checkpoint_makes_room() { return false; }
    /// apply() refused this record while opening. True if it is well formed and cannot follow what was applied before: older
    /// programs wrote such a record where two operations met, and stopped behind it.
    virtual bool cannot_follow(ByteView /*record*/) { return false; }
    /// The journal has stopped for good: the program should end.
    virtual void on_stopped(const Error& /*why*/) {}

    /// Before a batch is taken, as long as fewer callers wait than shared the last batch or were waiting at its end: time to
    /// wait for the others. `everyone` ends when they have come, or when there is nothing to wait for any more (a batch is
    /// full, close()); it may be cancelled, or not awaited at all. Must end by itself: it delays the callers that are there.
    virtual Task<> gather(Task<Result<void>> everyone) = 0;
    /// Records to put in front of the next batch of `count` callers' records (freshness), usually none.
    virtual std::vector<Bytes> prologue(std::size_t count) = 0;
    /// The batch is durable and applied, its callers have not been told yet (strict freshness steps the counter here).
    /// An error here is given to every caller of the batch as Errc::unavailable: its records are durable and stay, and
    /// the journal goes on with the next batch (for which this is called again). May call checkpoint() and
    /// replace_superblock(), not append().
    virtual Task<Result<void>> before_acknowledge() = 0;
};

struct JournalCounters {
    std::uint64_t records = 0, batches = 0, syncs = 0, checkpoints = 0, bytes = 0, largest_batch = 0;
    std::uint64_t waiting = 0; ///< callers whose records are not in a batch yet, now
    /// How many batches were shared by at most so many callers; the last for those that more shared.
    static constexpr std::array<std::uint64_t, 8> batch_bounds{1, 2, 4, 8, 16, 32, 64, 128};
    std::array<std::uint64_t, batch_bounds.size() + 1> batch_sizes{};
    /// Bytes that a half has, and what the last checkpoint took of it.
    std::uint64_t half_bytes = 0, checkpoint_bytes = 0;
    /// What a snapshot may take (JournalClient::begin_batch).
    std::uint64_t room = 0;
    /// Calls that check() refused; records that were set aside when the journal was opened.
    std::uint64_t refused = 0, set_aside = 0;
};

/// Its operations run to their end even if the calling task is cancelled. close() comes before destruction.
class ManagerImage {
  public:
    struct CreateOptions {
        Uuid uuid;
        std::uint64_t size = std::uint64_t{16} << 20; ///< bytes; a block device: its own size, up to max_size
        Bytes superblock;                             ///< at most superblock_limit
    };
    static constexpr std::size_t superblock_limit = 61'440;
    static constexpr std::uint64_t min_size = 262'144;
    static constexpr std::uint64_t max_size = std::uint64_t{256} << 20;
    /// Bytes of the records of one append() or append_all() at most, each counted with 4 bytes more.
    static constexpr std::size_t append_limit = 196'608;
    /// Bytes of one prologue() at most.
    static constexpr std::size_t prologue_limit = 32'768;

    /// Errc::exists if the place holds anything but zeros or the beginning of a creation that was cut short.
    static Task<Result<std::unique_ptr<ManagerImage>>> create(std::unique_ptr<BlockFile> file, CreateOptions options,
                                                              const Log& log);
    static Task<Result<std::unique_ptr<ManagerImage>>> open(std::unique_ptr<BlockFile> file, const Log& log);
    /// To look at: nothing is written. open_journal() replays it; whatever would change something is Errc::usage.
    static Task<Result<std::unique_ptr<ManagerImage>>> look(std::unique_ptr<BlockFile> file, const Log& log);
    virtual ~ManagerImage() = default;

    /// What its first bytes (head_size) say of an image.
    struct Head {
        Uuid uuid;
        bool backup = false; ///< given out by copy(), and never changed since
    };
    static constexpr std::size_t head_size = 131'072;
    /// Errc::not_ours, version, corrupt. `path` is for the message.
    [[nodiscard]] static Result<Head> read_head(ByteView head, const std::string& path);

    [[nodiscard]] virtual const Uuid& uuid() const = 0;
    [[nodiscard]] virtual const Bytes& superblock() const = 0;
    /// It was given out as a backup, and its superblock was not replaced since.
    [[nodiscard]] virtual bool backup() const = 0;
    /// Replaces it, twin copies one after the other, durable on return. After an error either the old or the new one is
    /// found at the next open.
    virtual Task<Result<void>> replace_superblock(Bytes superblock) = 0;

    /// True once start_journal() has succeeded; from then on there is a journal or an error.
    [[nodiscard]] virtual bool journal_started() const = 0;
    /// First use: starts a journal under `key` (32 bytes) with the client's snapshot. Errc::exists if it was started before.
    /// One that was cut short was not started and can be started again.
    virtual Task<Result<void>> start_journal(SecretBytes key, JournalClient& client) = 0;
    /// Replays. A torn tail that was never acknowledged is cut (logged); anything else that does not authenticate is
    /// Errc::corrupt with its offset. Errc::not_found if the journal was never started.
    virtual Task<Result<void>> open_journal(SecretBytes key, JournalClient& client) = 0;

    /// Durable on return, in the same order as the calls. Calls made while a write is in flight share the next one: one
    /// append, one sync.
    ///
    /// After a failed write or sync the record may be on the disk or not, and nothing later is acknowledged until a
    /// checkpoint without it has succeeded in the other half (fresh pages). That is tried at once, and again before every
    /// later append. The error tells:
    ///   Errc::unavailable  it did not succeed either: nobody knows what a restart would find; settle() before anything
    ///                      is told to anybody about the records concerned;
    ///   any other          (io, no_space, too_large ...) nothing of it is kept, memory and disk are as before.
    virtual Task<Result<void>> append(Bytes record) = 0;
    /// The same for several records that must be there together or not at all. `still` is asked just before they are checked: an
    /// error means that what they were made from is not so any more (empty: nothing is asked).
    virtual Task<Result<void>> append_all(std::vector<Bytes> records, std::function<Result<void>()> still) = 0;
    Task<Result<void>> append_all(std::vector<Bytes> records) { return append_all(std::move(records), {}); }
    /// Success if memory is what a restart would find; else tries to make it so. An answer that depends on a record *not*
    /// being there (a vTPM asks which of its saves was taken) is given only after this.
    virtual Task<Result<void>> settle() = 0;
    /// Writes a checkpoint now.
    virtual Task<Result<void>> checkpoint() = 0;
    /// Writes a checkpoint, and gives out a copy of the image as it is then. Appends go on while that is read, and do not wait
    /// for it. The copy goes before the image does.
    virtual Task<Result<std::unique_ptr<ImageCopy>>> copy() = 0;
    /// Makes the image larger, while it is in use: a file to `size` bytes, a block device to as much of it as `size` (0: all of
    /// it). Appends wait for it. Whatever fails or crashes on the way, the image is whole, and as large as before or as it
    /// should be. Errc::usage: it would not get larger, or over max_size; no_space; unavailable: it is not known which.
    virtual Task<Result<void>> grow(std::uint64_t size) = 0;
    [[nodiscard]] virtual Writability writability() const = 0;
    /// Waits for what is in flight; appends fail with Errc::closed from now on.
    virtual Task<> close() = 0;

    [[nodiscard]] virtual const JournalCounters& counters() const = 0;
};

} // namespace vtpmd::store
