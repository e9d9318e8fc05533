// The manager's end of one link: reads a request, asks the handler, answers, and again.
#pragma once

#include "proto/link/messages.hpp"
#include "util/clock.hpp"
#include "util/log.hpp"

namespace vtpmd::proto {

/// What one vTPM's link can ask. One handler a connection; calls come one after another, never two at once.
/// An error is answered with the status of its code (status.hpp); its text goes to the peer only for hello(),
/// so say there what the operator needs to know and nothing else.
class Handler {
  public:
    virtual ~Handler() = default;
    /// At most once a link; with ServeOptions::hello_required before anything else. Errc::tombstone, busy,
    /// permission, mismatch (TPM version), not_found (not registered, and creation not asked for or not
    /// allowed). After an error the link is closed.
    virtual Task<Result<HelloReply>> hello(HelloRequest request) = 0;
    /// 52 or 64 bytes. Durable on return.
    virtual Task<Result<void>> save_hash_key(SecretBytes hash_key) = 0;
    /// The same, if the slot on record has the hash `over` (empty: there is none), or is this very one; Errc::rollback
    /// otherwise.
    virtual Task<Result<void>> save_over(Bytes /*over*/, SecretBytes /*hash_key*/) {
        co_return make_error(Errc::unsupported, "not offered");
    }
    /// nullopt: nothing was ever saved.
    virtual Task<Result<std::optional<SecretBytes>>> load_hash_key() = 0;
    virtual Task<Result<BootHash>> boot_hash() = 0;
    /// Another host has this vTPM. Durable on return.
    virtual Task<Result<void>> handed_over() { co_return make_error(Errc::unsupported, "not offered"); }
    /// The last reset of this link's vTPM. Errc::not_found: it was never reset.
    virtual Task<Result<ResetInfo>> reset_info() { co_return make_error(Errc::not_found, "was never reset"); }
    /// By the group's key in the hardware TPM, for this link's vTPM. `request` passed check(). Errc::unsupported: its
    /// group has no such key; pcr_mismatch: the group is closed.
    virtual Task<Result<QuoteReply>> quote(QuoteRequest /*request*/) {
        co_return make_error(Errc::unsupported, "not offered");
    }
    /// GET_QUOTE: the answer's body. `request` passed check(). Errors as quote(), and Errc::unsupported where the
    /// hardware is not a TPM 1.2.
    virtual Task<Result<Bytes>> old_quote(OldQuoteRequest /*request*/) {
        co_return make_error(Errc::unsupported, "not offered");
    }
    /// A key by which a second connection shows that it is this link's (ask_messages.hpp), attach_key_size bytes.
    virtual Task<Result<SecretBytes>> invite() { co_return make_error(Errc::unsupported, "not offered"); }
    /// Instead of hello(): the link is one that the manager asks on. After an error it is closed. Errc::permission: the
    /// key is not that of a link that is open.
    virtual Result<void> attach(AttachRequest /*request*/) { return make_error(Errc::unsupported, "not offered"); }
    /// After attach(), with the channel to itself: until the link ends, as serve() does.
    virtual Task<Result<void>> attached() { co_return make_error(Errc::unsupported, "not offered"); }
    /// The certificate of an endorsement key of this link's vTPM, DER. `request` was parsed by parse_certify().
    virtual Task<Result<Bytes>> certify(CertifyRequest /*request*/) {
        co_return make_error(Errc::unsupported, "not offered");
    }
    /// A whole frame of tag 0x01C2, not yet looked at: the answer's body. Errc::permission: not the administrator's
    /// link.
    virtual Task<Result<Bytes>> management(Bytes frame);
    /// TPM_GetRandom, TPM_PcrRead, TPM_Extend, TPM2_GetRandom or TPM2_PCR_Read, a whole frame of at most frame_limit
    /// bytes; body not yet checked. Returns a TPM response; an error becomes TPM_FAIL or TPM_RC_FAILURE.
    virtual Task<Result<Bytes>> tpm_command(Bytes command) = 0;
};

struct ServeOptions {
    bool hello_required = true; ///< false where the transport names the vTPM (a Xen ring)
    Clock::duration hello_deadline = std::chrono::seconds(10); ///< for the first frame, if it must be a hello
};

/// Until the peer closes (success), breaks framing or is too slow (Errc::protocol, timed_out), a hello is
/// refused (that error), or the task is cancelled (Errc::canceled, or the exception). A request that is well
/// framed but malformed gets an error answer and the link goes on. `channel` is not closed by this.
Task<Result<void>> serve(Channel& channel, Handler& handler, Clock& clock, const Log& log, ServeOptions options);

} // namespace vtpmd::proto
