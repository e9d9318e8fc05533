// What a root of trust does, synchronous, on the hardware thread: one implementation a TPM family (Tpm20, Tpm12).
// HardwareRoot puts queue and coroutines in front.
#pragma once

#include "hwtpm/root_of_trust.hpp"

namespace vtpmd::hwtpm {

class Operations {
  public:
    virtual ~Operations() = default;

    /// The TPM is ready for the calls below. They start it anew by themselves when it was lost.
    virtual Result<void> start() = 0;
    /// Flushes our handles; leaves the TPM as its next user expects it.
    virtual void stop() noexcept = 0;
    /// Around the calls of one batch: claims and releases the locality. A claim that fails is every call's error.
    virtual void begin_batch() = 0;
    virtual void end_batch() noexcept = 0;

    // As in RootOfTrust. What can be asked twice is asked again if the TPM was reset in between; a counter step is not.
    virtual Result<Bytes> identity() = 0;
    virtual Result<SealedSecret> seal(const SecretBytes& secret, const RootOfTrust::SealOptions& options) = 0;
    virtual Result<SecretBytes> unseal(const SealedSecret& sealed) = 0;
    virtual Result<SealedSecret> seal_for(const SecretBytes& secret, const Approver& approver) = 0;
    virtual Result<SecretBytes> unseal_for(const SealedSecret& sealed, const Approver& approver,
                                           const Approval& approval) = 0;
    virtual Result<Endorsement> endorsement() = 0;
    virtual Result<AttestationKey> attestation_key_create(const AttestationKeyOptions& options) = 0;
    virtual Result<Quote> quote(const AttestationKey& key, const QuoteRequest& request) = 0;
    virtual Result<SecretBytes> activate_credential(const AttestationKey& key, ByteView credential) = 0;
    virtual Result<CounterRef> counter_reserve() = 0;
    virtual Result<CounterRef> counter_create(const CounterRef& reserved) = 0;
    virtual Result<std::uint64_t> counter_read(const CounterRef& counter) = 0;
    virtual Result<std::uint64_t> counter_increment(const CounterRef& counter) = 0;
    virtual Result<void> counter_delete(const CounterRef& counter) = 0;
    virtual Result<Bytes> random(std::size_t count) = 0;
    virtual Result<std::vector<PcrValue>> pcr_read(const std::vector<PcrSelection>& selections) = 0;
    virtual Result<Bytes> pcr_extend(unsigned index, ByteView digest) = 0;

    [[nodiscard]] virtual TpmVersion version() const = 0;
    /// After start(): the PCR banks there are, manufacturer and firmware.
    [[nodiscard]] virtual const std::vector<HashAlg>& banks() const = 0;
    [[nodiscard]] virtual const std::string& part() const = 0;

  protected:
    /// What a fresh seal opened to must be what was sealed: what does not open now will not open after the reboot
    /// either.
    [[nodiscard]] static Result<void> check_opens(const Result<SecretBytes>& opened, const SecretBytes& secret) {
        if (!opened) {
            return in_context(opened.error(), "the new seal does not open");
        }
        if (!opened->equals(secret.view())) {
            return make_error(Errc::tpm, "the new seal opens to something else: the TPM is broken");
        }
        return {};
    }
};

} // namespace vtpmd::hwtpm
