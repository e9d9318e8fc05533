// What management (src/api) may ask of the manager: the one header of this room that it sees. Plain data in, plain data out;
// what a call changed is durable when it returns success. Tests fake it.
#pragma once

#include "store/image_copy.hpp"
#include "tpm/version.hpp"
#include "util/asio.hpp"
#include "util/bytes.hpp"
#include "util/clock.hpp"
#include "util/fd.hpp"
#include "util/log.hpp"
#include "util/result.hpp"
#include "util/secret_bytes.hpp"
#include "util/uuid.hpp"

#include <chrono>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace vtpmd::manager {

enum class VtpmState {
    fresh,    ///< registered, nothing was saved since it was made or reset
    stopped,  ///< no instance has it open
    starting, ///< the manager keeps an instance running for it, which has no process or has not opened it yet
    running,  ///< open, in an instance that the manager keeps
    open,     ///< open, in an instance that was started by somebody else
    unknown   ///< a process has it, or may have it, that has not come to this manager (yet)
};
[[nodiscard]] constexpr std::string_view to_string(VtpmState s) noexcept {
    switch (s) {
    case VtpmState::fresh:
        return "fresh";
    case VtpmState::stopped:
        return "stopped";
    case VtpmState::starting:
        return "starting";
    case VtpmState::running:
        return "running";
    case VtpmState::open:
        return "open";
    case VtpmState::unknown:
        break;
    }
    return "unknown";
}

struct VtpmInfo {
    Uuid uuid;
    std::string name; ///< what its operator calls it; empty: nothing. Not unique. (GroupStatus::labels are XSM's.)
    TpmVersion version = TpmVersion::tpm20;
    Uuid group;
    VtpmState state = VtpmState::fresh;
    std::uint64_t created = 0; ///< seconds since 1970
    std::uint64_t saves = 0;   ///< of its state, since it was made (a reset counts as one)
    std::uint64_t reset = 0;   ///< when it was last reset to factory, seconds since 1970; 0: never
    int pid = 0;               ///< of its instance; 0: none, or not known
    std::uint32_t user = 0;    ///< who may open it besides root and the manager's own user; 0: nobody
    bool autostart = false;    ///< it is to run whenever the manager does
};
/// What show tells beside that.
struct VtpmDetail {
    std::string image;  ///< where its instance has its state, if the manager started it or would; empty: somebody
                        ///< else started it, and it has it elsewhere
    std::string socket; ///< where its guest connects, if the manager starts it
    std::string
        sandbox; ///< what its process has given up, as the kernel tells; empty: it does not run, or in another domain
    std::string why;        ///< why it does not run, or is not known; empty: nothing to say
    std::string last_error; ///< why its instance ended, or was not started, the last time; empty: it was not so
    std::uint64_t last_error_time = 0; ///< seconds since 1970
    std::uint64_t last_save = 0;       ///< when its state was saved last, seconds since 1970; 0: never, or not known
};
/// How an instance is started.
struct StartOrder {
    bool once = false;                             ///< not again after the manager or the host was restarted
    std::optional<std::chrono::seconds> wait = {}; ///< for it to serve: success means that it does
};

struct NewVtpm {
    Uuid uuid;
    TpmVersion version = TpmVersion::tpm20;
    std::optional<Uuid> group; ///< the store's own if none is named
    std::string name;          ///< 1 to 64 bytes of printable UTF-8, no UUID; empty: none
    std::uint32_t user = 0;    ///< VtpmInfo
};

struct PcrInfo {
    std::string bank;
    unsigned index = 0;
    std::string value; ///< hexadecimal, as it is now
};

struct SealInfo {
    std::string selection; ///< as --seal-pcrs takes it
    std::vector<PcrInfo> pcrs;
};

