// Control over the real parts.
#pragma once

#include "manager/ca/certifier.hpp"
#include "manager/groups/deep_quotes.hpp"
#include "manager/groups/groups.hpp"
#include "manager/instances/autostart.hpp"
#include "manager/instances/supervisor.hpp"
#include "manager/links/key_service.hpp"
#include "manager/management/control.hpp"
#include "manager/management/guest_totals.hpp"

#include <map>

namespace vtpmd::manager {

class ControlService final : public Control {
  public:
    /// All of it outlives this.
    struct Parts {
        Vault& vault;
        hwtpm::RootOfTrust& root;
        KeyService& service;
        Supervisor& supervisor;
        Groups& groups;
        DeepQuotes& quotes;
        const GuestTotals& guests;
        Certifier& certifier;
        Processes& processes;
        Autostart& wanted;
        Clock& clock;
        std::string store_path;
    };
    explicit ControlService(Parts parts);

    [[nodiscard]] HostInfo host() const override;
    [[nodiscard]] std::vector<Uuid> vtpms() const override;
    [[nodiscard]] Result<VtpmInfo> vtpm(const Uuid& uuid) const override;
    Task<Result<VtpmInfo>> create(NewVtpm request) override;
    Task<Result<VtpmInfo>> give_to(Uuid uuid, std::uint32_t user) override;
    Task<Result<VtpmInfo>> rename(Uuid uuid, std::string name) override;
    Task<Result<VtpmInfo>> move(Uuid uuid, Uuid group) override;
    Task<Result<void>> remove(Uuid uuid) override;
    Task<Result<void>> reset(Uuid uuid) override;
    [[nodiscard]] Result<VtpmDetail> detail(const Uuid& uuid) const override;
    Task<Result<void>> start(Uuid uuid, StartOrder order) override;
    Task<Result<void>> stop(Uuid uuid, bool keep_autostart) override;
    Task<Result<VtpmInfo>> autostart(Uuid uuid, bool on) override;
    Task<Result<Bytes>> quote(Uuid uuid, QuoteOrder order) override;
    [[nodiscard]] std::vector<GroupStatus> groups() const override;
    [[nodiscard]] Result<GroupStatus> group(const Uuid& uuid) const override;
    Task<Result<GroupStatus>> create_group(NewGroup request) override;
    Task<Result<GroupStatus>> update_group(Uuid uuid, Bytes list) override;
    Task<Result<void>> remove_group(Uuid uuid) override;
    Task<Result<GroupStatus>> recover_group(Uuid uuid, SecretBytes shared) override;
    Task<Result<std::unique_ptr<StoreCopy>>> backup() override;
    Task<Result<BackupInfo>> verify_backup(Bytes image) override;
    [[nodiscard]] std::vector<RecoveryKeyInfo> recovery_keys() const override;
    Task<Result<NewRecoveryKey>> add_recovery_key(std::string label) override;
    Task<Result<void>> remove_recovery_key(std::string id) override;
    Task<Result<HostInfo>> grow_store(std::uint64_t bytes) override;
    Task<Result<CaInfo>> group_ca(Uuid uuid, NoCa if_none) override;
    Task<Result<CaInfo>> set_group_ca(Uuid uuid, std::string certificates) override;
    Task<Result<SealInfo>> seal() override;
    [[nodiscard]] FreshnessInfo freshness() const override;
    [[nodiscard]] ActivityInfo activity(std::size_t limit) const override;
    [[nodiscard]] std::vector<Metric> metrics() const override;
    [[nodiscard]] std::map<VtpmState, std::size_t> count_states() const;

  private:
    [[nodiscard]] VtpmState state_of(const Uuid& uuid, const Registry::Vtpm& vtpm) const;
    [[nodiscard]] VtpmInfo info_of(const Uuid& uuid, const Registry::Vtpm& vtpm) const;
    [[nodiscard]] Result<const Registry::Vtpm*> find(const Uuid& uuid) const;
    [[nodiscard]] std::uint64_t last_save(const Uuid& uuid, std::uint64_t saves, const std::string& image) const;
    /// Errors of find(); busy: the manager keeps an instance running for it, or a process has it or may have it.
    [[nodiscard]] Result<void> check_at_rest(const Uuid& uuid) const;
    Task<Result<void>> end_process(Uuid uuid, bool asked);
    Task<Result<void>> wait_serving(Uuid uuid, std::shared_ptr<Charge> charge, Clock::duration patience);
    [[nodiscard]] Result<GroupId> find_group(const Uuid& uuid) const;

    Parts parts_;
    bool verify_runs_ = false;
    std::shared_ptr<bool> backup_runs_ = std::make_shared<bool>(false); ///< the copy has it too
};

/// The figures of all parts, in Prometheus' terms (metrics.cpp).
[[nodiscard]] std::vector<Metric> collect_metrics(const ControlService& control, const ControlService::Parts& parts);

} // namespace vtpmd::manager
