// Owner authorisation of vendor commands: the guest's side is the TPM 1.2 client that talks to hardware TPMs, which checks the
// authorisation of every answer for itself.
#include "engine/owner_auth.hpp"
#include "hwtpm/device.hpp"
#include "support.hpp"
#include "tpm12_owner.hpp"

#include <variant>

namespace vtpmd::test::owner_auth {

namespace {

/// A vTPM whose vendor command gives back what it was asked with, if its owner asks.
class OwnedVtpm final : public hwtpm::TpmDevice {
  public:
    [[nodiscard]] std::string description() const override { return "a vTPM"; }
    [[nodiscard]] bool exclusive() const override { return true; }
    Result<Bytes> transmit(ByteView command, std::chrono::milliseconds /*limit*/) override {
        if (tpm::peek_header(command).code != tpm::ord::vendor_deep_quote) {
            return engine->execute(command, 0);
        }
        auto answered = authorise_as_owner(asked != nullptr ? *asked : *engine, command, 0);
        if (auto* refusal = std::get_if<Bytes>(&answered)) {
            return *refusal;
        }
        const auto& session = std::get<OwnerAuthorised>(answered);
        endorsement_key = session.endorsement_key;
        return authorised_response(session, session.parameters);
    }
    std::unique_ptr<Engine> engine = started(v12);
    Bytes endorsement_key;
    Engine* asked = nullptr; ///< instead of it, by the vendor command
};

/// The same TPM, but its volatile state begins with bytes that its guest could have brought there.
class Salted final : public Engine {
  public:
    Salted(Engine& real, Bytes salt)
        : real_(real)
        , salt_(std::move(salt)) {}
    Result<EngineState> snapshot() override {
        auto state = real_.snapshot();
        if (state) {
            Bytes all = salt_;
            const ByteView rest = state->volatile_state.view();
            all.insert(all.end(), rest.begin(), rest.end());
            state->volatile_state = SecretBytes(all);
        }
        return state;
    }
    Bytes execute(ByteView command, std::uint8_t locality) override { return real_.execute(command, locality); }
    Result<void> power_on(const EngineState& state) override { return real_.power_on(state); }
    void power_off() override { real_.power_off(); }
    [[nodiscard]] bool running() const override { return real_.running(); }
    void cancel() override { real_.cancel(); }
    std::optional<EngineState> take_staged() override { return real_.take_staged(); }
    [[nodiscard]] bool has_staged() const override { return real_.has_staged(); }
    void staged_is_durable() override { real_.staged_is_durable(); }
    void staged_failed() override { real_.staged_failed(); }
    [[nodiscard]] TpmVersion version() const override { return real_.version(); }
    Result<void> resume(const SecretBytes& registers) override { return real_.resume(registers); }
    [[nodiscard]] std::string failure() const override { return real_.failure(); }
    BufferSize buffer_size(std::uint32_t wanted) override { return real_.buffer_size(wanted); }
    [[nodiscard]] std::string info(unsigned flags) const override { return real_.info(flags); }
    [[nodiscard]] bool established() const override { return real_.established(); }
    Result<void> reset_established(std::uint8_t locality) override { return real_.reset_established(locality); }
    Result<void> hash_start() override { return real_.hash_start(); }
    Result<void> hash_data(ByteView data) override { return real_.hash_data(data); }
    Result<void> hash_end() override { return real_.hash_end(); }

