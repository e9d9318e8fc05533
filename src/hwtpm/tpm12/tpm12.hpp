// A TPM 1.2 as root of trust: the operations, synchronous, on the hardware thread.
//
// Owned: ownership is taken with the given authorisation values if nobody has it, else they must be the owner's. Seals
// are under the SRK, to a composite of SHA-1 PCRs, and to the locality if ours is not 0. The freshness counter is a
// monotonic
// counter: 32 bits, one step in 5 s at best (TPM Main part 1 section 20; the TPM says TPM_RETRY until then), and only
// one of a TPM's counters can be stepped between two boots.
//
// Unlike on a TPM 2.0 the secret crosses the bus in clear at Seal and Unseal: authorised, not encrypted.
#pragma once

#include "hwtpm/operations.hpp"
#include "hwtpm/tpm12/client.hpp"
#include "util/log.hpp"
#include "util/wire.hpp"

#include <optional>

namespace vtpmd::hwtpm {

class Tpm12 final : public Operations {
  public:
    struct Config {
        SecretBytes owner_auth; ///< 20 bytes
        SecretBytes srk_auth;   ///< 20 bytes
        unsigned locality = 0;
    };
    /// `device` and `log` outlive it.
    Tpm12(TpmDevice& device, Config config, const Log& log)
        : device_(device)
        , client_(device)
        , config_(std::move(config))
        , log_(log) {}

    Result<void> start() override;
    void stop() noexcept override { started_ = false; }
    void begin_batch() override;
    void end_batch() noexcept override { device_.release(); }

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
    [[nodiscard]] TpmVersion version() const override { return TpmVersion::tpm12; }
    [[nodiscard]] const std::vector<HashAlg>& banks() const override { return banks_; }
    [[nodiscard]] const std::string& part() const override { return part_; }

  private:
    enum class Repeat { if_not_executed, always };
    template <typename F>
    auto attempt(Repeat repeat, F f) -> std::invoke_result_t<F&>;
    Result<void> ready();

    Result<void> startup();
    Result<void> flush_left_over();
    Result<void> read_part();
    Result<void> own();
    Result<void> take_ownership();
    Result<Bytes> endorsement_key();
    Result<void> note_identity();
    Result<Bytes> internal_public(std::uint32_t handle);
    Result<Bytes> capability(std::uint32_t area, std::uint32_t sub, std::string_view name);

    Result<std::vector<PcrValue>> pcr_read_once(const std::vector<PcrSelection>& selections);
    Result<std::vector<PcrValue>> checked_values(const RootOfTrust::SealOptions& options);
    Result<Bytes> pcr_info(const SealedSecret& sealed, ByteView given_composite) const;
    Result<SealedSecret> seal_once(const SecretBytes& secret, const RootOfTrust::SealOptions& options);
    Result<SecretBytes> unseal_once(const SealedSecret& sealed);
    Error explain(const SealedSecret& sealed, Error cause);
    // identities (identity.cpp)
    class LoadedKey;
    Result<std::unique_ptr<LoadedKey>> load(const AttestationKey& key);
    Result<AttestationKey> attestation_key_create_once(const AttestationKeyOptions& options);
    Result<Quote> quote_once(const AttestationKey& key, const QuoteRequest& request);
    Result<SecretBytes> activate_once(const AttestationKey& key, ByteView credential);

    Result<std::optional<std::uint32_t>> find_counter(ByteView label);
    Error counter_error(Error e, const CounterRef& counter) const;

    TpmDevice& device_;
    Tpm12Client client_;
    Config config_;
    const Log& log_;

    bool started_ = false;
    Result<void> claimed_;
    Bytes identity_;
    std::string part_;
    std::vector<HashAlg> banks_ = {HashAlg::sha1};
};

/// TPM_PCR_SELECTION (TPM Main part 2 section 8.1), of 24 PCRs unless told otherwise. `size` bytes: 8 PCRs each.
inline constexpr std::uint16_t select_size_12 = 3;
void put_pcr_selection(WireWriter& w, const PcrSelection& selection, std::uint16_t size = select_size_12);

} // namespace vtpmd::hwtpm
