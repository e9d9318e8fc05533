// A root of trust in memory. FakeTpm is the part: it outlives "reboots", that is the FakeRootOfTrust objects that talk to it.
// Before every operation before() is called with its name: it may throw (the machine dies), or return an error (the
// TPM fails); after() likewise, when the operation has happened but nobody heard of it.
#pragma once

#include "hwtpm/root_of_trust.hpp"
#include "tpm/pcr.hpp"

#include <algorithm>
#include <functional>
#include <map>
#include <optional>
#include <string_view>

namespace vtpmd::fakes {

struct FakeTpm {
    using Hook = std::function<std::optional<Error>(std::string_view operation)>;
    TpmVersion version = TpmVersion::tpm20;
    Bytes identity{std::byte{1}, std::byte{2}, std::byte{3}};
    std::map<std::uint32_t, std::uint64_t> counters;
    std::map<std::uint32_t, Bytes> counter_auths;
    unsigned reservations = 0;
    std::uint64_t high_water = 40; ///< a new counter starts above all that ever were
    std::map<std::pair<hwtpm::HashAlg, unsigned>, Bytes> pcrs;
    std::vector<hwtpm::HashAlg> banks{hwtpm::HashAlg::sha1, hwtpm::HashAlg::sha256};
    struct Sealed {
        SecretBytes secret;
        std::vector<hwtpm::PcrValue> values;
        hwtpm::PcrSelection selection;
        Bytes composite; ///< not empty: what counts, of the selection
    };
    std::map<std::uint32_t, Sealed> sealed;
    struct SealedFor {
        hwtpm::Approver approver;
        SecretBytes secret;
    };
    std::vector<SealedFor> sealed_for;
    unsigned attestation_keys = 0;
    bool rsa_quotes =
        false; ///< signatures have RSA-2048's size and form: what is signed, then zeros, then the key's name
    std::vector<std::string> calls;
    Hook before, after;

    FakeTpm() {
        for (hwtpm::HashAlg bank : banks) {
            for (unsigned p = 0; p < 24; ++p) {
                pcrs[{bank, p}] = Bytes(bank == hwtpm::HashAlg::sha1 ? 20 : 32, static_cast<std::byte>(p + 1));
            }
        }
    }
};

class FakeRootOfTrust final : public hwtpm::RootOfTrust {
  public:
    explicit FakeRootOfTrust(FakeTpm& tpm)
        : tpm_(tpm) {}

    [[nodiscard]] TpmVersion version() const override { return tpm_.version; }
    [[nodiscard]] std::string description() const override { return "fake TPM"; }
    Task<Result<Bytes>> identity() override {
        return doing<Bytes>("identity", [this]() -> Result<Bytes> { return tpm_.identity; });
    }
    Task<Result<hwtpm::SealedSecret>> seal(SecretBytes secret, SealOptions options) override {
        auto held = std::make_shared<SecretBytes>(std::move(secret));
        return doing<hwtpm::SealedSecret>("seal", [this, held, options]() -> Result<hwtpm::SealedSecret> {
            hwtpm::SealedSecret out{.blob = {},
                                    .selection = options.selection,
                                    .values = options.values.empty() ? values_of(options.selection) : options.values};
            auto id = static_cast<std::uint32_t>(tpm_.sealed.size() + 1);
            for (unsigned shift : {24U, 16U, 8U, 0U}) {
                out.blob.push_back(static_cast<std::byte>(id >> shift));
            }
            out.blob.resize(200); // about what a TPM gives
            FakeTpm::Sealed made{.secret = held->clone(), .values = out.values, .selection = {}, .composite = {}};
            if (!options.composite.empty()) {
                out.values.clear();
                made = {.secret = held->clone(),
                        .values = {},
                        .selection = options.selection,
                        .composite = options.composite};
            }
            tpm_.sealed.emplace(id, std::move(made));
            return out;
        });
    }
    Task<Result<SecretBytes>> unseal(hwtpm::SealedSecret sealed) override {
        return doing<SecretBytes>("unseal", [this, sealed]() -> Result<SecretBytes> {
            std::uint32_t id = 0;
            for (std::size_t i = 0; i < 4 && i < sealed.blob.size(); ++i) {
                id = id << 8U | std::to_integer<std::uint32_t>(sealed.blob[i]);
            }
            auto it = tpm_.sealed.find(id);
            if (it == tpm_.sealed.end()) {
                return make_error(Errc::mismatch, "sealed by another TPM");
            }
            std::string differ;
            for (const hwtpm::PcrValue& v : it->second.values) {
                if (tpm_.pcrs[{v.bank, v.index}] != v.digest) {
                    differ += fmt::format(" PCR {}", v.index);
                }
            }
            if (!it->second.composite.empty() &&
                hwtpm::pcr_composite(it->second.selection, values_of(it->second.selection)).value() !=
                    it->second.composite) {
                differ = " a composite";
            }
            if (!differ.empty()) {
                return make_error(Errc::pcr_mismatch, "PCRs differ from what was sealed to:{}", differ);
            }
            return it->second.secret.clone();
        });
    }

