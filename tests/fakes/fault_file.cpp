#include "fault_file.hpp"

#include "util/uninterrupted.hpp"

#include <algorithm>
#include <random>

namespace vtpmd::test {

namespace {

constexpr std::size_t sector = 512;

void apply(Bytes& to, std::uint64_t offset, ByteView data) {
    if (to.size() < offset + data.size()) {
        to.resize(offset + data.size());
    }
    std::ranges::copy(data, to.begin() + static_cast<std::ptrdiff_t>(offset));
}

/// Some of the sectors of a write, as chance has it.
void apply_sectors(Bytes& to, std::uint64_t offset, ByteView data, std::mt19937& random) {
    while (!data.empty()) {
        const std::size_t n = std::min<std::size_t>(data.size(), sector - offset % sector);
        if ((random() & 1U) != 0) {
            apply(to, offset, data.first(n));
        }
        offset += n;
        data = data.subspan(n);
    }
}

Task<bool> a_turn_of_the_loop() {
    co_await asio::post(co_await asio::this_coro::executor, asio::use_awaitable);
    co_return true;
}

} // namespace

class FaultFile final : public BlockFile {
  public:
    explicit FaultFile(FaultDisk& disk)
        : disk_(disk) {}
    [[nodiscard]] const std::string& path() const override { return path_; }
    [[nodiscard]] std::uint64_t size() const override { return disk_.cache_.size(); }
    [[nodiscard]] bool fixed_size() const override { return disk_.device_; }

    Task<Result<void>> read(std::uint64_t offset, MutByteView into) override {
        co_await uninterrupted(a_turn_of_the_loop());
        co_return disk_.read(offset, into);
    }
    Task<Result<void>> write(std::uint64_t offset, ByteView data) override {
        co_await uninterrupted(a_turn_of_the_loop());
        co_return disk_.write(offset, data);
    }
    Task<Result<void>> sync() override {
        co_await uninterrupted(a_turn_of_the_loop());
        co_return disk_.sync();
    }
    Task<Result<void>> write_sync(std::uint64_t offset, ByteView data) override {
        co_await uninterrupted(a_turn_of_the_loop());
        auto written = disk_.write(offset, data);
        if (!written) {
            co_return written;
        }
        co_return disk_.sync();
    }
    Task<Result<void>> allocate(std::uint64_t offset, std::uint64_t length) override {
        co_await uninterrupted(a_turn_of_the_loop());
        co_return disk_.allocate(offset + length);
    }

  private:
    FaultDisk& disk_;
    std::string path_ = "fault-disk";
};

FaultDisk::FaultDisk(Bytes content, bool device)
    : device_(device)
    , cache_(std::move(content)) {}

void FaultDisk::diverge() {
    if (!durable_) {
        durable_ = cache_;
    }
}

std::unique_ptr<BlockFile> FaultDisk::open() { return std::make_unique<FaultFile>(*this); }

FaultDisk::Fate FaultDisk::next_operation() {
    const std::uint64_t number = operations_++;
    if (number == plan.die_at) {
        dead_ = true;
    }
    if (dead_) {
        return Fate::dead;
    }
    const std::uint64_t until = plan.fail_until != 0 ? plan.fail_until : plan.fail_at + 1;
    return plan.fail_at != never && number >= plan.fail_at && number < until ? Fate::fails : Fate::works;
}

Error FaultDisk::injected(std::string_view what) const {
    return dead_ ? make_error(Errc::io, "fault-disk: no power ({})", what)
                 : make_error(plan.error, "fault-disk: injected fault ({})", what);
}

Result<void> FaultDisk::read(std::uint64_t offset, MutByteView into) {
    if (dead_ || (plan.fail_reads && operations_ >= plan.fail_at)) {
        return injected("read");
    }
    if (offset + into.size() > cache_.size()) {
        return make_error(Errc::io, "fault-disk: short read at {}", offset);
    }
    std::copy_n(cache_.begin() + static_cast<std::ptrdiff_t>(offset), into.size(), into.begin());
    return {};
}

Result<void> FaultDisk::write(std::uint64_t offset, ByteView data) {
    const bool was_dead = dead_;
    const Fate fate = next_operation();
    if (fate == Fate::dead) {
        if (!was_dead) {
            died_in_write_ = true;
            unsynced_.push_back({offset, to_bytes(data)});
        }
        return injected("write");
    }
    if (device_ && offset + data.size() > cache_.size()) {
        return make_error(Errc::no_space, "fault-disk: write beyond the end");
    }
    const ByteView done = fate == Fate::fails ? data.first(std::min(plan.fail_prefix, data.size())) : data;
    diverge();
    apply(cache_, offset, done);
    unsynced_.push_back({offset, to_bytes(done)});
    return fate == Fate::fails ? Result<void>(injected("write")) : Result<void>();
}

Result<void> FaultDisk::sync() {
    switch (next_operation()) {
    case Fate::dead:
        return injected("sync");
    case Fate::fails:
        if (plan.drop_seed != 0) {
            std::mt19937 random(plan.drop_seed);
            for (const Write& w : unsynced_) {
                apply_sectors(*durable_, w.offset, w.data, random);
            }
        }
        unsynced_.clear();
        return injected("sync");
    case Fate::works:
        break;
    }
    ++syncs_;
    for (const Write& w : unsynced_) {
        apply(*durable_, w.offset, w.data);
    }
    unsynced_.clear();
    if (durable_) {
        durable_->resize(cache_.size());
    }
    return {};
}

Result<void> FaultDisk::allocate(std::uint64_t end) {
    switch (next_operation()) {
    case Fate::dead:
        return injected("allocate");
    case Fate::fails:
        return injected("allocate");
    case Fate::works:
        break;
    }
    if (device_ && end > cache_.size()) {
        return make_error(Errc::no_space, "fault-disk: the device is smaller");
    }
    if (cache_.size() < end) {
        diverge();
        cache_.resize(end);
    }
    return {};
}

std::size_t FaultDisk::last_write_size() const {
    return died_in_write_ && !unsynced_.empty() ? unsynced_.back().data.size() : 0;
}

Bytes FaultDisk::after_crash(Loss loss, std::size_t parameter) const {
    Bytes disk = durable_ ? *durable_ : cache_;
    std::mt19937 random(static_cast<std::mt19937::result_type>(parameter));
    for (const Write& w : unsynced_) {
        const bool last = &w == &unsynced_.back();
        switch (loss) {
        case Loss::all:
            break;
        case Loss::none:
            apply(disk, w.offset, w.data);
            break;
        case Loss::prefix:
            apply(disk, w.offset, last ? ByteView(w.data).first(std::min(parameter, w.data.size())) : ByteView(w.data));
            break;
        case Loss::sectors:
            apply_sectors(disk, w.offset, w.data, random);
            break;
        }
    }
    return disk;
}

} // namespace vtpmd::test
