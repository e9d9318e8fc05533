// What the manager asks of the hardware TPM, for both families. Every call is a coroutine on the loop; the work runs on
// the hardware thread, in order of urgency, batched.
#pragma once

#include "tpm/attestation.hpp"
#include "tpm/pcr_selection.hpp"
#include "tpm/version.hpp"
#include "util/asio.hpp"
#include "util/bytes.hpp"
#include "util/log.hpp"
#include "util/result.hpp"
#include "util/secret_bytes.hpp"

#include <array>
#include <chrono>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace vtpmd::hwtpm {

/// A sealed secret as the TPM gave it, with what it was sealed to, so that a refusal can name the PCR.
struct SealedSecret {
    Bytes blob; ///< TPM2B_PUBLIC || TPM2B_PRIVATE (2.0), TPM_STORED_DATA (1.2)
    PcrSelection selection;
    std::vector<PcrValue> values; ///< at the time of sealing
};

/// The freshness counter: an NV counter index (2.0) or a monotonic counter (1.2).
struct CounterRef {
    std::uint32_t handle = 0; ///< any value, also 0; in a reservation on a TPM 1.2 it says nothing, the TPM chooses
    Bytes auth;               ///< its authorisation value (kept in the sealed part of the store); empty: no counter
    explicit operator bool() const noexcept { return !auth.empty(); }
};

/// Figures of the hardware TPM since it was opened.
struct HardwareMetrics {
    std::uint64_t commands = 0; ///< sent to the TPM
    std::uint64_t retries = 0;  ///< of them, sent again because the TPM said "later"
    std::uint64_t urgent_jobs = 0;
    std::uint64_t routine_jobs = 0;
    std::uint64_t urgent_waiting = 0; ///< jobs not done yet, now
    std::uint64_t routine_waiting = 0;
    std::uint64_t batches = 0; ///< claims of the locality
    std::uint64_t largest_batch = 0;
    std::uint64_t random_requests = 0;
    std::uint64_t random_trips = 0;
    std::uint64_t pcr_requests = 0;
    std::uint64_t pcr_trips = 0;
    /// From a job's acceptance to its result: how many took at most 1 ms, 10 ms, 100 ms, 1 s, 10 s, or longer.
    static constexpr std::array<std::chrono::milliseconds, 5> latency_bounds{
        std::chrono::milliseconds{1}, std::chrono::milliseconds{10}, std::chrono::milliseconds{100},
        std::chrono::milliseconds{1000}, std::chrono::milliseconds{10000}};
    std::array<std::uint64_t, latency_bounds.size() + 1> latency{};
    std::chrono::nanoseconds latency_sum{0};
};

class RootOfTrust {
  public:
    virtual ~RootOfTrust() = default;

    [[nodiscard]] virtual TpmVersion version() const = 0;
    /// For messages: driver, vendor, firmware.
    [[nodiscard]] virtual std::string description() const = 0;
    /// Identifies the part across reboots (a digest of the storage key's name), so that another TPM is recognised.
    virtual Task<Result<Bytes>> identity() = 0;

    /// Up to 128 bytes a secret. Errc::pcr_mismatch names the PCRs that are all zero (unless allow_zero) or banks
    /// missing.
    struct SealOptions {
        PcrSelection selection;
        bool allow_zero_pcrs = false;
        /// Not empty: the values that it opens at, one for each PCR of the selection in its order, instead of the
        /// present ones.
        std::vector<PcrValue> values = {};
        /// Instead of values, TPM 1.2 only: SHA-1 of the TPM_PCR_COMPOSITE that it opens at, 20 bytes.
        Bytes composite = {};
    };
    virtual Task<Result<SealedSecret>> seal(SecretBytes secret, SealOptions options) = 0;
    /// Errc::pcr_mismatch names every PCR that differs from the value sealed to (bank, index, sealed, present);
    /// Errc::mismatch: sealed by another TPM (or this one was cleared).
    virtual Task<Result<SecretBytes>> unseal(SealedSecret sealed) = 0;

