// Layout of the manager's image, format version 1. All numbers are big-endian.
//
//   0              superblock, two copies of 65536 bytes (superblock.hpp), magic "VTPMDMGR", payload:
//                    u32 1 once the journal was started, u32 zero, u64 bytes of a half, then the caller's superblock
//   131072         half 0 (journal_format.hpp)
//   131072 + half  half 1
//
// A checkpoint goes into the half that is not active: its header is zeroed, then the rest, sync; header and parts, sync;
// the end frame, sync: now it is the valid one. Then the other half's header is zeroed, sync, and only then is anything
// new acknowledged. So while both halves have a header the newer one holds nothing that was acknowledged and that the older
// one lacks, and a checkpoint that was cut short can be forgotten. With neither half whole the image is refused: an empty
// journal exists only where start_journal() never succeeded, which the superblock tells.
//
// A batch that does not fit behind the last one is made durable by the checkpoint itself, which is then one of the state
// with that batch. So a store needs room for its state, and none for the way there: one that is full to the last byte still
// takes every batch that does not make the state larger.
//
// To grow: the checkpoint goes into half 0, which stays where it is; all from its old end to its new one and the header of
// the new half 1 become zeros, sync; then the superblock with the new size. Half 0 is the same by the old and by the new
// superblock, and half 1 is blank by both, so either may be found. Until it is known which, nothing else is written.
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
    std::size_t size = 0;                ///< in a frame
    std::function<Result<void>()> still; ///< ManagerImage::append_all()
    Result<void> outcome{};
    asio::any_completion_handler<void()> done;
};

/// Callers that share a write.
struct Batch {
    std::vector<Waiter*> callers;
    std::vector<Waiter*> refused; ///< by the client's check, each with its outcome
    Body body;
    bool short_of_room = false; ///< one of the refused
};