  private:
    Engine& real_;
    Bytes salt_;
};

constexpr std::uint32_t authfail = 1;            // Main part 2 section 16
constexpr std::uint32_t invalid_authhandle = 34; // TPM_INVALID_AUTHHANDLE
constexpr std::uint16_t et_owner = 2;            // TPM_ET_OWNER, section 4.3
constexpr std::uint32_t kh_owner = 0x40000001;   // section 4.4.1
constexpr std::uint16_t et_srk = 4;
constexpr std::uint32_t kh_srk = 0x40000000;

Result<Bytes> ask(hwtpm::Tpm12Client& client, hwtpm::Session12 session, std::string_view what) {
    return client.run({.ordinal = tpm::ord::vendor_deep_quote, .parameters = as_bytes(what), .name = "asking"},
                      std::span(&session, 1));
}

} // namespace

TEST_SUITE("engine") {

    TEST_CASE(
        "a vendor command is the owner's: OIAP and OSAP are checked by libtpms, and answered under the same session") {
        OwnedVtpm vtpm;
        hwtpm::Tpm12Client client(vtpm);

        // No owner yet: there is no secret that fits.
        auto early = ask(client, client.oiap(SecretBytes(owner_secret())).value(), "early");
        REQUIRE(!early);
        CHECK(early.error().detail != 0);

        const Bytes pubkey = make_endorsement_key(client);
        take_ownership(client, pubkey);

        // One vTPM for all: it takes two RSA keys to make. What it counts as guesses comes last.
        {
            INFO("every length that is too short is refused, and nothing but AUTH1");
            WireWriter w;
            w.be16(tpm::tag_rqu_auth1).be32(0).be32(tpm::ord::vendor_deep_quote).zeros(44);
            for (std::size_t size = tpm::header_size; size <= w.size(); ++size) {
                auto answer = authorise_as_owner(*vtpm.engine, w.view().first(size), 0);
                REQUIRE(std::holds_alternative<Bytes>(answer));
                CHECK(code_of(std::get<Bytes>(answer)) == tpm::rc12::bad_param_size);
            }
            WireWriter plain;
            plain.be16(tpm::tag_rqu_command).be32(0).be32(tpm::ord::vendor_deep_quote).zeros(45);
            auto answer = authorise_as_owner(*vtpm.engine, plain.view(), 0);
            REQUIRE(std::holds_alternative<Bytes>(answer));
            CHECK(code_of(std::get<Bytes>(answer)) == tpm::rc12::bad_tag);
        }
        {
            INFO("OIAP");
            auto answer = ask(client, client.oiap(SecretBytes(owner_secret())).value(), "deep");
            REQUIRE(answer);
            CHECK(*answer == to_bytes(as_bytes("deep")));
            CHECK(vtpm.endorsement_key == pubkey);
        }
        {
            INFO("OSAP of the owner");
            auto answer = ask(client, client.osap(et_owner, kh_owner, SecretBytes(owner_secret())).value(), "deep");
            REQUIRE(answer);
            CHECK(*answer == to_bytes(as_bytes("deep")));
        }
        {
            INFO("a session that was used up, or never was, is refused");
            hwtpm::Session12 session = client.oiap(SecretBytes(owner_secret())).value();
            hwtpm::Session12 replay;
            replay.handle = session.handle;
            replay.nonce_even = session.nonce_even;
            replay.key = session.key.clone();
            REQUIRE(ask(client, std::move(session), "once"));
            auto again = ask(client, std::move(replay), "once");
            REQUIRE(!again);
            CHECK(again.error().detail == invalid_authhandle);
        }
        {
            INFO("OSAP of another entity does not do, though its holder's proof fits its session");
            auto answer = ask(client, client.osap(et_srk, kh_srk, SecretBytes(hwtpm::Digest12{})).value(), "deep");
            REQUIRE(!answer);
            CHECK(answer.error().detail == authfail);
        }
        {
            INFO("another secret is refused, and its session is ended");
            hwtpm::Session12 wrong = client.oiap(SecretBytes(hwtpm::Digest12{})).value();
            const std::uint32_t handle = wrong.handle;
            auto refused = ask(client, std::move(wrong), "deep");
            REQUIRE(!refused);
            CHECK(refused.error().detail == authfail);
            hwtpm::Session12 gone;
            gone.handle = handle;
            gone.key = SecretBytes(owner_secret());
            auto again = ask(client, std::move(gone), "deep");
            REQUIRE(!again);
            CHECK(again.error().detail == invalid_authhandle);
        }
        {
            INFO("bytes that look like an OSAP session with a secret that the guest knows do not make it the owner");
            hwtpm::Session12 forged = client.oiap(SecretBytes(hwtpm::Digest12{})).value();
            WireWriter session; // u32 handle, u16 TPM_PID_OSAP, u8, u8, nonceEven, sharedSecret
            session.be32(forged.handle).be16(2).zeros(2).bytes(forged.nonce_even).bytes(forged.key.view());
            Salted salted(*vtpm.engine, session.take());
            vtpm.asked = &salted;
            auto refused = ask(client, std::move(forged), "deep");
            vtpm.asked = nullptr;
            REQUIRE(!refused);
            CHECK(refused.error().detail == authfail);
            // In front of a true session the same bytes do no harm.
            hwtpm::Session12 owner = client.oiap(SecretBytes(owner_secret())).value();
            session.be32(owner.handle).be16(2).zeros(2).bytes(owner.nonce_even).zeros(tpm::sha1_size);
            Salted harmless(*vtpm.engine, session.take());
            vtpm.asked = &harmless;
            CHECK(ask(client, std::move(owner), "deep"));
            vtpm.asked = nullptr;
        }
    }
}

} // namespace vtpmd::test::owner_auth
