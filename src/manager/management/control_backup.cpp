// The store itself: backups, one at a time (each pins what it reads, and has a buffer of its own), the keys that open it where the
// TPM does not, and its growth.
#include "manager/management/control_service.hpp"

#include <algorithm>

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

RecoveryKeyInfo info_of_key(const RecoveryKey& k) {
    return {.id = shown_id(k), .created = k.created, .label = k.label};
}

/// What newer or other things `theirs` has than `ours`, and the other way round.
BackupInfo compare_registries(const Registry& ours, const Registry& theirs) {
    BackupInfo out{.written_at = theirs.freshness().value_or(0),
                   .counter = ours.freshness().value_or(0),
                   .vtpms = theirs.vtpm_count()};
    for (const auto& [uuid, v] : theirs.vtpms()) {
        const Registry::Vtpm* here = ours.find(uuid);
        if (here == nullptr) {
            (ours.tombstone(uuid) != nullptr ? out.behind : out.ahead) += 1;
        } else if (v.sequence != here->sequence || v.key != here->key) {
            (v.sequence < here->sequence ? out.behind : out.ahead) += 1;
        }
    }
    for (const auto& [uuid, v] : ours.vtpms()) {
        if (theirs.find(uuid) == nullptr) {
            (theirs.tombstone(uuid) != nullptr ? out.ahead : out.missing) += 1;
        }
    }
    out.relation = out.ahead != 0 || out.written_at > out.counter                        ? BackupInfo::Relation::fork
                   : out.missing != 0 || out.behind != 0 || out.written_at < out.counter ? BackupInfo::Relation::older
                                                                                         : BackupInfo::Relation::newest;
    return out;
}

} // namespace

Task<Result<BackupInfo>> ControlService::verify_backup(Bytes image) {
    if (std::exchange(verify_runs_, true)) {
        co_return make_error(Errc::busy, "another backup is being looked at; try again when that is done");
    }
    Registry theirs;
    auto read = co_await parts_.vault.read_copy(std::move(image), theirs);
    verify_runs_ = false;
    if (!read) {
        co_return read.error();
    }
    BackupInfo out = compare_registries(parts_.vault.registry(), theirs);
    out.store = read->head.uuid;
    out.backup = read->head.backup;
    std::ranges::transform(read->recovery_keys, std::back_inserter(out.opened_by), info_of_key);
    for (const RecoveryKey& k : parts_.vault.recovery_keys()) {
        if (std::ranges::count(read->recovery_keys, shown_id(k), shown_id) == 0) {
            out.not_opened_by.push_back(info_of_key(k));
        }
    }
    co_return out;
}

std::vector<RecoveryKeyInfo> ControlService::recovery_keys() const {
    std::vector<RecoveryKeyInfo> out;
    std::ranges::transform(parts_.vault.recovery_keys(), std::back_inserter(out), info_of_key);
    return out;
}

Task<Result<NewRecoveryKey>> ControlService::add_recovery_key(std::string label) {
    auto file = co_await parts_.vault.add_recovery_key(std::move(label));
    if (!file) {
        co_return file.error();
    }
    co_return NewRecoveryKey{.info = info_of_key(parts_.vault.recovery_keys().back()), .file = std::move(*file)};
}

Task<Result<void>> ControlService::remove_recovery_key(std::string id) {
    return parts_.vault.remove_recovery_key(std::move(id));
}

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

Task<Result<HostInfo>> ControlService::grow_store(std::uint64_t bytes) {
    auto grown = co_await parts_.vault.grow(bytes);
    if (!grown) {
        co_return grown.error();
    }
    co_return host();
}

} // namespace vtpmd::manager