/// Bytes of a checkpoint beside its records, at most: the half's header, the end frame, and what each part adds. Two parts
/// that follow each other are together more than one holds, or they would be one.
constexpr std::uint64_t checkpoint_fixed = 2 * journal::sector_size;
constexpr std::uint64_t part_overhead = 4 + journal::frame_overhead + journal::sector_size - 1;
constexpr std::uint64_t room_in(std::uint64_t half_size) {
    return (half_size - checkpoint_fixed - 2 * part_overhead) * journal::body_limit /
           (journal::body_limit + 2 * part_overhead);
}

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
        set_size(fixed);
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
        return uninterrupted(do_append(std::move(records), {}));
    }
    Task<Result<void>> append_all(std::vector<Bytes> records, std::function<Result<void>()> still) override {
        return uninterrupted(do_append(std::move(records), std::move(still)));
    }
    Task<Result<void>> checkpoint() override { return uninterrupted(do_explicit_checkpoint()); }
    Task<Result<std::unique_ptr<ImageCopy>>> copy() override { return uninterrupted(do_copy()); }
    Task<Result<void>> settle() override { return uninterrupted(do_settle()); }
    Task<Result<void>> grow(std::uint64_t size) override { return uninterrupted(do_grow(size)); }
    [[nodiscard]] Writability writability() const override { return state_; }
    Task<> close() override {
        closed_ = true;
        joined_.set();
        co_await group_.join();
    }

  private:
    [[nodiscard]] const std::string& path() const { return file_->path(); }
    [[nodiscard]] std::uint64_t half_at(std::size_t half) const { return halves_at + half * fixed_.half_size; }
    void set_size(const Fixed& fixed) {
        fixed_ = fixed;
        counters_.half_bytes = fixed.half_size;
        counters_.room = room_in(fixed.half_size);
    }
    void on(JournalEvent event) {
        const auto after = next(state_, event);
        if (!after) {
            log_.error("{}: event {} in state {} of the journal", path(), static_cast<int>(event),
                       static_cast<int>(state_));
            std::abort();
        }
        state_ = *after;
    }

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
            on(JournalEvent::superblock_done);
        } else {
            note_lost(written.error());
        }
        co_return written;
    }

    Task<Result<void>> store_superblock(Fixed fixed, const Bytes& opaque) {
        Superblock next{uuid_, ++superblock_generation_, encode_payload(fixed, opaque)};
        auto written = co_await write_superblock(*file_, manager_format, std::move(next), doubtful_copy_);
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
        state_ = Writability::unopened; // of this start
        // What an earlier start left that was cut short must not be found beside this one's.
        auto forgotten = co_await forget_half(1);
        if (!forgotten) {
            co_return forgotten.error();
        }
        active_ = 1;
        auto begun = co_await write_checkpoint(nullptr);
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
        auto set_aside = replay(half, half_at(*chosen));
        if (!set_aside) {
            co_return set_aside.error();
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
        counters_.set_aside = *set_aside;
        on(*set_aside == 0 ? JournalEvent::opened : JournalEvent::set_aside);
        open_ = true;
        if (*set_aside != 0) {
            if (auto gone = co_await recover(); !gone) {
                log_.error("{}: {}; nothing is acknowledged until a checkpoint succeeds", path(), gone.error().message);
            }
        }
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

    /// How many records were set aside. A program before this one could write a record that cannot be applied, where two
    /// operations met. It told nobody that any of that write is kept, applied what stood before that record, and wrote nothing
    /// behind. So such a record can only be in the last batch; the rest of that batch goes with it.
    Result<std::uint64_t> replay(const Half& half, std::uint64_t half_offset) {
        const bool ends_in_batch = half.last_offset >= half.checkpoint_bytes;
        std::uint64_t set_aside = 0;
        for (const SecretBytes& frame : half.frames) {
            const bool last = ends_in_batch && &frame == &half.frames.back();
            auto applied = journal::for_each_record(frame.view(), [&](ByteView r) -> Result<void> {
                if (set_aside != 0) {
                    ++set_aside;
                    return {};
                }
                auto done = client_->apply(r);
                if (!done && last && client_->cannot_follow(r)) {
                    log_.error("{}: the last write of the journal (offset {}) has a record that cannot follow what is "
                               "before it: {}. An older program wrote it, where two operations met, and stopped. It is "
                               "set aside with the rest of that write; nobody was told that any of it is kept",
                               path(), half_offset + half.last_offset, done.error().message);
                    ++set_aside;
                    return {};
                }
                return done;
            });
            if (!applied) {
                return in_context(applied.error(), path());
            }
        }
        return set_aside;
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

    Task<Result<void>> do_append(std::vector<Bytes> records, std::function<Result<void>()> still) {
        Waiter waiter;
        waiter.still = std::move(still);
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

    /// The writer begins once this one can be told its outcome, which may be known at once.
    Task<> wait(Waiter& waiter) {
        return asio::async_initiate<const asio::use_awaitable_t<>, void()>(
            [this](auto handler, Waiter* w) {
                w->done = std::move(handler);
                if (!flushing_) {
                    flushing_ = true;
                    group_.spawn("journal", flush());
                }
            },
            asio::use_awaitable, &waiter);
    }

    /// The one writer: batch after batch until nobody waits.
    Task<> flush() {
        while (!queue_.empty()) {
            co_await guarded_gather();
            Batch batch{.callers = take_batch(), .refused = {}, .body = {}};
            const std::size_t size = batch.callers.size();
            Result<void> outcome = co_await guarded_commit(batch);
            expected_ = size + queue_.size();
            for (Waiter* w : batch.callers) {
                w->outcome = outcome;
                asio::post(co_await asio::this_coro::executor, std::move(w->done));
            }
            for (Waiter* w : batch.refused) {
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
    Task<Result<void>> guarded_commit(Batch& batch) {
        try {
            auto outcome = co_await commit(batch);
            co_return outcome;
        } catch (const std::exception& e) {
            stop(make_error(Errc::unavailable, "{}", e.what()));
        }
        co_return *stopped_;
    }

    Task<Result<void>> commit(Batch& batch) {
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
        if (batch.callers.empty()) {
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

    Task<Result<void>> write_batch(Batch& batch) {
        auto recovered = co_await recover();
        if (!recovered) {
            co_return in_context(recovered.error(), "nothing can be kept after an earlier failure");
        }
        auto gathered = gather(batch);
        if (!gathered) {
            co_return gathered;
        }
        if (batch.short_of_room && client_->checkpoint_makes_room()) {
            auto made = co_await write_checkpoint(nullptr);
            if (!made && state_ != Writability::appendable) {
                co_return made;
            }
            gathered = gather(batch);
            if (!gathered) {
                co_return gathered;
            }
        }
        if (batch.callers.empty()) {
            co_return Result<void>{};
        }
        const bool fits = next_.offset + batch.body.extent() <= fixed_.half_size;
        Task<Result<void>> writing = fits ? write_frame(batch.body) : write_by_checkpoint(batch.body);
        auto written = co_await std::move(writing);
        co_return written;
    }

    /// What of the batch may be written, in its body.
    Result<void> gather(Batch& batch) {
        batch.callers.insert(batch.callers.begin(), batch.refused.begin(), batch.refused.end());
        batch.refused.clear();
        batch.short_of_room = false;
        batch.body = Body();
        client_->begin_batch(counters_.room);
        std::size_t count = 0;
        for (const Waiter* w : batch.callers) {
            count += w->records.size();
        }
        std::size_t size = 0;
        const std::vector<Bytes> prologue = client_->prologue(count);
        for (const Bytes& r : prologue) {
            size += 4 + r.size();
            if (size > prologue_limit) {
                return make_error(Errc::too_large, "{}: a prologue of over {} bytes", path(), prologue_limit);
            }
            batch.body.add(r);
        }
        if (auto may = client_->check(prologue); !may) {
            return may;
        }
        std::vector<Waiter*> taken;
        for (Waiter* w : batch.callers) {
            w->outcome = w->still ? w->still() : Result<void>{};
            if (w->outcome) {
                w->outcome = client_->check(w->records);
            }
            if (!w->outcome) {
                ++counters_.refused;
                batch.short_of_room = batch.short_of_room || w->outcome.error().code == Errc::no_space;
                batch.refused.push_back(w);
                continue;
            }
            taken.push_back(w);
            for (const Bytes& r : w->records) {
                batch.body.add(r);
            }
        }
        batch.callers = std::move(taken);
        return {};
    }

    /// Behind the last frame.
    Task<Result<void>> write_frame(const Body& body) {
        const std::uint64_t at = half_at(active_) + next_.offset;
        // next_ moves even if the write fails: it is not used again before a checkpoint has replaced it.
        const Bytes frame = journal::encode_frame(uuid_, next_, FrameType::batch, body);
        auto written = co_await file_->write_sync(at, frame);
        ++counters_.syncs;
        if (!written) {
            on(JournalEvent::write_failed);
            distrusted_[active_] = true;
            co_return co_await supersede(written.error());
        }
        counters_.bytes += frame.size();
        co_return take(body);
    }

    /// As a checkpoint of the state with it.
    Task<Result<void>> write_by_checkpoint(const Body& body) {
        auto made = co_await write_checkpoint(&body);
        if (made || state_ == Writability::appendable) { // or nothing was written
            co_return made;
        }
        if (state_ == Writability::needs_checkpoint) {
            co_return co_await supersede(made.error());
        }
        // It is durable, but the half before it is not given up.
        Error unknown = made.error();
        unknown.code = Errc::unavailable;
        co_return unknown;
    }

    /// A batch is durable.
    Result<void> take(const Body& body) {
        ++counters_.batches;
        counters_.records += body.count();
        counters_.largest_batch = std::max<std::uint64_t>(counters_.largest_batch, body.count());
        const auto& bounds = JournalCounters::batch_bounds;
        ++counters_
              .batch_sizes[static_cast<std::size_t>(std::ranges::lower_bound(bounds, body.count()) - bounds.begin())];
        auto applied = journal::for_each_record(body.bytes(), [this](ByteView r) { return client_->apply(r); });
        if (!applied) {
            stop(applied.error());
            return *stopped_;
        }
        return applied;
    }

    /// A batch may be on the disk or not: a checkpoint without it decides.
    Task<Result<void>> supersede(Error failure) {
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
        if (pulled_away(failure) && open_ && !stopped_) {
            on(JournalEvent::image_lost);
            superblock_lost_ = true;
            distrusted_ = {true, true};
        }
    }

    void stop(const Error& why) {
        if (stopped_) {
            return;
        }
        stopped_ = make_error(Errc::unavailable, "{}: the journal stops: {}", path(), why.message);
        on(JournalEvent::fault);
        log_.error("{}", stopped_->message);
        joined_.set();
        client_->on_stopped(*stopped_);
    }

    // ---- checkpoints

    /// Makes the active half one that can be appended to.
    Task<Result<void>> recover() {
        if (stopped_) {
            co_return *stopped_;
        }
        if (state_ == Writability::superblock_unknown) {
            auto written = co_await store_superblock(fixed_, opaque_);
            if (!written) {
                co_return written;
            }
            on(JournalEvent::superblock_done);
        }
        if (state_ == Writability::needs_checkpoint) {
            if (superblock_lost_) {
                auto written = co_await store_superblock(fixed_, opaque_);
                if (!written) {
                    co_return written;
                }
                superblock_lost_ = false;
            }
            auto made = co_await write_checkpoint(nullptr);
            if (made) {
                log_.info("{}: the journal goes on in a new checkpoint", path());
            }
            co_return made;
        }
        if (state_ == Writability::other_half_alive) {
            co_return co_await give_up_other();
        }
        co_return Result<void>{};
    }

    Task<Result<void>> give_up_other() {
        auto forgotten = co_await forget_half(1 - active_);
        if (forgotten) {
            on(JournalEvent::other_forgotten);
        } else {
            note_lost(forgotten.error());
        }
        co_return forgotten;
    }

    Task<Result<void>> do_explicit_checkpoint() {
        if (!open_ || closed_) {
            co_return make_error(Errc::closed, "{}: the journal is not open", path());
        }
        auto held = co_await lock_.acquire();
        if (!held) {
            co_return held.error();
        }
        if (stopped_) {
            co_return *stopped_;
        }
        if (state_ == Writability::other_half_alive || state_ == Writability::superblock_unknown) {
            auto recovered = co_await recover();
            if (!recovered) {
                co_return recovered;
            }
        }
        auto made = co_await write_checkpoint(nullptr);
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
        if (state_ != Writability::appendable) { // a batch failed in between
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
    Result<Snapshot> take_snapshot(std::span<const ByteView> after) {
        Snapshot out;
        bool too_large = false;
        auto emit = [&](ByteView record) {
            if (record.size() > append_limit) {
                too_large = true;
                return;
            }
            if (out.parts.empty() || !out.parts.back().fits(record.size())) {
                out.parts.emplace_back();
            }
            out.parts.back().add(record);
            ++out.records;
        };
        if (after.empty()) {
            client_->snapshot(emit);
        } else {
            client_->snapshot_after(after, emit);
        }
        if (too_large) {
            return make_error(Errc::too_large, "{}: a record of the snapshot is over {} bytes", path(), append_limit);
        }
        out.bytes = 2 * journal::sector_size; // the half's header and the end frame
        for (const Body& part : out.parts) {
            out.bytes += part.extent();
        }
        if (out.bytes > fixed_.half_size) {
            return make_error(Errc::no_space,
                              "{}: full: a checkpoint of {} bytes does not fit a half of {}; nothing was changed. Make "
                              "it larger (vtpmctl store grow), or delete vTPMs",
                              path(), out.bytes, fixed_.half_size);
        }
        return out;
    }

    /// Into the half that is not active, which then is; with the records of `batch`, if there is one, which are durable then
    /// and applied. On error the active half stays what it was, but if the error came after the first write nothing may be
    /// appended to it (needs_checkpoint), since the new one may be whole on the disk. other_half_alive: it is, and durable.
    Task<Result<void>> write_checkpoint(const Body* batch) {
        std::vector<ByteView> after;
        if (batch != nullptr) {
            (void)journal::for_each_record(batch->bytes(), [&after](ByteView r) -> Result<void> {
                after.push_back(r);
                return {};
            });
        }
        auto snapshot = take_snapshot(after);
        if (!snapshot) {
            co_return snapshot.error();
        }
        const std::size_t target = 1 - active_;
        auto cleared = co_await clear_half(target);
        if (!cleared) {
            note_lost(cleared.error());
            co_return cleared;
        }
        on(JournalEvent::checkpoint_begun);
        distrusted_[target] = true;
        auto begun = journal::begin_half(key_.view(), uuid_, ++generation_);
        auto written = co_await write_parts(target, begun, *snapshot);
        if (!written) {
            note_lost(written.error());
            co_return written;
        }
        on(JournalEvent::checkpoint_whole);
        next_ = std::move(begun.position);
        active_ = target;
        distrusted_[target] = false;
        ++counters_.checkpoints;
        counters_.checkpoint_bytes = snapshot->bytes;
        counters_.bytes += snapshot->bytes;
        if (batch != nullptr) {
            if (auto taken = take(*batch); !taken) {
                co_return taken;
            }
        }
        client_->checkpointed();
        co_return co_await give_up_other();
    }

    // ---- growth

    Task<Result<void>> do_grow(std::uint64_t size) {
        if (!open_ || closed_) {
            co_return make_error(Errc::closed, "{}: the journal is not open", path());
        }
        auto held = co_await lock_.acquire();
        if (!held) {
            co_return held.error();
        }
        auto recovered = co_await recover();
        if (!recovered) {
            co_return recovered;
        }
        auto room = co_await reserve(size);
        if (!room) {
            co_return room.error();
        }
        Fixed larger = fixed_;
        larger.half_size = half_size_for(*room);
        if (larger.half_size <= fixed_.half_size) {
            co_return make_error(Errc::usage, "{}: has {} bytes already; a store only grows", path(),
                                 halves_at + 2 * fixed_.half_size);
        }
        if (active_ == 1) {
            auto made = co_await write_checkpoint(nullptr);
            if (!made) {
                co_return made;
            }
        }
        ++begun_[1];
        const bool all = std::exchange(distrusted_[1], true);
        auto zeroed = co_await zero_range(*file_, half_at(1), halves_at + larger.half_size, all);
        if (zeroed) {
            zeroed = co_await zero_range(*file_, halves_at + larger.half_size,
                                         halves_at + larger.half_size + journal::sector_size, true);
        }
        if (zeroed) {
            zeroed = co_await file_->sync();
            ++counters_.syncs;
        }
        if (!zeroed) {
            note_lost(zeroed.error());
            co_return zeroed;
        }
        on(JournalEvent::resize_begun);
        auto written = co_await store_superblock(larger, opaque_);
        if (!written) {
            // Which of the two is found is not known before one of them is written.
            note_lost(written.error());
            auto back = co_await recover();
            co_return back
                ? in_context(written.error(), "the store keeps its size")
                : make_error(Errc::unavailable, "{}: nothing is kept until the superblock can be written again: {}",
                             path(), written.error().message);
        }
        on(JournalEvent::superblock_done);
        log_.info("{}: grown from {} to {} bytes", path(), halves_at + 2 * fixed_.half_size,
                  halves_at + 2 * larger.half_size);
        set_size(larger);
        co_return Result<void>{};
    }

    /// The bytes that the place then has, allocated.
    Task<Result<std::uint64_t>> reserve(std::uint64_t size) {
        if (size > max_size || (size == 0 && !file_->fixed_size())) {
            co_return make_error(Errc::usage, "{}: a store of {} bytes; say how large it is to be, up to {}", path(),
                                 size, max_size);
        }
        // A device that was made larger is looked at again.
        auto room = co_await file_->allocate(0, std::max(size, halves_at + 2 * fixed_.half_size));
        if (!room) {
            co_return room.error();
        }
        if (size == 0) {
            co_return std::min(file_->size(), max_size);
        }
        co_return size;
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
    std::size_t doubtful_copy_ = 0; ///< of the superblock
    Fixed fixed_;
    Bytes opaque_;
    bool backup_;          ///< of what was read; goes with the next superblock
    const bool look_only_; ///< nothing is written

    SecretBytes key_;
    std::size_t active_ = 0;
    std::uint64_t generation_ = 0; ///< the highest ever tried
    Position next_;
    bool superblock_lost_ = false; ///< to be written again as well
    Writability state_ = Writability::unopened;
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
