#include "store/image_copy.hpp"

#include <algorithm>

namespace vtpmd::store {

namespace {

class PlannedCopy final : public ImageCopy {
  public:
    PlannedCopy(CopyPlan plan, std::function<Task<Result<void>>(std::uint64_t, MutByteView)> read)
        : plan_(std::move(plan))
        , read_(std::move(read)) {}

    [[nodiscard]] std::uint64_t size() const override { return plan_.head.size() + 2 * plan_.half_size; }

    Task<Result<std::size_t>> read(MutByteView into) override {
        const std::uint64_t half_at = plan_.head.size() + plan_.half * plan_.half_size;
        const std::uint64_t frames_at = half_at + plan_.header.size();
        if (at_ < plan_.head.size()) {
            co_return take(into, ByteView(plan_.head).subspan(at_));
        }
        if (at_ >= half_at && at_ < frames_at) {
            co_return take(into, ByteView(plan_.header).subspan(at_ - half_at));
        }
        if (at_ >= frames_at && at_ < half_at + plan_.used) {
            const MutByteView chunk = into.first(std::min<std::uint64_t>(into.size(), half_at + plan_.used - at_));
            auto read = co_await read_(at_, chunk);
            if (!read) {
                co_return read.error();
            }
            at_ += chunk.size();
            co_return chunk.size();
        }
        const std::uint64_t end = at_ < half_at ? half_at : size();
        const MutByteView chunk = into.first(std::min<std::uint64_t>(into.size(), end - at_));
        std::ranges::fill(chunk, std::byte{0});
        at_ += chunk.size();
        co_return chunk.size();
    }

  private:
    std::size_t take(MutByteView into, ByteView from) {
        const std::size_t n = std::min(into.size(), from.size());
        std::ranges::copy(from.first(n), into.begin());
        at_ += n;
        return n;
    }

    const CopyPlan plan_;
    std::function<Task<Result<void>>(std::uint64_t, MutByteView)> read_;
    std::uint64_t at_ = 0; ///< of the copy
};

} // namespace

std::unique_ptr<ImageCopy> make_image_copy(CopyPlan plan,
                                           std::function<Task<Result<void>>(std::uint64_t, MutByteView)> read) {
    return std::make_unique<PlannedCopy>(std::move(plan), std::move(read));
}

} // namespace vtpmd::store