/// A group (manager/groups/groups.hpp). Keys are PEM, other bytes hexadecimal.
struct GroupStatus {
    Uuid uuid;
    std::uint32_t number = 0; ///< 0: the store's own, without approver and keys
    std::uint64_t created = 0;
    std::size_t vtpms = 0;
    bool open = false;
    std::string why_closed;
    std::string approver;
    std::uint64_t epoch = 0;
    std::uint64_t sequence = 0;
    std::vector<SealInfo> platforms;
    std::vector<std::string> labels; ///< empty: any vTPM
    std::string attestation_key;
    std::string attestation_public; ///< TPM2B_PUBLIC (2.0), TPM_PUBKEY (1.2)
    std::string identity_binding;   ///< 1.2
    std::string recovery_challenge; ///< empty: it cannot be recovered
};

struct NewGroup {
    std::string approver;     ///< PEM
    Bytes list;               ///< approval_list.cpp has its layout; names the group
    std::string recovery_key; ///< PEM; empty: no recovery
    Bytes recovery_signature;
};

/// A deep quote that an operator asks for. PCRs are as --seal-pcrs takes them, several banks joined by '+'; "none": of the vTPM none.
struct QuoteOrder {
    Bytes nonce;           ///< 1 to 64 bytes, chosen by whoever is to be shown something
    std::string pcrs;      ///< of the vTPM; empty: 0 to 7 of its best bank
    std::string host_pcrs; ///< of the hardware; empty: 0 to 7 of its best bank
};

/// What to do where a group has no CA yet: who only looks changes nothing.
enum class NoCa { make, refuse };

/// A group's CA for endorsement keys, PEM.
struct CaInfo {
    std::string certificates; ///< over its key first, then those of the issuers that were given with it
    std::string request;      ///< for another CA to sign
};

struct FreshnessInfo {
    std::string policy;         ///< as --freshness takes it
    std::uint64_t counter = 0;  ///< the hardware TPM's, as last seen: how much of its part is worn
    std::uint64_t steps = 0;    ///< since start
    std::uint64_t failures = 0; ///< steps that the TPM refused or did not answer
    std::uint64_t beyond = 0;   ///< steps beyond those that a day should have
    bool owed = false;          ///< the store is ahead of the counter
};

struct HostInfo {
    std::string version;
    std::string store;
    Uuid store_uuid;
    std::string tpm;
    std::size_t vtpms = 0;
    std::size_t open = 0;
    std::size_t tombstones = 0;
    std::uint64_t store_bytes = 0;          ///< that records may take
    std::uint64_t store_bytes_used = 0;     ///< that they take now
    std::uint64_t store_bytes_reserved = 0; ///< that those of what is registered can come to
    std::string trouble = {};               ///< why the store does not take writes; empty: it does
};

/// A vTPM's guest, as its instance reports it.
struct Activity {
    Uuid uuid;
    VtpmState state = VtpmState::stopped;
    double commands_per_second = 0;
    std::uint64_t commands = 0; ///< since its instance or the manager was started, whichever came last
    std::uint64_t failures = 0; ///< of them
    std::uint64_t commits = 0;
};
/// What a live view shows.
struct ActivityInfo {
    std::size_t vtpms = 0;
    std::size_t open = 0;
    std::uint64_t guest_commands = 0; ///< of all vTPMs, since the manager was started; here and below
    std::uint64_t guest_commits = 0;
    std::uint64_t hardware_commands = 0;
    std::uint64_t urgent_waiting = 0; ///< jobs for the hardware TPM, now
    std::uint64_t routine_waiting = 0;
    std::uint64_t journal_waiting = 0; ///< records, now
    std::uint64_t freshness_counter = 0;
    std::uint64_t freshness_steps = 0;
    std::vector<Activity> busiest = {}; ///< the busiest first
};

/// A copy of the store on its way out.
using StoreCopy = store::ImageCopy;

/// A recovery key of the store, without the key.
struct RecoveryKeyInfo {
    std::string id;            ///< 8 hexadecimal digits, or "unnamed" (made by an older program)
    std::uint64_t created = 0; ///< seconds since 1970; 0: unknown
    std::string label;
};
struct NewRecoveryKey {
    RecoveryKeyInfo info;
    SecretBytes file; ///< all of its file's text; it is kept nowhere else
};

