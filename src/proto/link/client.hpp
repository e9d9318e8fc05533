// The instance's end of the manager protocol.
#pragma once

#include "proto/link/messages.hpp"
#include "util/clock.hpp"
#include "util/interruption.hpp"
#include "util/log.hpp"

#include <functional>
#include <memory>

namespace vtpmd::proto {

/// One manager, one vTPM. Requests are strictly one after another (a second one meanwhile waits its turn). If
/// the link breaks the client connects again with back-off; a request whose answer was lost is sent again
/// (all of them are idempotent), until its deadline.
class ManagerClient {
  public:
    using Connect = std::function<Task<Result<std::unique_ptr<Channel>>>()>;
    virtual ~ManagerClient() = default;

    /// Connects and says hello; if the vTPM was reset to factory, asks for that too. A later link (by any request) on
    /// which there was another reset is Errc::tombstone: what runs here is the vTPM's past. Errc::tombstone, busy (open
    /// elsewhere), permission, mismatch (version), not_found, unavailable (nobody answered in time).
    virtual Task<Result<HelloReply>> hello() = 0;
    /// Durable at the manager on success. After any error the outcome is unknown: the same hash_key must be
    /// offered again, or load_hash_key() asked what is on record, before any slot is written. Errc::unavailable after
    /// the deadline; rollback: another instance has saved since this one did (here and below); otherwise what the
    /// manager says.
    /// `by`, which outlives the call, ends it early (Errc::timed_out, the outcome unknown); nullptr: nothing does.
    virtual Task<Result<void>> save_hash_key(ByteView hash_key, Interruption* by) = 0;
    Task<Result<void>> save_hash_key(ByteView hash_key) { return save_hash_key(hash_key, nullptr); }
    /// nullopt: registered, but nothing was ever saved.
    virtual Task<Result<std::optional<SecretBytes>>> load_hash_key() = 0;
    virtual Task<Result<BootHash>> boot_hash() = 0;
    /// Another host has this vTPM: durable at the manager on success, which leaves a tombstone. Errc::unavailable: not
    /// known.
    virtual Task<Result<void>> handed_over() = 0;
    /// A quote by the hardware TPM that names this vTPM. Errc::usage: see check(); unsupported: its group has no key
    /// for that, or the manager is older; pcr_mismatch: its group is closed.
    virtual Task<Result<QuoteReply>> quote(QuoteRequest request) = 0;
    /// The same in the form of Xen's manager (GET_QUOTE): the answer's body. Errc::unsupported also where the hardware
    /// is not a TPM
    /// 1.2.
    virtual Task<Result<Bytes>> old_quote(OldQuoteRequest request) = 0;
    /// A key for a second connection, on which the manager asks (ask_messages.hpp). Errc::unsupported: the manager is
    /// older.
    virtual Task<Result<SecretBytes>> invite() { co_return make_error(Errc::unsupported, "not offered"); }
    /// The certificate (DER) of an endorsement key of this vTPM, which is being made. Errc::unsupported: the manager is
    /// older, or gives none; pcr_mismatch: its group is closed; usage: another kind of TPM, or one that has a state;
    /// exists: asked before.
    virtual Task<Result<Bytes>> certify(CertifyRequest request) = 0;
    /// Passes a TPM command to the manager's TPM (GetRandom, PcrRead of either family), as the manager
    /// allows.
    virtual Task<Result<Bytes>> tpm_command(Bytes command) = 0;
    /// Drops the link for good: requests end with Errc::closed.
    virtual void close() = 0;
    /// False while there is no link, as far as is known.
    [[nodiscard]] virtual bool connected() const { return true; }
};

struct ClientOptions {
    HelloRequest greeting;
    Clock::duration hello_deadline = std::chrono::seconds(30);
    Clock::duration request_deadline = std::chrono::seconds(30);
    /// Instead of request_deadline once a request has run out of it, until one succeeds again: a manager that is known
    /// to be away must not make every guest wait so long.
    Clock::duration retry_deadline = std::chrono::seconds(2);
    /// Another instance of this vTPM has saved since this one did (a copy of its image was run while the link was
    /// lost): what runs here is its past. Told as soon as a link shows it. Empty: nobody wants to know.
    std::function<void(const Error&)> superseded = {};
    /// How long a first hello that is refused with `busy` is tried again: the manager may not have noticed
    /// yet that the last instance of this vTPM died.
    Clock::duration busy_patience = std::chrono::seconds(2);
    /// Of the chance that spreads waits, where a run is to be repeated exactly.
    std::optional<std::uint32_t> spread_seed = std::nullopt;
};

/// `connect`, `clock` and `log` outlive the client. Destroy it only when no request is running.
[[nodiscard]] std::unique_ptr<ManagerClient> make_manager_client(asio::any_io_executor executor, ClientOptions options,
                                                                 ManagerClient::Connect connect, Clock& clock,
                                                                 const Log& log);

} // namespace vtpmd::proto
