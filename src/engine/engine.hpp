// The guest's TPM: libtpms behind execute(). libtpms keeps global state, so a process has one Engine at most; this room
// is the only one that includes its headers.
//
// Persistence is staged: when a command changes the permanent state, libtpms hands the new blob over inside execute();
// the engine keeps it until take_staged(). The caller makes it durable and only then gives the guest its answer. The
// clock of a TPM 2.0 counts as such a change whenever it is set or told and has moved by more than TPM_PT_CLOCK_UPDATE.
#pragma once

#include "tpm/version.hpp"
#include "util/bytes.hpp"
#include "util/result.hpp"
#include "util/secret_bytes.hpp"

#include <memory>
#include <optional>
#include <string>

namespace vtpmd {

/// libtpms' three blobs. Empty: not there.
struct EngineState {
    SecretBytes permanent;      ///< NV, keys, owner; 1.2-10 KB and what the guest defines
    SecretBytes save_state;     ///< what TPM_SaveState / TPM2_Shutdown(STATE) left
    SecretBytes volatile_state; ///< a running TPM's registers (suspend, migration, PCR preset)
    /// Not libtpms': of a state that came from another host and may not run before that has let go of it, what to show
    /// there (instance/migration/handover.hpp).
    SecretBytes unconfirmed;
    /// Not libtpms' either: what is remembered of the state that was given out last (instance/life.hpp).
    SecretBytes given_out;
};

/// Longest command and response that the TPM tells its users of.
struct BufferSize {
    std::uint32_t size = 0, min = 0, max = 0;
};

class Engine {
  public:
    /// Errc::busy if the process has one already.
    static Result<std::unique_ptr<Engine>> create(TpmVersion version);
    virtual ~Engine() = default;

    /// Powers the TPM on with this state (TPMLIB_MainInit): empty permanent state makes a *fresh* TPM, which the caller
    /// must have been asked for. A running one is powered off first. No TPM_Startup is sent. Errc::corrupt if libtpms
    /// refuses the blobs: nothing is replaced.
    virtual Result<void> power_on(const EngineState& state) = 0;
    /// TPMLIB_Terminate; volatile state is gone. What is staged stays staged.
    virtual void power_off() = 0;
    [[nodiscard]] virtual bool running() const = 0;

    /// One command, one response, synchronous, from one thread at a time. Always a well-formed TPM response of at most
    /// 4096 bytes, also for a malformed command. A TPM that is powered off answers with its family's "failure".
    virtual Bytes execute(ByteView command, std::uint8_t locality) = 0;
    /// Asks a command that runs on another thread to end early (TPMLIB_CancelCommand). TPM 2.0 looks at it between the
    /// candidates of a key search and between self tests; TPM 1.2 has no such thing, its command runs to its end.
    /// No effect if no command runs.
    virtual void cancel() = 0;

    /// The permanent and save-state blobs as last stored by libtpms, if that happened since the last call.
    /// A cleared save state (deleted by libtpms) is a staged change too.
    virtual std::optional<EngineState> take_staged() = 0;
    [[nodiscard]] virtual bool has_staged() const = 0;
    /// What take_staged() gave last is durable: until it changes, libtpms storing the same bytes again stages nothing.
    /// (Rare: TPM 2.0 stores at a repeated Shutdown, at a lockout reset that resets nothing. Commands that change
    /// nothing permanent, such as extends, reads or sessions, do not store at all.) Without this call every store is
    /// staged.
    virtual void staged_is_durable() = 0;
    /// What take_staged() gave last did not become durable: has_staged() is true again, so that the next answer waits
    /// for it. libtpms cannot take a change back.
    virtual void staged_failed() = 0;

    /// All three blobs of the running TPM as they are now: permanent and save state as libtpms stored them last.
    virtual Result<EngineState> snapshot() = 0;
    /// The volatile blob of snapshot() alone.
    virtual Result<SecretBytes> registers() {
        auto all = snapshot();
        if (!all) {
            return all.error();
        }
        return std::move(all->volatile_state);
    }
    /// Power-cycles the running TPM into this volatile state; permanent and save state, and what is staged, stay as
    /// they are. Errc::corrupt if libtpms refuses it: the TPM is then off.
    virtual Result<void> resume(const SecretBytes& volatile_state) = 0;

    [[nodiscard]] virtual TpmVersion version() const = 0;
    /// Asks for that buffer size while the TPM is off (0: only tells); one out of range becomes the nearest that is
    /// possible.
    virtual BufferSize buffer_size(std::uint32_t wanted) = 0;
    /// TPMLIB_GetInfo's JSON for the given flags (1 specification, 2 attributes, 4 features).
    [[nodiscard]] virtual std::string info(unsigned flags) const = 0;
    /// Why the last "failure" answer of execute() came about, as far as libtpms says; empty if there was none since
    /// power_on(). For the log: nothing secret in it.
    [[nodiscard]] virtual std::string failure() const = 0;
    [[nodiscard]] virtual bool established() const = 0; ///< tpmEstablished
    /// Errc::tpm with TPM_BAD_LOCALITY unless the locality is 3 or 4. TPM 1.2 stages the change.
    virtual Result<void> reset_established(std::uint8_t locality) = 0;
    /// TPM_IO_Hash_Start/Data/End (D-RTM and firmware measurement); locality 4.
    virtual Result<void> hash_start() = 0;
    virtual Result<void> hash_data(ByteView data) = 0;
    virtual Result<void> hash_end() = 0;
};

} // namespace vtpmd
