// Layout of the manager's image, format version 1. All numbers are big-endian.
//
//   0              superblock, two copies of 65536 bytes (superblock.hpp), magic "VTPMDMGR", payload:
//                    u32 1 once the journal was started, u32 zero, u64 bytes of a half, then the caller's superblock
//   131072         half 0 (journal_format.hpp)
//   131072 + half  half 1
//
// A checkpoint goes into the half that is not active: its header is zeroed, then the rest, sync; header and parts, sync;
// the end frame, sync: now it is the valid one. Then the other half's header is zeroed, sync, and only then is anything
// new acknowledged. So while both halves have a header the newer one holds nothing that the older one lacks, and a
// checkpoint that was cut short can be forgotten. With neither half whole the image is refused: an empty journal exists
// only where start_journal() never succeeded, which the superblock tells.
#include "store/journal.hpp"

#include "store/journal_format.hpp"
#include "store/superblock.hpp"
#include "util/fifo_lock.hpp"
#include "util/file_watch.hpp"
#include "util/task_group.hpp"
#include "util/uninterrupted.hpp"
#include "util/wake.hpp"

#include <algorithm>
#include <array>
#include <boost/asio/any_completion_handler.hpp>
#include <deque>
#include <optional>

namespace vtpmd::store {

namespace {

using journal::Body;
using journal::FrameType;
using journal::Half;
using journal::Position;

constexpr SuperblockFormat manager_format{"VTPMDMGR", 1, 65'536, "the image of a manager"};
constexpr std::uint64_t halves_at = 2 * manager_format.region;
static_assert(halves_at == ManagerImage::head_size);
constexpr std::size_t fixed_payload = 16;
constexpr std::size_t chunk_size = 262'144;
static_assert(ManagerImage::superblock_limit + fixed_payload <= superblock_payload_limit(manager_format));
static_assert(ManagerImage::append_limit + ManagerImage::prologue_limit + 4 <= journal::body_limit);

/// The size of a half in an image of `size` bytes.
constexpr std::uint64_t half_size_for(std::uint64_t size) { return (size - halves_at) / 2 / 4096 * 4096; }

struct Fixed {
    bool started = false;
    std::uint64_t half_size = 0;
};

Bytes encode_payload(const Fixed& fixed, ByteView opaque) {
    WireWriter w(fixed_payload + opaque.size());
    w.be32(fixed.started ? 1 : 0).be32(0).be64(fixed.half_size).bytes(opaque);
    return w.take();
}

/// Makes [from, to) zeros, not yet durable: writes only what is not, or everything if what is read may not be what is on
/// the disk (`all`).
Task<Result<void>> zero_range(BlockFile& file, std::uint64_t from, std::uint64_t to, bool all) {
    const Bytes zeros(chunk_size);
    Bytes chunk(chunk_size);
    while (from < to) {
        chunk.resize(std::min<std::uint64_t>(chunk_size, to - from));
        if (!all) {
            auto read = co_await file.read(from, chunk);
            if (!read) {
                co_return read;
            }
        }
        if (all || !all_zero(chunk)) {
            auto written = co_await file.write(from, ByteView(zeros).first(chunk.size()));
            if (!written) {
                co_return written;
            }
        }
        from += chunk.size();
    }
    co_return Result<void>{};
}

/// A call of append() that waits for its batch; lives in that call's frame.
struct Waiter {
    std::vector<Bytes> records;
    std::size_t size = 0; ///< in a frame
    Result<void> outcome{};
    asio::any_completion_handler<void()> done;
};

class JournalImage final : public ManagerImage {
  public:
    JournalImage(std::unique_ptr<BlockFile> file, asio::any_io_executor executor, const Log& log, Superblock stored,
                 Fixed fixed, bool look_only = false)
        : log_(log)
        , file_(std::move(file))
        , lock_(executor)
        , group_(executor, log)
        , uuid_(stored.uuid)
        , superblock_generation_(stored.generation)
        , fixed_(fixed)
        , opaque_(stored.payload.begin() + fixed_payload, stored.payload.end())
        , backup_(stored.backup)
        , look_only_(look_only)
        , joined_(executor) {
        counters_.half_bytes = fixed.half_size;
    }

    [[nodiscard]] const Uuid& uuid() const override { return uuid_; }
    [[nodiscard]] const Bytes& superblock() const override { return opaque_; }
    [[nodiscard]] bool backup() const override { return backup_; }
    [[nodiscard]] bool journal_started() const override { return fixed_.started; }
    [[nodiscard]] const JournalCounters& counters() const override { return counters_; }

    Task<Result<void>> replace_superblock(Bytes superblock) override {
        return uninterrupted(do_replace_superblock(std::move(superblock)));
    }
    Task<Result<void>> start_journal(SecretBytes key, JournalClient& client) override {
        return uninterrupted(do_start(std::move(key), client));
    }
    Task<Result<void>> open_journal(SecretBytes key, JournalClient& client) override {
        return uninterrupted(do_open(std::move(key), client));
    }
    Task<Result<void>> append(Bytes record) override {
        std::vector<Bytes> records;
        records.push_back(std::move(record));
        return uninterrupted(do_append(std::move(records)));
    }
    Task<Result<void>> append_all(std::vector<Bytes> records) override {
        return uninterrupted(do_append(std::move(records)));
    }
    Task<Result<void>> checkpoint() override { return uninterrupted(do_explicit_checkpoint()); }
    Task<Result<std::unique_ptr<ImageCopy>>> copy() override { return uninterrupted(do_copy()); }
    Task<Result<void>> settle() override { return uninterrupted(do_settle()); }
    Task<> close() override {
        closed_ = true;
        joined_.set();
        co_await group_.join();
    }

  private:
    [[nodiscard]] const std::string& path() const { return file_->path(); }
    [[nodiscard]] std::uint64_t half_at(std::size_t half) const { return halves_at + half * fixed_.half_size; }

    // ---- superblock

    Task<Result<void>> do_replace_superblock(Bytes superblock) {
        if (superblock.size() > superblock_limit) {
            co_return make_error(Errc::too_large, "{}: a superblock of {} bytes, the limit is {}", path(),
                                 superblock.size(), superblock_limit);
        }
        if (look_only_) {
            co_return make_error(Errc::usage, "{}: is open to be looked at only", path());
        }
        auto held = co_await lock_.acquire();
        if (!held) {
            co_return held.error();
        }
        auto written = co_await store_superblock(fixed_, superblock);
        if (written) {
            opaque_ = std::move(superblock);
            backup_ = false;
        } else {
            note_lost(written.error());
        }
        co_return written;
    }

    Task<Result<void>> store_superblock(Fixed fixed, const Bytes& opaque) {
        Superblock next{uuid_, ++superblock_generation_, encode_payload(fixed, opaque)};
        auto written = co_await write_superblock(*file_, manager_format, std::move(next));
        co_return written;
    }

    // ---- start and open

    Task<Result<void>> do_start(SecretBytes key, JournalClient& client) {
        if (fixed_.started) {
            co_return make_error(Errc::exists, "{}: the journal was started before", path());
        }
        auto held = co_await lock_.acquire();
        if (!held) {
            co_return held.error();
        }
        key_ = std::move(key);
        client_ = &client;
        // What an earlier start left that was cut short must not be found beside this one's.
        auto forgotten = co_await forget_half(1);
        if (!forgotten) {
            co_return forgotten.error();
        }
        active_ = 1;
        auto begun = co_await write_checkpoint();
        if (!begun) {
            co_return begun;
        }
        Fixed started = fixed_;
        started.started = true;
        auto written = co_await store_superblock(started, opaque_);
        if (written) {
            fixed_ = started;
            open_ = true;
        }
        co_return written;
    }

    Task<Result<void>> do_open(SecretBytes key, JournalClient& client) {
        if (!fixed_.started) {
            co_return make_error(Errc::not_found, "{}: no journal was ever started in this image", path());
        }
        auto held = co_await lock_.acquire();
        if (!held) {
            co_return held.error();
        }
        key_ = std::move(key);
        client_ = &client;
        std::array<Half, 2> halves;
        for (std::size_t i = 0; i < 2; ++i) {
            auto half = co_await read_half(i);
            if (!half) {
                co_return half.error();
            }
            halves[i] = std::move(*half);
        }
        auto chosen = choose(halves);
        if (!chosen) {
            co_return chosen.error();
        }
        Half& half = halves[*chosen];
        // All of it is understood before any of the disk is touched.
        if (auto replayed = replay(half); !replayed) {
            co_return replayed;
        }
        counters_.checkpoint_bytes = half.checkpoint_bytes;
        if (look_only_) {
            co_return Result<void>{};
        }
        auto mended = co_await mend(*chosen, half, halves[1 - *chosen]);
        if (!mended) {
            co_return mended;
        }
        active_ = *chosen;
        generation_ = std::max(halves[0].generation, halves[1].generation);
        if (halves[1 - *chosen].state == Half::State::unreadable) {
            generation_ = half.generation; // the other's number is not to be believed
        }
        next_ = std::move(half.next);
        open_ = true;
        co_return Result<void>{};
    }

    Task<Result<Half>> read_half(std::size_t index) {
        Bytes bytes(journal::sector_size);
        auto read = co_await file_->read(half_at(index), bytes);
        if (!read) {
            co_return read.error();
        }
        if (!all_zero(bytes)) {
            bytes.resize(fixed_.half_size);
            read = co_await file_->read(half_at(index), bytes);
            if (!read) {
                co_return read.error();
            }
        }
        co_return journal::read_half(bytes, key_.view(), uuid_);
    }

    /// Which half is the journal.
    [[nodiscard]] Result<std::size_t> choose(const std::array<Half, 2>& halves) const {
        using State = Half::State;
        auto readable = [&](std::size_t i) {
            return halves[i].state != State::blank && halves[i].state != State::unreadable;
        };
        std::size_t newer = readable(1) && (!readable(0) || halves[1].generation > halves[0].generation) ? 1 : 0;
        if (readable(0) && readable(1) && halves[0].generation == halves[1].generation) {
            return make_error(Errc::corrupt, "{}: both halves of the journal have generation {}; restore the image",
                              path(), halves[0].generation);
        }
        if (halves[newer].state == State::incomplete && readable(1 - newer)) {
            newer = 1 - newer; // its checkpoint never became the valid one
        }
        const Half& half = halves[newer];
        if (half.state == State::complete) {
            return newer;
        }
        const std::uint64_t offset = half_at(newer) + half.damage_offset;
        if (half.state == State::damaged) {
            return make_error(
                Errc::corrupt,
                "{}: the journal is damaged at offset {}: {}; nothing was changed: restore the image from a "
                "backup, do not create a new one in its place",
                path(), offset, half.damage);
        }
        return make_error(
            Errc::corrupt,
            "{}: neither half of the journal (offsets {} and {}) is whole, though it was started; nothing was "
            "changed: restore the image from a backup, do not create a new one in its place",
            path(), half_at(0), half_at(1));
    }

    Result<void> replay(const Half& half) {
        for (const SecretBytes& frame : half.frames) {
            auto applied = journal::for_each_record(frame.view(), [this](ByteView r) { return client_->apply(r); });
            if (!applied) {
                return in_context(applied.error(), path());
            }
        }
        return {};
    }

    /// Puts on the disk what was concluded from it: torn tails are zeros, the other half is given up.
    Task<Result<void>> mend(std::size_t index, const Half& half, const Half& other) {
        // If its sync failed before this start, the last frame may be in the page cache and not on the disk; what is
        // appended behind it must never stand behind a hole.
        auto written = co_await file_->write_sync(half_at(index) + half.last_offset, half.last_frame);
        if (!written) {
            co_return written;
        }
        for (std::size_t at : half.broken_marks) {
            log_.warning("{}: the end mark at offset {} was cut or damaged; made good, its frame is whole", path(),
                         half_at(index) + at);
            written = co_await file_->write_sync(half_at(index) + at, journal::end_mark());
            if (!written) {
                co_return written;
            }
        }
        if (half.torn_end != 0) {
            log_.warning("{}: the journal ends in a write that was cut short and never acknowledged (offset {}); cut",
                         path(), half_at(index) + half.next.offset);
            const Bytes zeros(half.torn_end - half.next.offset);
            written = co_await file_->write_sync(half_at(index) + half.next.offset, zeros);
            if (!written) {
                co_return written;
            }
        }
        if (other.state != Half::State::blank) {
            log_.info("{}: a checkpoint was cut short; finished", path());
            auto forgotten = co_await forget_half(1 - index);
            if (!forgotten) {
                co_return forgotten;
            }
        }
        co_return Result<void>{};
    }

    /// Zeroes a half's header, durably: it is not a half any more.
    Task<Result<void>> forget_half(std::size_t index) {
        const Bytes zeros(journal::sector_size);
        auto written = co_await file_->write_sync(half_at(index), zeros);
        ++counters_.syncs;
        co_return written;
    }

    // ---- append

    Task<Result<void>> do_append(std::vector<Bytes> records) {
        Waiter waiter;
        for (const Bytes& r : records) {
            waiter.size += 4 + r.size();
        }
        waiter.records = std::move(records);
        if (auto ready = may_append(waiter); !ready) {
            co_return ready;
        }
        queue_.push_back(&waiter);
        counters_.waiting = queue_.size();
        queued_ += waiter.size;
        joined_.set();
        if (!flushing_) {
            flushing_ = true;
            group_.spawn("journal", flush());
        }
        co_await wait(waiter);
        co_return waiter.outcome;
    }

    [[nodiscard]] Result<void> may_append(const Waiter& waiter) const {
        if (!open_) {
            return make_error(Errc::usage, "{}: the journal is not open", path());
        }
        if (closed_) {
            return make_error(Errc::closed, "{}: the journal is closed", path());
        }
        if (stopped_) {
            return *stopped_;
        }
        if (waiter.size > append_limit) {
            return make_error(Errc::too_large, "{}: records of {} bytes together, the limit is {}", path(), waiter.size,
                              append_limit);
        }
        return {};
    }

    static Task<> wait(Waiter& waiter) {
        return asio::async_initiate<const asio::use_awaitable_t<>, void()>(
            [](auto handler, Waiter* w) { w->done = std::move(handler); }, asio::use_awaitable, &waiter);
    }

    /// The one writer: batch after batch until nobody waits.
    Task<> flush() {
        while (!queue_.empty()) {
            co_await guarded_gather();
            std::vector<Waiter*> batch = take_batch();
            Result<void> outcome = co_await guarded_commit(batch);
            expected_ = batch.size() + queue_.size();
            for (Waiter* w : batch) {
                w->outcome = outcome;
                asio::post(co_await asio::this_coro::executor, std::move(w->done));
            }
        }
        flushing_ = false;
    }

    /// Nobody is worth waiting for.
    [[nodiscard]] bool gathered() const {
        return queue_.size() >= expected_ || queued_ >= batch_limit() || closed_ || stopped_;
    }
    Task<Result<void>> everyone() {
        while (!gathered()) {
            if (auto ec = co_await joined_.wait()) {
                co_return make_error(Errc::canceled, "{}", ec.message());
            }
        }
        co_return Result<void>{};
    }
    Task<> guarded_gather() {
        if (gathered()) {
            co_return;
        }
        try {
            co_await client_->gather(everyone());
        } catch (const std::exception& e) {
            log_.error("{}: gathering a batch: {}", path(), e.what());
        }
    }

    /// Bytes of the records that one batch takes.
    [[nodiscard]] std::uint64_t batch_limit() const {
        return std::min<std::uint64_t>(append_limit, fixed_.half_size / 4);
    }
    std::vector<Waiter*> take_batch() {
        std::vector<Waiter*> batch;
        std::size_t size = 0;
        while (!queue_.empty() && (batch.empty() || size + queue_.front()->size <= batch_limit())) {
            size += queue_.front()->size;
            queued_ -= queue_.front()->size;
            batch.push_back(queue_.front());
            queue_.pop_front();
        }
        counters_.waiting = queue_.size();
        return batch;
    }

    /// No caller is left waiting because something threw.
    Task<Result<void>> guarded_commit(const std::vector<Waiter*>& batch) {
        try {
            auto outcome = co_await commit(batch);
            co_return outcome;
        } catch (const std::exception& e) {
            stop(make_error(Errc::unavailable, "{}: {}", path(), e.what()));
        }
        co_return *stopped_;
    }

    Task<Result<void>> commit(const std::vector<Waiter*>& batch) {
        if (stopped_) {
            co_return *stopped_;
        }
        auto held = co_await lock_.acquire();
        if (!held) {
            co_return held.error();
        }
        auto written = co_await write_batch(batch);
        held->release();
        if (!written) {
            co_return written;
        }
        auto acknowledged = co_await client_->before_acknowledge();
        if (!acknowledged) { // the records are there all the same
            Error unknown = acknowledged.error();
            unknown.code = Errc::unavailable;
            co_return unknown;
        }
        co_return acknowledged;
    }

    Task<Result<void>> write_batch(const std::vector<Waiter*>& batch) {
        auto recovered = co_await recover();
        if (!recovered) {
            co_return in_context(recovered.error(), "nothing can be kept after an earlier failure");
        }
        Body body;
        auto gathered = gather(batch, body);
        if (!gathered) {
            co_return gathered;
        }
        if (next_.offset + body.extent() > fixed_.half_size) {
            auto made = co_await write_checkpoint();
            if (!made) {
                co_return made;
            }
            if (next_.offset + body.extent() > fixed_.half_size) {
                co_return make_error(Errc::no_space,
                                     "{}: full: {} bytes after a checkpoint of {} do not fit a half of {}", path(),
                                     body.extent(), next_.offset, fixed_.half_size);
            }
        }
        const std::uint64_t at = half_at(active_) + next_.offset;
        // next_ moves even if the write fails: it is not used again before a checkpoint has replaced it.
        const Bytes frame = journal::encode_frame(uuid_, next_, FrameType::batch, body);
        auto written = co_await file_->write_sync(at, frame);
        ++counters_.syncs;
        if (!written) {
            co_return co_await supersede(written.error());
        }
        ++counters_.batches;
        counters_.records += body.count();
        counters_.bytes += frame.size();
        counters_.largest_batch = std::max<std::uint64_t>(counters_.largest_batch, body.count());
        const auto& bounds = JournalCounters::batch_bounds;
        ++counters_
              .batch_sizes[static_cast<std::size_t>(std::ranges::lower_bound(bounds, body.count()) - bounds.begin())];
        auto applied = journal::for_each_record(body.bytes(), [this](ByteView r) { return client_->apply(r); });
        if (!applied) {
            stop(applied.error());
        }
        co_return applied;
    }

    Result<void> gather(const std::vector<Waiter*>& batch, Body& body) {
        std::size_t count = 0;
        for (const Waiter* w : batch) {
            count += w->records.size();
        }
        std::size_t size = 0;
        for (const Bytes& r : client_->prologue(count)) {
            size += 4 + r.size();
            if (size > prologue_limit) {
                return make_error(Errc::too_large, "{}: a prologue of over {} bytes", path(), prologue_limit);
            }
            body.add(r);
        }
        for (const Waiter* w : batch) {
            for (const Bytes& r : w->records) {
                body.add(r);
            }
        }
        return {};
    }

    /// A batch may be on the disk or not: a checkpoint without it decides.
    Task<Result<void>> supersede(Error failure) {
        suspect_ = true;
        distrusted_[active_] = true;
        note_lost(failure);
        log_.error("{}; trying a checkpoint in the other half", failure.message);
        auto recovered = co_await recover();
        if (recovered) {
            co_return in_context(failure, "nothing of it is kept");
        }
        log_.error("{}: {}; nothing is acknowledged until a checkpoint succeeds", path(), recovered.error().message);
        co_return make_error(Errc::unavailable, "the outcome is unknown until the journal can be written again: {}",
                             failure.message);
    }

    /// Of an image that was pulled away or written over nothing is to be believed: all of it is written again.
    void note_lost(const Error& failure) {
        if (pulled_away(failure) && open_) {
            suspect_ = true;
            superblock_lost_ = true;
            distrusted_ = {true, true};
        }
    }

    void stop(const Error& why) {
        log_.error("{}: the journal stops: {}", path(), why.message);
        stopped_ = why;
    }

    // ---- checkpoints

    /// Makes the active half one that can be appended to.
    Task<Result<void>> recover() {
        if (suspect_) {
            if (superblock_lost_) {
                auto written = co_await store_superblock(fixed_, opaque_);
                if (!written) {
                    co_return written;
                }
                superblock_lost_ = false;
            }
            auto made = co_await write_checkpoint();
            if (made) {
                log_.info("{}: the journal goes on in a new checkpoint", path());
            }
            co_return made;
        }
        if (other_lives_) {
            auto forgotten = co_await forget_half(1 - active_);
            other_lives_ = !forgotten.has_value();
            co_return forgotten;
        }
        co_return Result<void>{};
    }

    Task<Result<void>> do_explicit_checkpoint() {
        if (!open_ || closed_) {
            co_return make_error(Errc::closed, "{}: the journal is not open", path());
        }
        if (stopped_) {
            co_return *stopped_;
        }
        auto held = co_await lock_.acquire();
        if (!held) {
            co_return held.error();
        }
        if (other_lives_) {
            auto recovered = co_await recover();
            if (!recovered) {
                co_return recovered;
            }
        }
        auto made = co_await write_checkpoint();
        co_return made;
    }

    Task<Result<std::unique_ptr<ImageCopy>>> do_copy() {
        auto made = co_await do_explicit_checkpoint();
        if (!made) {
            co_return made.error();
        }
        auto held = co_await lock_.acquire();
        if (!held) {
            co_return held.error();
        }
        if (suspect_) { // a batch failed in between
            co_return make_error(Errc::unavailable, "{}: does not take writes at the moment", path());
        }
        // What was appended in between comes with it: all up to here is whole.
        CopyPlan plan{.head = Bytes(halves_at),
                      .header = Bytes(journal::sector_size),
                      .half = active_,
                      .half_size = fixed_.half_size,
                      .used = next_.offset};
        auto read = co_await file_->read(0, plan.head);
        if (read) {
            read = co_await file_->read(half_at(active_), plan.header);
        }
        if (!read) {
            co_return read.error();
        }
        mark_backup(manager_format, MutByteView(plan.head).first(manager_format.region));
        mark_backup(manager_format, MutByteView(plan.head).subspan(manager_format.region));
        const std::size_t half = active_;
        const std::uint64_t begun = begun_[half];
        auto more = [this, half, begun](std::uint64_t at, MutByteView into) {
            return uninterrupted(do_read_for_copy(half, begun, at, into));
        };
        co_return make_image_copy(std::move(plan), std::move(more));
    }

    Task<Result<void>> do_read_for_copy(std::size_t half, std::uint64_t begun, std::uint64_t at, MutByteView into) {
        auto held = co_await lock_.acquire();
        if (!held) {
            co_return held.error();
        }
        if (closed_) {
            co_return make_error(Errc::closed, "{}: the journal is closed", path());
        }
        if (begun_[half] != begun) {
            co_return make_error(Errc::unavailable,
                                 "{}: so much was saved while this copy was read that its half of the journal is being "
                                 "written over",
                                 path());
        }
        auto read = co_await file_->read(at, into);
        co_return read;
    }

    Task<Result<void>> do_settle() {
        if (look_only_) {
            co_return Result<void>{};
        }
        auto held = co_await lock_.acquire();
        if (!held) {
            co_return held.error();
        }
        auto recovered = co_await recover();
        co_return recovered;
    }

    /// The client's snapshot in bodies, and the bytes they will take.
    struct Snapshot {
        std::vector<Body> parts;
        std::uint64_t records = 0;
        std::uint64_t bytes = 0;
    };
    Result<Snapshot> take_snapshot() {
        Snapshot out;
        bool too_large = false;
        client_->snapshot([&](ByteView record) {
            if (record.size() > append_limit) {
                too_large = true;
                return;
            }
            if (out.parts.empty() || !out.parts.back().fits(record.size())) {
                out.parts.emplace_back();
            }
            out.parts.back().add(record);
            ++out.records;
        });
        if (too_large) {
            return make_error(Errc::too_large, "{}: a record of the snapshot is over {} bytes", path(), append_limit);
        }
        out.bytes = 2 * journal::sector_size; // the half's header and the end frame
        for (const Body& part : out.parts) {
            out.bytes += part.extent();
        }
        if (out.bytes > fixed_.half_size) {
            return make_error(Errc::no_space,
                              "{}: a checkpoint of {} bytes does not fit a half of {}; nothing was changed", path(),
                              out.bytes, fixed_.half_size);
        }
        return out;
    }

    /// Into the half that is not active, which then is. On error the active half stays what it was, but if the error came
    /// after the first write nothing may be appended to it (suspect_), since the new one may be whole on the disk.
    Task<Result<void>> write_checkpoint() {
        auto snapshot = take_snapshot();
        if (!snapshot) {
            co_return snapshot.error();
        }
        const std::size_t target = 1 - active_;
        auto cleared = co_await clear_half(target);
        if (!cleared) {
            note_lost(cleared.error());
            co_return cleared;
        }
        suspect_ = true;
        distrusted_[target] = true;
        auto begun = journal::begin_half(key_.view(), uuid_, ++generation_);
        auto written = co_await write_parts(target, begun, *snapshot);
        if (!written) {
            note_lost(written.error());
            co_return written;
        }
        next_ = std::move(begun.position);
        active_ = target;
        suspect_ = false;
        distrusted_[target] = false;
        other_lives_ = true;
        ++counters_.checkpoints;
        counters_.checkpoint_bytes = snapshot->bytes;
        counters_.bytes += snapshot->bytes;
        auto forgotten = co_await forget_half(1 - target);
        other_lives_ = !forgotten.has_value();
        if (!forgotten) {
            note_lost(forgotten.error());
        }
        co_return forgotten;
    }

    Task<Result<void>> clear_half(std::size_t index) {
        ++begun_[index];
        auto forgotten = co_await forget_half(index);
        if (!forgotten) {
            co_return forgotten;
        }
        // After a failure the page cache may show zeros that never reached the disk.
        const bool all = std::exchange(distrusted_[index], true);
        auto zeroed = co_await zero_range(*file_, half_at(index), half_at(index) + fixed_.half_size, all);
        if (!zeroed) {
            co_return zeroed;
        }
        auto synced = co_await file_->sync();
        ++counters_.syncs;
        distrusted_[index] = !synced.has_value();
        co_return synced;
    }

    Task<Result<void>> write_parts(std::size_t target, journal::Beginning& begun, const Snapshot& snapshot) {
        auto written = co_await file_->write(half_at(target), begun.sector);
        if (!written) {
            co_return written;
        }
        for (const Body& part : snapshot.parts) {
            const std::uint64_t at = half_at(target) + begun.position.offset;
            const Bytes frame = journal::encode_frame(uuid_, begun.position, FrameType::part, part);
            written = co_await file_->write(at, frame);
            if (!written) {
                co_return written;
            }
        }
        // The end frame says that all before it is there: so that must be.
        auto synced = co_await file_->sync();
        if (!synced) {
            co_return synced;
        }
        Body end;
        WireWriter count;
        count.be64(snapshot.records);
        end.add(count.view());
        const std::uint64_t at = half_at(target) + begun.position.offset;
        const Bytes frame = journal::encode_frame(uuid_, begun.position, FrameType::end, end);
        written = co_await file_->write_sync(at, frame);
        counters_.syncs += 2;
        co_return written;
    }

    const Log& log_;
    std::unique_ptr<BlockFile> file_;
    FifoLock lock_; ///< over the file and the journal's state
    TaskGroup group_;
    JournalClient* client_ = nullptr;

    Uuid uuid_;
    std::uint64_t superblock_generation_;
    Fixed fixed_;
    Bytes opaque_;
    bool backup_;          ///< of what was read; goes with the next superblock
    const bool look_only_; ///< nothing is written

    SecretBytes key_;
    std::size_t active_ = 0;
    std::uint64_t generation_ = 0; ///< the highest ever tried
    Position next_;
    bool superblock_lost_ = false;         ///< to be written again as well
    bool suspect_ = false;                 ///< the active half cannot be appended to: a checkpoint must come first
    bool other_lives_ = false;             ///< the active half is whole but the older one is not given up yet
    std::array<std::uint64_t, 2> begun_{}; ///< how often that half was begun anew (copies look whether it was)
    std::array<bool, 2> distrusted_{};     ///< a write or sync in that half failed: what is read may not be on the disk
    bool open_ = false;
    bool closed_ = false;
    std::optional<Error> stopped_;

    std::deque<Waiter*> queue_;
    std::size_t queued_ = 0;   ///< bytes of the queue's records
    std::size_t expected_ = 0; ///< the last batch's callers, and those who were waiting at its end
    Wake joined_;              ///< somebody came into the queue, or nobody will any more
    bool flushing_ = false;
    JournalCounters counters_;
};

Task<Result<std::unique_ptr<ManagerImage>>> do_create(std::unique_ptr<BlockFile> file,
                                                      ManagerImage::CreateOptions options, const Log& log) {
    const std::uint64_t size = file->fixed_size() ? std::min(file->size(), ManagerImage::max_size) : options.size;
    if (size < ManagerImage::min_size || size > ManagerImage::max_size) {
        co_return make_error(Errc::usage, "{}: an image of {} bytes; it must have {} to {}", file->path(), size,
                             ManagerImage::min_size, ManagerImage::max_size);
    }
    if (options.superblock.size() > ManagerImage::superblock_limit) {
        co_return make_error(Errc::too_large, "{}: a superblock of {} bytes, the limit is {}", file->path(),
                             options.superblock.size(), ManagerImage::superblock_limit);
    }
    Bytes chunk(halves_at);
    const std::uint64_t there = std::min<std::uint64_t>(file->size(), file->fixed_size() ? size : file->size());
    bool blank = true;
    for (std::uint64_t at = 0; at < there && blank; at += chunk.size()) {
        std::ranges::fill(chunk, std::byte{0});
        auto read =
            co_await file->read(at, MutByteView(chunk).first(std::min<std::uint64_t>(chunk.size(), there - at)));
        if (!read) {
            co_return read.error();
        }
        blank = at == 0 ? creatable(manager_format, chunk) : all_zero(chunk);
    }
    if (!blank) {
        co_return make_error(Errc::exists, "{}: holds something already; nothing was written", file->path());
    }
    auto room = co_await file->allocate(0, size);
    if (!room) {
        co_return room.error();
    }
    const Fixed fixed{false, half_size_for(size)};
    Superblock superblock{options.uuid, 1, encode_payload(fixed, options.superblock)};
    Superblock copy = superblock;
    auto created = co_await create_superblock(*file, manager_format, std::move(copy));
    if (!created) {
        co_return created.error();
    }
    auto executor = co_await asio::this_coro::executor;
    co_return std::make_unique<JournalImage>(std::move(file), executor, log, std::move(superblock), fixed);
}

Task<Result<std::unique_ptr<ManagerImage>>> do_open_image(std::unique_ptr<BlockFile> file, const Log& log,
                                                          bool look_only) {
    auto reading = look_only ? peek_superblock(*file, manager_format) : open_superblock(*file, manager_format, log);
    auto superblock = co_await std::move(reading);
    if (!superblock) {
        co_return superblock.error();
    }
    WireReader r(superblock->payload);
    const std::uint32_t started = r.be32();
    const std::uint32_t reserved = r.be32();
    const Fixed fixed{started == 1, r.be64()};
    const bool sane = r.ok() && started <= 1 && reserved == 0 && fixed.half_size % 4096 == 0 &&
                      fixed.half_size >= half_size_for(ManagerImage::min_size) &&
                      fixed.half_size <= half_size_for(ManagerImage::max_size);
    if (!sane) {
        co_return make_error(Errc::corrupt, "{}: the superblock's content makes no sense", file->path());
    }
    if (file->size() < halves_at + 2 * fixed.half_size) {
        co_return make_error(Errc::corrupt, "{}: has {} bytes, the image {}: the rest was cut off", file->path(),
                             file->size(), halves_at + 2 * fixed.half_size);
    }
    auto executor = co_await asio::this_coro::executor;
    co_return std::make_unique<JournalImage>(std::move(file), executor, log, std::move(*superblock), fixed, look_only);
}

} // namespace

Task<Result<std::unique_ptr<ManagerImage>>> ManagerImage::create(std::unique_ptr<BlockFile> file, CreateOptions options,
                                                                 const Log& log) {
    return uninterrupted(do_create(std::move(file), std::move(options), log));
}

Task<Result<std::unique_ptr<ManagerImage>>> ManagerImage::open(std::unique_ptr<BlockFile> file, const Log& log) {
    return uninterrupted(do_open_image(std::move(file), log, false));
}

Task<Result<std::unique_ptr<ManagerImage>>> ManagerImage::look(std::unique_ptr<BlockFile> file, const Log& log) {
    return uninterrupted(do_open_image(std::move(file), log, true));
}

Result<ManagerImage::Head> ManagerImage::read_head(ByteView head, const std::string& path) {
    auto superblock = read_superblock(manager_format, head, path);
    if (!superblock) {
        return superblock.error();
    }
    return Head{.uuid = superblock->uuid, .backup = superblock->backup};
}

} // namespace vtpmd::store
