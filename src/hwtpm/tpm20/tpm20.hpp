// A TPM 2.0 as root of trust: the operations, synchronous, on the hardware thread. HardwareRoot puts queue and
// coroutines in front.
//
// What goes over the bus: secrets only in parameters encrypted by a session that is salted with the storage key
// (AES-128-CFB; TPM 2.0 part 1 section 21), so that somebody who listens between CPU and TPM learns nothing. One such
// session, "the bus session", is kept and used for everything; a policy session lives for one unseal.
//
// Handles: storage primary key (persistent, or transient and kept), the bus session, nothing else between two calls.
#pragma once

#include "hwtpm/operations.hpp"
#include "hwtpm/tpm20/esys.hpp"
#include "tpm/pcr.hpp"
#include "util/log.hpp"

#include <map>

namespace vtpmd::hwtpm {

/// Counters live in the owner's range of NV indices (Registry of Reserved TPM 2.0 Handles and Localities: 0x01800000 to
/// 0x01BFFFFF): the first free one from here.
inline constexpr std::uint32_t counter_first = 0x01805600;
inline constexpr std::uint32_t counter_last = 0x018056FF;

inline constexpr std::size_t sealed_secret_limit = 128; ///< MAX_SYM_DATA, TPM 2.0 part 2 section 11.1.13

class Tpm20 final : public Operations {
  public:
    struct Config {
        SecretBytes owner_auth;
        SecretBytes srk_auth;
        std::uint32_t srk_handle = 0x81000001;
    };
    /// `device` and `log` outlive it.
    Tpm20(TpmDevice& device, Config config, const Log& log);
    Tpm20(const Tpm20&) = delete;
    Tpm20& operator=(const Tpm20&) = delete;
    ~Tpm20() override;

    /// TPM2_Startup if it had none, capabilities, storage key. Again after Errc::closed and its like: every call below
    /// does so by itself when the device was lost.
    Result<void> start() override;
    /// Flushes our handles; TPM2_Shutdown(CLEAR) if the TPM is ours alone.
    void stop() noexcept override;

    /// Around the calls of one batch: claims and releases the locality. A claim that fails is every call's error.
    void begin_batch() override;
    void end_batch() noexcept override;

    // As in RootOfTrust. A TPM that was reset or lost since the last call is started anew, and what can be asked twice
    // is asked again; a counter step is not.
    Result<Bytes> identity() override;
    Result<SealedSecret> seal(const SecretBytes& secret, const RootOfTrust::SealOptions& options) override;
    Result<SecretBytes> unseal(const SealedSecret& sealed) override;
    Result<SealedSecret> seal_for(const SecretBytes& secret, const Approver& approver) override;
    Result<SecretBytes> unseal_for(const SealedSecret& sealed, const Approver& approver,
                                   const Approval& approval) override;
    Result<Endorsement> endorsement() override;
    Result<AttestationKey> attestation_key_create(const AttestationKeyOptions& options) override;
    Result<Quote> quote(const AttestationKey& key, const QuoteRequest& request) override;
    Result<SecretBytes> activate_credential(const AttestationKey& key, ByteView credential) override;
    Result<CounterRef> counter_reserve() override;
    Result<CounterRef> counter_create(const CounterRef& reserved) override;
    Result<std::uint64_t> counter_read(const CounterRef& counter) override;
    Result<std::uint64_t> counter_increment(const CounterRef& counter) override;
    Result<void> counter_delete(const CounterRef& counter) override;
    Result<Bytes> random(std::size_t count) override;
    Result<std::vector<PcrValue>> pcr_read(const std::vector<PcrSelection>& selections) override;
    Result<Bytes> pcr_extend(unsigned index, ByteView digest) override;

    [[nodiscard]] TpmVersion version() const override { return TpmVersion::tpm20; }
    [[nodiscard]] const std::vector<HashAlg>& banks() const override { return banks_; }
    [[nodiscard]] const std::string& part() const override { return part_; }

    /// Handles of a range that the TPM holds (TPM2_GetCapability, TPM2_CAP_HANDLES).
    Result<std::vector<std::uint32_t>> handles(std::uint32_t first);

  private:
    /// A usable context with a storage key: starts anew if the device was lost.
    Result<void> ready();
    /// ready(), then f(); once more if the TPM had lost our handles (and so did nothing), or, for what may be asked
    /// twice, if no answer came.
    enum class Repeat { if_not_executed, always };
    template <typename F>
    auto attempt(Repeat repeat, F f) -> std::invoke_result_t<F&>;
    void drop() noexcept;
    Result<void> startup();
    Result<void> flush_left_over();
    Result<void> read_part();
    Result<void> read_banks();
    // storage key (storage_key.cpp)
    Result<void> open_storage_key();
    Result<bool> adopt_persistent_key();
    Result<void> create_storage_key();
    Result<void> persist_storage_key(Transient& key);
    Result<void> note_storage_key_name();

