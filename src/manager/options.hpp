// What the manager is told on its command line (and by whoever passed it a socket); plain data. The names are those of
// the options; what a value means stands with the part that uses it.
#pragma once

#include "hwtpm/root_of_trust.hpp"
#include "manager/management/control.hpp"
#include "tpm/version.hpp"
#include "util/fd.hpp"
#include "util/log.hpp"
#include "util/result.hpp"
#include "util/sandbox.hpp"
#include "util/uuid.hpp"

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace vtpmd::manager {

/// How far behind the hardware counter the store may fall (freshness.hpp).
struct FreshnessPolicy {
    enum class Mode { off, window, strict };
    Mode mode = Mode::window;
    std::chrono::seconds window{900}; ///< of Mode::window: at most one lazy step in this time
    /// Of Mode::strict: changes of one vTPM, each of which may be a step. 0: no bound.
    std::uint32_t changes_a_day = 10'000;
    friend bool operator==(const FreshnessPolicy&, const FreshnessPolicy&) = default;
};
/// "window" (900 s), "window:SECONDS" (1 to 31,536,000), "strict" (10,000 changes),
/// "strict:CHANGES" (0 to 100,000,000), "off"; Errc::usage otherwise.
[[nodiscard]] Result<FreshnessPolicy> parse_freshness(std::string_view text);
[[nodiscard]] std::string to_string(const FreshnessPolicy& policy);

/// --xen: what the manager does in a Xen host.
struct XenOptions {
    bool guests = false; ///< an instance for every vTPM device of this domain's back end (with --spawn)
    bool vtpms = false;  ///< the manager protocol on the rings of vTPM domains
    friend bool operator==(const XenOptions&, const XenOptions&) = default;
};

/// --spawn: which instances the manager starts itself.
struct SpawnOptions {
    bool enabled = false;
    /// Only these; empty: every registered vTPM that has an image in the state directory.
    std::vector<Uuid> only;
    std::string state_dir = "/var/lib/vtpmd"; ///< images, UUID.img
    std::string run_dir = "/run/vtpmd";       ///< guests' sockets, UUID.sock
    bool stop_instances = false;              ///< they end with the manager, when it is stopped in good order
    std::string executable = "/proc/self/exe";
    std::optional<TpmVersion> tpm_version; ///< of TPMs that are made when a new UUID is served
    SandboxMode sandbox = SandboxMode::automatic;
    struct Users {
        uid_t first = 0, last = 0;
    };
    std::optional<Users> users;               ///< each instance has one of its own
    std::vector<std::string> extra_arguments; ///< passed on to every instance (--log-level and the like)
};

/// --api: where and to whom the manager's management is offered.
struct ManagementOptions {
    std::string path; ///< empty: not by a socket of our own
    UniqueFd fd;      ///< a listening socket passed by the service manager; wins over path
    std::optional<gid_t> full_group;
    std::optional<gid_t> read_group;
    MakeManagement make; ///< set by main, which knows src/api
};

struct ManagerOptions {
    std::string store_path = "/var/lib/vtpmd/manager.img";
    bool create = false;
    std::uint64_t store_size = std::uint64_t{16} << 20; ///< bytes, at creation; a block device has its own
    /// At creation a new recovery key is written here (mode 0600, must not exist; empty: none is made). Else the store is opened
    /// with the one that is there.
    std::string recovery_file;

    hwtpm::OpenOptions tpm;
    /// Not given: what the store is sealed to stays; at creation the default_seal_pcrs.
    std::optional<hwtpm::PcrSelection> seal_pcrs;
    bool allow_zero_pcrs = false; ///< seal to PCRs that nothing was measured into
    FreshnessPolicy freshness;
    /// --accept-counter: take an old copy of the store, if the TPM's counter stands at exactly this value.
    std::optional<std::uint64_t> accept_counter;
    bool accept_no_counter = false; ///< --accept-counter=none: no counter can be compared, and the store is the newest
    bool check = false;             ///< look whether the store would open, change nothing, and end

    std::string listen_path = "/run/vtpmd/manager.sock";
    UniqueFd listen_fd; ///< a listening socket passed by the service manager; wins over listen_path
    bool auto_create = false;
    SpawnOptions spawn;
    XenOptions xen;
    std::string legacy_path;   ///< --legacy: where toolstacks of 2006 ask; empty: nowhere
    std::optional<Uuid> admin; ///< the vTPM that manages by the old protocol; its device's ring is the manager's
    ManagementOptions management;
};

/// Firmware, option ROMs, boot loader and boot policy.
[[nodiscard]] hwtpm::PcrSelection default_seal_pcrs();

} // namespace vtpmd::manager