    // Seals that an approver opens (TPM2_PolicyAuthorize): TPM 2.0 only, else Errc::unsupported. A TPM 1.2 seals once
    // for every approved configuration instead.
    /// Up to 128 bytes, for approvals to come.
    virtual Task<Result<SealedSecret>> seal_for(SecretBytes secret, Approver approver) = 0;
    /// Errc::permission: a signature that is not the approver's; pcr_mismatch: the present platform is not the approved
    /// one, with every PCR that differs; mismatch: sealed by another TPM, for another approver or reference.
    virtual Task<Result<SecretBytes>> unseal_for(SealedSecret sealed, Approver approver, Approval approval) = 0;

    /// Errc::permission if the endorsement hierarchy (2.0) or the owner (1.2) is protected by another value than we
    /// have.
    virtual Task<Result<Endorsement>> endorsement() = 0;
    /// A new key; nothing of it stays in the TPM.
    virtual Task<Result<AttestationKey>> attestation_key_create(AttestationKeyOptions options) = 0;
    /// Errc::mismatch: a key of another TPM; pcr_mismatch: a bank that is not there.
    virtual Task<Result<Quote>> quote(AttestationKey key, QuoteRequest request) = 0;
    /// What a privacy CA encrypted for this key in this TPM. 2.0: TPM2B_ID_OBJECT || TPM2B_ENCRYPTED_SECRET, gives the
    /// secret.
    /// 1.2: TPM_ASYM_CA_CONTENTS encrypted to the endorsement key, gives the session key's bytes. Errc::mismatch: for
    /// another key, or made for another TPM.
    virtual Task<Result<SecretBytes>> activate_credential(AttestationKey key, Bytes credential) = 0;

    /// A place and an authorisation value for a counter that is not made yet: nothing in the TPM changes. Whoever keeps
    /// it durably before counter_create() finds the counter again after a crash, and leaves none behind in the TPM.
    virtual Task<Result<CounterRef>> counter_reserve() = 0;
    /// A counter that never goes back, also over delete and re-create. Returns where it is, which can be elsewhere than
    /// was reserved. Asked again for the same reservation it takes the counter that it made then.
    virtual Task<Result<CounterRef>> counter_create(CounterRef reserved) = 0;
    virtual Task<Result<std::uint64_t>> counter_read(CounterRef counter) = 0;
    /// The value after the step.
    virtual Task<Result<std::uint64_t>> counter_increment(CounterRef counter) = 0;
    virtual Task<Result<void>> counter_delete(CounterRef counter) = 0;

    /// 1..4096 bytes.
    virtual Task<Result<Bytes>> random(std::size_t count) = 0;
    /// Values of the banks and indices that exist; banks the TPM has not are left out.
    virtual Task<Result<std::vector<PcrValue>>> pcr_read(std::vector<PcrSelection> selections) = 0;
    /// Extends a PCR of the SHA-1 bank by 20 bytes: its new value. Errc::pcr_mismatch: there is no such bank; usage: no
    /// such PCR.
    virtual Task<Result<Bytes>> pcr_extend(unsigned index, Bytes digest) = 0;
    /// PCR banks that are allocated.
    [[nodiscard]] virtual std::vector<HashAlg> banks() const = 0;

    /// Loop thread.
    [[nodiscard]] virtual HardwareMetrics metrics() const { return {}; }

    /// Relinquishes the TPM; what is queued is finished first.
    virtual Task<> close() = 0;
};

/// `driver` as on the command line: embedded:DIR, swtpm:unix:PATH, swtpm:tcp:HOST:PORT, device[:PATH], tis[:0xADDR],
/// xen[:HANDLE], auto. open_root blocks while the TPM starts (seconds at worst): called before the loop serves.
struct OpenOptions {
    std::string driver = "auto";
    unsigned locality = 0;
    std::string owner_auth = "well-known";
    std::string srk_auth = "well-known";
    std::uint32_t srk_handle = 0x81000001;
};
/// `create`: an embedded TPM may be made where there is none (the manager's --create). `log` outlives the root. Errors
/// are one line each that says what to do.
[[nodiscard]] Result<std::unique_ptr<RootOfTrust>> open_root(const OpenOptions& options, asio::any_io_executor executor,
                                                             const Log& log, bool create);

} // namespace vtpmd::hwtpm