    /// The bus session with exactly these attributes (TPMA_SESSION_DECRYPT for a first parameter of the command that
    /// must not be read on the bus, TPMA_SESSION_ENCRYPT for the response's).
    Result<ESYS_TR> bus_session(TPMA_SESSION attributes);
    Result<Transient> new_session(TPM2_SE type);

    // sealing (seal.cpp)
    Result<std::vector<PcrValue>> checked_values(const RootOfTrust::SealOptions& options);
    Result<SealedSecret> seal_once(const SecretBytes& secret, const RootOfTrust::SealOptions& options);
    Result<Bytes> create_sealed(const SecretBytes& secret, ByteView policy);
    Result<void> policy_pcr(ESYS_TR session, const PcrSelection& pcrs);
    Result<void> use_policy_session(ESYS_TR session);
    Result<SecretBytes> unseal_object(ESYS_TR object, ESYS_TR session);
    /// Of TPM2B_PUBLIC || TPM2B_PRIVATE. Errc::mismatch if it was not `made` (sealed, created) by this TPM.
    Result<Transient> load_object(ByteView blob, std::string_view made);

    // seals for an approver (approval.cpp)
    Result<SecretBytes> unseal_for_once(const SealedSecret& sealed, const Approver& approver, const Approval& approval);
    Result<void> policy_authorize(ESYS_TR session, const Approver& approver, const Approval& approval);

    // attestation (attestation.cpp)
    struct EndorsementKey {
        ESYS_TR handle = ESYS_TR_NONE;
        Transient transient; ///< owns the handle if it is not persistent
        TPM2B_PUBLIC area{};
    };
    Result<EndorsementKey> endorsement_key();
    Result<bool> adopt_endorsement_key(EndorsementKey& out);
    Result<Bytes> endorsement_certificate();
    Result<AttestationKey> attestation_key_create_once(const AttestationKeyOptions& options);
    Result<Quote> quote_once(const AttestationKey& key, const QuoteRequest& request);
    Result<SecretBytes> activate_once(const AttestationKey& key, ByteView credential);

    Result<SecretBytes> unseal_once(const SealedSecret& sealed);
    Error explain_policy_failure(const SealedSecret& sealed, const Error& cause);

    // counters (counter.cpp)
    Result<std::uint32_t> free_counter_handle();
    Result<bool> take_reserved(const CounterRef& reserved);
    Result<void> define_counter(const CounterRef& counter);
    Result<ESYS_TR> counter_handle(const CounterRef& counter);
    Result<std::uint64_t> counter_read_once(const CounterRef& counter);
    Result<void> counter_step_once(const CounterRef& counter);
    Error counter_error(Error e, const CounterRef& counter);
    Result<std::vector<PcrValue>> pcr_read_once(const std::vector<PcrSelection>& selections);
    Result<Bytes> random_once(std::size_t count);
    void forget_counter(std::uint32_t handle) noexcept;

    TpmDevice& device_;
    Config config_;
    const Log& log_;

    Result<void> claimed_;
    std::unique_ptr<EsysContext> esys_;
    ESYS_TR storage_key_ = ESYS_TR_NONE;
    Transient transient_storage_key_; ///< owns storage_key_ if it is not persistent
    Bytes storage_key_name_;
    Transient bus_session_;
    std::map<std::uint32_t, ESYS_TR> counters_;
    std::vector<HashAlg> banks_;
    std::string part_;
};

/// True for an error of a command that was not executed because the TPM was reset or lost our handles
/// (TPM_RC_INITIALIZE, TPM_RC_REFERENCE_H0 and so on: suspend to memory, a kexec'd firmware, a restarted swtpm).
[[nodiscard]] bool handles_lost(const Error& e) noexcept;

template <typename F>
auto Tpm20::attempt(Repeat repeat, F f) -> std::invoke_result_t<F&> {
    if (auto r = ready(); !r) {
        return r.error();
    }
    auto result = f();
    if (result ||
        !(handles_lost(result.error()) || (repeat == Repeat::always && result.error().code == Errc::closed))) {
        return result;
    }
    drop();
    if (auto r = ready(); !r) {
        return r.error();
    }
    return f();
}

[[nodiscard]] Result<TPML_PCR_SELECTION> to_tpml(const std::vector<PcrSelection>& selections);

} // namespace vtpmd::hwtpm
