// Backups of the store, one at a time: each pins what it reads, and has a buffer of its own.
#include "manager/control_service.hpp"

namespace vtpmd::manager {

namespace {

/// Says, when it goes, that the next one may come.
class OneCopy final : public StoreCopy {
  public:
    OneCopy(std::unique_ptr<StoreCopy> copy, std::shared_ptr<bool> busy)
        : copy_(std::move(copy))
        , busy_(std::move(busy)) {}
    OneCopy(const OneCopy&) = delete;
    OneCopy& operator=(const OneCopy&) = delete;
    ~OneCopy() override { *busy_ = false; }
    [[nodiscard]] std::uint64_t size() const override { return copy_->size(); }
    Task<Result<std::size_t>> read(MutByteView into) override { return copy_->read(into); }

  private:
    std::unique_ptr<StoreCopy> copy_;
    std::shared_ptr<bool> busy_;
};

} // namespace

Task<Result<std::unique_ptr<StoreCopy>>> ControlService::backup() {
    if (std::exchange(*backup_runs_, true)) {
        co_return make_error(Errc::busy, "a backup is being made already; try again when it is done");
    }
    auto copy = co_await parts_.vault.copy();
    if (!copy) {
        *backup_runs_ = false;
        co_return copy.error();
    }
    co_return std::unique_ptr<StoreCopy>(std::make_unique<OneCopy>(std::move(*copy), backup_runs_));
}

} // namespace vtpmd::manager