    Task<Result<hwtpm::SealedSecret>> seal_for(SecretBytes secret, hwtpm::Approver approver) override {
        auto held = std::make_shared<SecretBytes>(std::move(secret));
        return doing<hwtpm::SealedSecret>("seal_for", [this, held, approver]() -> Result<hwtpm::SealedSecret> {
            if (tpm_.version == TpmVersion::tpm12) {
                return make_error(Errc::unsupported, "a TPM 1.2 has no PolicyAuthorize");
            }
            tpm_.sealed_for.push_back({.approver = approver, .secret = held->clone()});
            return hwtpm::SealedSecret{
                .blob = Bytes(200, static_cast<std::byte>(tpm_.sealed_for.size())), .selection = {}, .values = {}};
        });
    }
    Task<Result<SecretBytes>> unseal_for(hwtpm::SealedSecret sealed, hwtpm::Approver approver,
                                         hwtpm::Approval approval) override {
        return doing<SecretBytes>("unseal_for", [this, sealed, approver, approval]() -> Result<SecretBytes> {
            if (auto verified = hwtpm::verify_approval(approver, approval); !verified) {
                return verified.error();
            }
            const std::size_t id = sealed.blob.empty() ? 0 : std::to_integer<std::size_t>(sealed.blob.front());
            if (id == 0 || id > tpm_.sealed_for.size()) {
                return make_error(Errc::mismatch, "sealed by another TPM");
            }
            const FakeTpm::SealedFor& found = tpm_.sealed_for[id - 1];
            if (found.approver.key != approver.key || found.approver.reference != approver.reference) {
                return make_error(Errc::mismatch, "sealed for another approver, or for another reference");
            }
            for (const hwtpm::PcrValue& v : approval.values) {
                if (tpm_.pcrs[{v.bank, v.index}] != v.digest) {
                    return make_error(Errc::pcr_mismatch, "PCR {} differs from what was approved", v.index);
                }
            }
            return found.secret.clone();
        });
    }
    Task<Result<hwtpm::Endorsement>> endorsement() override {
        return doing<hwtpm::Endorsement>("endorsement", [this]() -> Result<hwtpm::Endorsement> {
            return hwtpm::Endorsement{.key = tpm_.identity, .public_area = tpm_.identity, .certificate = {}};
        });
    }
    Task<Result<hwtpm::AttestationKey>> attestation_key_create(hwtpm::AttestationKeyOptions options) override {
        return doing<hwtpm::AttestationKey>(
            "attestation_key_create", [this, options]() -> Result<hwtpm::AttestationKey> {
                Bytes name{static_cast<std::byte>(++tpm_.attestation_keys)};
                // An RSA key to look at, told apart by its first bytes; nobody has its other half.
                Bytes modulus(256, std::byte{0xC1});
                modulus[1] = name.front();
                auto key =
                    hwtpm::to_spki({.type = hwtpm::KeyType::rsa_2048, .modulus = std::move(modulus), .x = {}, .y = {}});
                return hwtpm::AttestationKey{
                    .blob = name, .key = key.value(), .public_area = name, .binding = options.chosen_id};
            });
    }
    Task<Result<hwtpm::Quote>> quote(hwtpm::AttestationKey key, hwtpm::QuoteRequest request) override {
        return doing<hwtpm::Quote>("quote", [this, key, request]() -> Result<hwtpm::Quote> {
            hwtpm::Quote out{
                .attested = request.nonce, .signature = key.blob, .values = {}}; // not signed, but told apart
            if (tpm_.rsa_quotes) {
                out.signature = request.nonce;
                out.signature.resize(255);
                out.signature.push_back(key.blob.front());
                if (tpm_.version == TpmVersion::tpm20) { // TPMT_SIGNATURE: RSASSA, SHA-256, 256 bytes
                    const Bytes head{std::byte{0},    std::byte{0x14}, std::byte{0},
                                     std::byte{0x0b}, std::byte{1},    std::byte{0}};
                    out.signature.insert(out.signature.begin(), head.begin(), head.end());
                }
            }
            for (const auto& s : request.selections) {
                auto values = values_of(s);
                out.values.insert(out.values.end(), values.begin(), values.end());
            }
            return out;
        });
    }
    Task<Result<SecretBytes>> activate_credential(hwtpm::AttestationKey key, Bytes credential) override {
        return doing<SecretBytes>("activate_credential", [key, credential]() -> Result<SecretBytes> {
            if (credential.empty() || key.blob.empty() || credential.front() != key.blob.front()) {
                return make_error(Errc::mismatch, "the credential was made for another key");
            }
            return SecretBytes(ByteView(credential).subspan(1));
        });
    }