/// What a copy of this store is, beside the store.
struct BackupInfo {
    enum class Relation {
        newest, ///< all that is here
        older,  ///< less than is here, and nothing that is not
        fork    ///< it has what this store has not: both went on by themselves
    };
    Uuid store;
    bool backup = false;          ///< as it was given out; else it was a store that ran
    std::uint64_t written_at = 0; ///< the counter's value that it was written at; 0: none
    std::uint64_t counter = 0;    ///< that of this store now
    std::size_t vtpms = 0;
    std::size_t missing = 0; ///< vTPMs that are here only
    std::size_t behind = 0;  ///< vTPMs that have saved, or were reset, since
    std::size_t ahead = 0;   ///< vTPMs that it has a newer state of, or that are there only
    Relation relation = Relation::newest;
    std::vector<RecoveryKeyInfo> opened_by;     ///< recovery keys, also those that this store has no more
    std::vector<RecoveryKeyInfo> not_opened_by; ///< of this store's, those that were added since
};

/// One family of Prometheus' text format.
struct Metric {
    struct Sample {
        std::string suffix; ///< of the family's name: "_bucket", "_sum", "_count", or none
        std::string labels; ///< as they stand between the braces: request="save",outcome="done"
        double value = 0;
    };
    std::string name;
    std::string help;
    std::string_view type; ///< counter, gauge, histogram
    std::vector<Sample> samples;
};

class Control {
  public:
    virtual ~Control() = default;

    [[nodiscard]] virtual HostInfo host() const = 0;
    /// In order of their UUIDs.
    [[nodiscard]] virtual std::vector<Uuid> vtpms() const = 0;
    /// Errc::not_found, tombstone.
    [[nodiscard]] virtual Result<VtpmInfo> vtpm(const Uuid& uuid) const = 0;
    /// Errc::exists, tombstone, no_space; usage: its name; not_found: no such group; pcr_mismatch: it is closed.
    virtual Task<Result<VtpmInfo>> create(NewVtpm request) = 0;
    /// Also while it is open; empty takes its name away. Errc::not_found, tombstone, usage.
    virtual Task<Result<VtpmInfo>> rename(Uuid uuid, std::string name) = 0;
    /// From now on this user may open it, and no other but root and the manager's own. An instance that has it open goes on.
    /// Errc::not_found, tombstone.
    virtual Task<Result<VtpmInfo>> give_to(Uuid uuid, std::uint32_t user) = 0;
    /// To another group, as long as it has saved nothing. Errc::not_found, tombstone; busy while it is open; usage: it has a
    /// state; pcr_mismatch: that group is closed.
    virtual Task<Result<VtpmInfo>> move(Uuid uuid, Uuid group) = 0;
    /// For good: a tombstone keeps every copy of it from coming back. Errc::not_found, tombstone, busy while it is open.
    virtual Task<Result<void>> remove(Uuid uuid) = 0;
    /// To factory: its next start makes a fresh TPM, the old state does not come back. Errc::not_found, tombstone, busy while it
    /// is open; pcr_mismatch: its group is closed; usage: it is still to come back from another host.
    virtual Task<Result<void>> reset(Uuid uuid) = 0;
    /// What is known beyond vtpm(). Errc::not_found, tombstone.
    [[nodiscard]] virtual Result<VtpmDetail> detail(const Uuid& uuid) const = 0;
    /// Keeps an instance running for it, from now on; one that was never started is made. Errc::busy if somebody else has it
    /// open; with wait the reason why it does not serve, or timed_out.
    virtual Task<Result<void>> start(Uuid uuid, StartOrder order) = 0;
    /// In good order, whoever started it; success means that nothing has it open. `keep_autostart`: it runs again with the next
    /// manager. Errc::busy: it belongs to a guest's device, or its process is not known; timed_out while it ends.
    virtual Task<Result<void>> stop(Uuid uuid, bool keep_autostart) = 0;
    /// Whether it runs whenever the manager does; starts and stops nothing now.
    virtual Task<Result<VtpmInfo>> autostart(Uuid uuid, bool on) = 0;

