// A host with a real TPM (swtpm) and a disk in memory, which lose power together: the manager's store on them, boots in
// between, and copies of either that somebody puts back.
#pragma once

#include "check.hpp"
#include "manager_machine.hpp"
#include "swtpm_process.hpp"

#include "hwtpm/device.hpp"
#include "manager/vault/vault.hpp"

#include <limits>
#include <mutex>

namespace vtpmd::test {

/// When power goes, counted in TPM commands (two moments each: before and after the TPM has executed it), and whether it is
/// gone. A dead disk takes the TPM with it.
struct Power {
    static constexpr std::uint64_t never = std::numeric_limits<std::uint64_t>::max();
    std::uint64_t moments_left = never; ///< of the TPM's
    bool gone = false;
    FaultDisk* disk = nullptr;

    /// One moment passes; false if there is no power.
    bool pass();
};

class Host {
  public:
    explicit Host(TpmVersion version);
    Host(const Host&) = delete;
    Host& operator=(const Host&) = delete;
    ~Host();

    [[nodiscard]] TpmVersion version() const { return version_; }

    /// Boots the manager on the store; `create` makes one.
    Result<void> start(bool create = false);
    /// A clean stop.
    Result<void> off();
    /// The power comes back after it went (or is cut now): the TPM is reset, of the disk's unsynced writes is there what
    /// `loss` says.
    void power_cycle(FaultDisk::Loss loss);

    void cut_at_tpm(std::uint64_t moment) { power_.moments_left = moment; }
    void cut_at_disk(std::uint64_t operation) { disk->plan.die_at = disk->operations() + operation; }
    [[nodiscard]] bool power_went() const { return power_.gone || disk->dead(); }

    /// TPM and disk as they are; while off.
    struct Copy {
        std::vector<std::pair<std::string, Bytes>> tpm;
        Bytes disk;
    };
    [[nodiscard]] Copy copy();
    void put_back(const Copy& copy);
    void put_back_disk(const Bytes& content) { disk = std::make_unique<FaultDisk>(content); }
    void put_back_tpm(const Copy& copy);

    /// Extends PCR 4, as firmware that was updated would; the manager is off then.
    void measure();

    Result<void> enrol(const Uuid& uuid) { return loop.run(vault->register_vtpm(uuid, TpmVersion::tpm20)); }
    Result<void> save(const Uuid& uuid, unsigned mark);
    /// The mark that was saved last, 0 for none.
    unsigned load(const Uuid& uuid);
    /// Freshness counters of ours that the TPM has; while off.
    std::size_t counters_in_tpm();
    /// Seals as the manager would on this host.
    [[nodiscard]] hwtpm::PcrSelection pcrs(std::string_view indices) const;

    fakes::Loop loop;
    std::unique_ptr<FaultDisk> disk = std::make_unique<FaultDisk>();
    manager::Vault::Options options;
    std::unique_ptr<hwtpm::RootOfTrust> root;
    std::unique_ptr<manager::Vault> vault;

  private:
    Result<std::unique_ptr<hwtpm::TpmDevice>> device();
    void drop();

    TpmVersion version_;
    fakes::SwtpmProcess swtpm_;
    Power power_;
    std::mutex lines_mutex_; // the hardware thread logs too
    std::vector<std::string> lines_;
    Log log_;
    std::optional<fakes::FaultPlace> place_;
};

} // namespace vtpmd::test