    Task<Result<hwtpm::CounterRef>> counter_reserve() override {
        return doing<hwtpm::CounterRef>("counter_reserve", [this]() -> Result<hwtpm::CounterRef> {
            // As the families do: a TPM 2.0 gives out the place, a TPM 1.2 only when the counter is made.
            return hwtpm::CounterRef{.handle = tpm_.version == TpmVersion::tpm20 ? free_handle() : 0,
                                     .auth = Bytes(20, static_cast<std::byte>(++tpm_.reservations))};
        });
    }
    Task<Result<hwtpm::CounterRef>> counter_create(hwtpm::CounterRef reserved) override {
        return doing<hwtpm::CounterRef>("counter_create", [this, reserved]() -> Result<hwtpm::CounterRef> {
            for (const auto& [handle, auth] : tpm_.counter_auths) {
                if (auth == reserved.auth && tpm_.counters.contains(handle)) {
                    return hwtpm::CounterRef{.handle = handle, .auth = auth};
                }
            }
            const bool free = tpm_.version == TpmVersion::tpm20 && !tpm_.counters.contains(reserved.handle);
            hwtpm::CounterRef made{.handle = free ? reserved.handle : free_handle(), .auth = reserved.auth};
            tpm_.counters[made.handle] = ++tpm_.high_water;
            tpm_.counter_auths[made.handle] = made.auth;
            return made;
        });
    }
    Task<Result<std::uint64_t>> counter_read(hwtpm::CounterRef c) override {
        return doing<std::uint64_t>("counter_read", [this, c]() -> Result<std::uint64_t> {
            auto it = tpm_.counters.find(c.handle);
            if (it == tpm_.counters.end()) {
                return make_error(Errc::not_found, "no counter");
            }
            auto auth = tpm_.counter_auths.find(c.handle);
            if (tpm_.version == TpmVersion::tpm20 && auth != tpm_.counter_auths.end() && auth->second != c.auth) {
                return make_error(Errc::mismatch, "another's counter");
            }
            return it->second;
        });
    }
    Task<Result<std::uint64_t>> counter_increment(hwtpm::CounterRef c) override {
        return doing<std::uint64_t>("counter_increment", [this, c]() -> Result<std::uint64_t> {
            auto it = tpm_.counters.find(c.handle);
            if (it == tpm_.counters.end()) {
                return make_error(Errc::not_found, "no counter");
            }
            tpm_.high_water = std::max(tpm_.high_water, ++it->second);
            return it->second;
        });
    }
    Task<Result<void>> counter_delete(hwtpm::CounterRef c) override {
        return doing<void>("counter_delete", [this, c]() -> Result<void> {
            if (tpm_.counters.erase(c.handle) == 0) {
                return make_error(Errc::not_found, "no counter");
            }
            return {};
        });
    }
    Task<Result<Bytes>> random(std::size_t count) override {
        return doing<Bytes>("random", [count]() -> Result<Bytes> { return Bytes(count, std::byte{0x42}); });
    }
    Task<Result<std::vector<hwtpm::PcrValue>>> pcr_read(std::vector<hwtpm::PcrSelection> selections) override {
        using Values = std::vector<hwtpm::PcrValue>;
        return doing<Values>("pcr_read", [this, selections]() -> Result<Values> {
            Values all;
            for (const auto& s : selections) {
                auto values = values_of(s);
                all.insert(all.end(), values.begin(), values.end());
            }
            return all;
        });
    }
    Task<Result<Bytes>> pcr_extend(unsigned index, Bytes digest) override {
        return doing<Bytes>("pcr_extend", [this, index, digest]() -> Result<Bytes> {
            return tpm_.pcrs[{hwtpm::HashAlg::sha1, index}] = digest; // not hashed, but seen
        });
    }
    [[nodiscard]] std::vector<hwtpm::HashAlg> banks() const override { return tpm_.banks; }
    Task<> close() override { co_return; }

  private:
    [[nodiscard]] std::uint32_t free_handle() const {
        std::uint32_t handle = tpm_.version == TpmVersion::tpm20 ? 0x01800000 : 0; // a TPM 1.2 begins with 0
        while (tpm_.counters.contains(handle)) {
            ++handle;
        }
        return handle;
    }
    std::vector<hwtpm::PcrValue> values_of(const hwtpm::PcrSelection& selection) {
        std::vector<hwtpm::PcrValue> out;
        for (unsigned p : selection.pcrs) {
            if (auto it = tpm_.pcrs.find({selection.bank, p}); it != tpm_.pcrs.end()) {
                out.push_back({.bank = selection.bank, .index = p, .digest = it->second});
            }
        }
        return out;
    }
    template <typename T>
    Task<Result<T>> doing(std::string_view operation, std::function<Result<T>()> work) {
        co_await asio::post(use_tuple); // as the hardware thread: never in the caller's turn
        tpm_.calls.emplace_back(operation);
        if (tpm_.before) {
            if (auto e = tpm_.before(operation)) {
                co_return *e;
            }
        }
        Result<T> result = work();
        if (tpm_.after) {
            if (auto e = tpm_.after(operation)) {
                co_return *e;
            }
        }
        co_return result;
    }

    FakeTpm& tpm_;
};

} // namespace vtpmd::fakes