    /// A deep quote (quote/deep_quote.hpp) of a vTPM that runs. Errc::usage: the nonce or PCRs; unavailable: it does not run, or its
    /// TPM is off; unsupported: its group has no attestation key, or its instance cannot be asked; timed_out, closed: its
    /// instance did not answer; pcr_mismatch: its group is closed.
    virtual Task<Result<Bytes>> quote(Uuid uuid, QuoteOrder order) = 0;

    /// In the order in which they were made.
    [[nodiscard]] virtual std::vector<GroupStatus> groups() const = 0;
    /// Errc::not_found, here and below.
    [[nodiscard]] virtual Result<GroupStatus> group(const Uuid& uuid) const = 0;
    /// Errc::usage: a key or list that cannot be read; permission: a signature; exists.
    virtual Task<Result<GroupStatus>> create_group(NewGroup request) = 0;
    /// A newer approval list. Errc::rollback: it is not newer; permission: a signature.
    virtual Task<Result<GroupStatus>> update_group(Uuid uuid, Bytes list) = 0;
    /// Errc::busy while it has vTPMs.
    virtual Task<Result<void>> remove_group(Uuid uuid) = 0;
    /// Groups::recover().
    virtual Task<Result<GroupStatus>> recover_group(Uuid uuid, SecretBytes shared) = 0;

    /// A consistent copy of the store, which goes on meanwhile. It goes before the manager does. Errc::busy: one is being made.
    virtual Task<Result<std::unique_ptr<StoreCopy>>> backup() = 0;
    /// Reads a copy of this store, all of it or without the zeros at its end, and changes nothing. Errc::mismatch: it is of another
    /// store; not_ours, version, corrupt; busy: another is being looked at.
    virtual Task<Result<BackupInfo>> verify_backup(Bytes image) = 0;
    [[nodiscard]] virtual std::vector<RecoveryKeyInfo> recovery_keys() const = 0;
    /// Errc::usage: its label, or there are too many.
    virtual Task<Result<NewRecoveryKey>> add_recovery_key(std::string label) = 0;
    /// Errc::not_found.
    virtual Task<Result<void>> remove_recovery_key(std::string id) = 0;
    /// Makes the store larger, in use: a file to `bytes`; a block device that was made larger too (0: all of it). Errc::usage: it
    /// would not get larger, or too large; no_space: of the file system or the device.
    virtual Task<Result<HostInfo>> grow_store(std::uint64_t bytes) = 0;
    /// Errc::pcr_mismatch: there is none yet, and the group is closed; not_found: there is none yet, and none is to be made.
    virtual Task<Result<CaInfo>> group_ca(Uuid uuid, NoCa if_none) = 0;
    /// What another CA made of its request, with as much of the chain as is wanted, PEM. Errc::usage says what is wrong with it.
    virtual Task<Result<CaInfo>> set_group_ca(Uuid uuid, std::string certificates) = 0;

    virtual Task<Result<SealInfo>> seal() = 0;
    [[nodiscard]] virtual FreshnessInfo freshness() const = 0;
    /// Of those that are open the `limit` busiest.
    [[nodiscard]] virtual ActivityInfo activity(std::size_t limit) const = 0;
    [[nodiscard]] virtual std::vector<Metric> metrics() const = 0;
};

/// Who may use the management socket besides root and the manager's own user.
struct ManagementAccess {
    uid_t own_uid = 0;
    std::optional<gid_t> full;
    std::optional<gid_t> read_only;
};

/// What serves management, on a listening socket that it takes over.
class Management {
  public:
    virtual ~Management() = default;
    /// Accepts until cancelled.
    virtual Task<> run() = 0;
    /// After run(): ends connections, finishes the requests that they are at. Then it may be destroyed.
    virtual Task<> stop() = 0;
};

/// All but the descriptor outlives what is made.
struct ManagementParts {
    asio::any_io_executor executor;
    UniqueFd listening;
    ManagementAccess access;
    Control& control;
    Clock& clock;
    const Log& log;
};
using MakeManagement = std::function<Result<std::unique_ptr<Management>>(ManagementParts)>;

} // namespace vtpmd::manager
