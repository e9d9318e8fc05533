// TPM_ORD_DeepQuote of a TPM 1.2 instance: libtpms, with an owner, on a fake disk and a fake manager.
#include "quote/deep_quote.hpp"

#include "fake_vtpm.hpp"
#include "hwtpm/device.hpp"
#include "hwtpm/tpm12/tpm12.hpp"
#include "instance/instance.hpp"
#include "instance/quotes/deep_quote.hpp"
#include "instance/quotes/old_quote.hpp"
#include "loop.hpp"
#include "quote/old_quote.hpp"
#include "tpm/commands.hpp"
#include "tpm12_owner.hpp"

namespace deep_quote_test {

using namespace vtpmd;
using namespace vtpmd::fakes;
using instance::Instance;

namespace {

constexpr std::uint32_t authfail = 1; // Main part 2 section 16
constexpr std::uint32_t invalid_authhandle = 34;

/// A guest's end of the instance.
struct Guest final : hwtpm::TpmDevice {
    explicit Guest(TpmVersion version = TpmVersion::tpm12, EngineState state = {})
        : engine(Engine::create(version).value()) {
        instance::InstanceConfig config;
        config.uuid = parse_uuid("76000000-0000-4000-8000-000000000001").value();
        uuid = config.uuid;
        instance::InstanceParts parts{loop.io.get_executor(), *engine, image, manager, loop.clock, loop.log, [] {}};
        vtpm = std::make_unique<Instance>(std::move(config), std::move(parts));
        REQUIRE(loop.run(vtpm->start(std::move(state))));
    }
    ~Guest() override { (void)loop.run(vtpm->close()); }
    [[nodiscard]] std::string description() const override { return "a vTPM"; }
    [[nodiscard]] bool exclusive() const override { return true; }
    Result<Bytes> transmit(ByteView command, std::chrono::milliseconds /*limit*/) override {
        return loop.run(vtpm->execute(to_bytes(command), 0));
    }

    Result<Bytes> operator_quote(std::uint16_t bank, unsigned pcr) {
        proto::AskQuote question;
        question.nonce = Bytes(20, std::byte{0x6f});
        question.pcrs.push_back({.bank = bank, .pcrs = 1U << pcr});
        question.host_pcrs.push_back({.bank = 0, .pcrs = 0x11});
        return loop.run(vtpm->quote_for_operator(std::move(question)));
    }

    Loop loop;
    Points points{loop.io.get_executor()};
    std::unique_ptr<Engine> engine;
    FakeImage image{points};
    FakeManager manager{points};
    Uuid uuid;
    std::unique_ptr<Instance> vtpm;
    hwtpm::Tpm12Client client{*this};
};

Bytes parameters(std::uint32_t flags = instance::deep_quote_form) {
    WireWriter w;
    w.bytes(Bytes(20, std::byte{0x4e}));
    w.be16(3).u8(0).u8(0x04).u8(0); // the vTPM's PCR 10
    w.be16(2).u8(0x11).u8(0);       // the hardware's 0 and 4
    w.be32(flags);
    return w.take();
}

Result<Bytes> ask(Guest& guest, hwtpm::Session12 session, ByteView parameters) {
    return guest.client.run({.ordinal = tpm::ord::vendor_deep_quote, .parameters = parameters, .name = "a deep quote"},
                            std::span(&session, 1));
}

Bytes command_20(ByteView body, std::uint16_t tag = tpm::st_no_sessions) {
    WireWriter w;
    w.be16(tag).be32(static_cast<std::uint32_t>(tpm::header_size + body.size())).be32(tpm::cc::vendor_deep_quote);
    return w.bytes(body).take();
}

Bytes parameters_20(std::size_t nonce = 24, std::uint32_t flags = instance::deep_quote_form) {
    WireWriter w;
    w.be16(static_cast<std::uint16_t>(nonce)).bytes(Bytes(nonce, std::byte{0x4e}));
    w.be32(2).be16(tpm::alg::sha1).u8(3).zeros(3);            // none
    w.be16(tpm::alg::sha256).u8(3).u8(0x01).u8(0x04).u8(0);   // the vTPM's 0 and 10
    w.be32(1).be16(tpm::alg::sha256).u8(3).u8(0x11).zeros(2); // the hardware's 0 and 4
    return w.be32(flags).take();
}

proto::QuoteReply some_reply() {
    proto::QuoteReply reply;
    reply.hardware = TpmVersion::tpm20;
    reply.group.bytes.fill(std::byte{2});
    reply.attested = Bytes(100, std::byte{0xa7});
    reply.signature = Bytes(262, std::byte{0x51});
    reply.values.push_back({.bank = 0x0b, .index = 4, .digest = Bytes(32, std::byte{4})});
    return reply;
}

} // namespace

TEST_SUITE("deep quote") {
    TEST_CASE("TPM_DeepQuote: what it asks for; cut at every length, a trailing byte, PCRs that there are not, flags") {
        const Bytes whole = parameters();
        const auto parsed = instance::parse_deep_quote(whole).value();
        CHECK(parsed.nonce == Bytes(20, std::byte{0x4e}));
        CHECK(parsed.pcrs == std::vector<proto::QuoteSelection>{{.bank = tpm::alg::sha1, .pcrs = 1U << 10U}});
        CHECK(parsed.host_pcrs == std::vector<proto::QuoteSelection>{{.bank = 0, .pcrs = 0x11}});
        for (std::size_t n = 0; n < whole.size(); ++n) {
            CHECK(instance::parse_deep_quote(ByteView(whole).first(n)).has_error());
        }
        Bytes longer = whole;
        longer.push_back(std::byte{0});
        CHECK(instance::parse_deep_quote(longer).error().code == Errc::protocol);
        for (std::uint32_t flags : {0U, 1U, 0x80000001U, 0x40000000U}) {
            CHECK(instance::parse_deep_quote(parameters(flags)).error().code == Errc::usage);
        }
        WireWriter far;
        far.zeros(20).be16(4).zeros(3).u8(1).be16(1).u8(1).be32(instance::deep_quote_form); // PCR 24
        CHECK(instance::parse_deep_quote(far.view()).error().code == Errc::usage);
        WireWriter wide;
        wide.zeros(20).be16(9).zeros(9).be16(1).u8(1).be32(instance::deep_quote_form); // more bytes, but no PCR
        CHECK(instance::parse_deep_quote(wide.view()).value().pcrs.empty());
        WireWriter none;
        none.zeros(20).be16(1).u8(1).be16(1).u8(0).be32(instance::deep_quote_form); // of the hardware's
        CHECK(instance::parse_deep_quote(none.view()).error().code == Errc::usage);
    }

    TEST_CASE(
        "TPM_DeepQuote: the owner's vTPM asks its manager over its own PCRs and endorsement key, nobody else does") {
        Guest guest;
        const Bytes pubkey = test::read_endorsement_key(guest.client);
        test::take_ownership(guest.client, pubkey);
        const tpm::Sha1Digest event{std::byte{7}};
        const auto value = tpm::parse_pcr_value(guest.loop.run(guest.vtpm->execute(tpm::extend_command(10, event), 0)));
        const auto owner = [&] { return guest.client.oiap(SecretBytes(test::owner_secret())).value(); };

        // Refused by the manager: the guest gets a TPM error, the session ends, and the TPM serves on.
        {
            hwtpm::Session12 session = owner();
            hwtpm::Session12 again;
            again.handle = session.handle;
            again.key = session.key.clone();
            auto refused = ask(guest, std::move(session), parameters());
            REQUIRE(!refused);
            CHECK(refused.error().detail == tpm::rc12::disabled_cmd);
            auto ended = ask(guest, std::move(again), parameters());
            REQUIRE(!ended);
            CHECK(ended.error().detail == invalid_authhandle);
            CHECK(guest.manager.quotes_asked.size() == 1);
        }
        guest.manager.quote_reply = make_error(Errc::pcr_mismatch, "closed");
        CHECK(ask(guest, owner(), parameters()).error().detail == tpm::rc12::fail);

        const proto::QuoteReply reply = some_reply();
        guest.manager.quote_reply = reply;
        CHECK(ask(guest, owner(), parameters(0x40000000)).error().detail == tpm::rc12::bad_parameter);
        CHECK(ask(guest, owner(), parameters(0x80000001)).error().detail == tpm::rc12::bad_parameter);
        CHECK(guest.manager.quotes_asked.size() == 2);
        CHECK(guest.manager.old_quotes_asked.empty());

        auto shown = ask(guest, owner(), parameters()); // whose answer's authorisation the client checks
        REQUIRE(shown);
        const auto deep = quote::decode_deep_quote(*shown).value();
        CHECK(deep.hardware == TpmVersion::tpm20);
        CHECK(deep.claims.vtpm == guest.uuid);
        CHECK(deep.claims.group == reply.group);
        CHECK(deep.claims.endorsement == guest.manager.quotes_asked.back().endorsement);
        CHECK(deep.claims.nonce == Bytes(20, std::byte{0x4e}));
        CHECK(deep.pcrs == std::vector<hwtpm::PcrValue>{{hwtpm::HashAlg::sha1, 10, to_bytes(*value)}});
        CHECK(deep.quote.attested == reply.attested);
        CHECK(deep.quote.signature == reply.signature);
        CHECK(deep.quote.values == std::vector<hwtpm::PcrValue>{{hwtpm::HashAlg::sha256, 4, Bytes(32, std::byte{4})}});
        const proto::QuoteRequest& asked = guest.manager.quotes_asked.back();
        CHECK(asked.nonce == Bytes(20, std::byte{0x4e}));
        CHECK(asked.endorsement == quote::endorsement_digest(hwtpm::spki_of_pubkey(pubkey).value()).value());
        CHECK(asked.pcrs == quote::pcrs_digest({{hwtpm::HashAlg::sha1, 10, to_bytes(*value)}}).value());
        CHECK(asked.selections == std::vector<proto::QuoteSelection>{{.bank = 0, .pcrs = 0x11}});

        const std::size_t before = guest.manager.quotes_asked.size();
        auto stranger = ask(guest, guest.client.oiap(SecretBytes(hwtpm::Digest12{})).value(), parameters());
        REQUIRE(!stranger);
        CHECK(stranger.error().detail == authfail);
        CHECK(guest.manager.quotes_asked.size() == before);
        // What libtpms counted of that is on the disk.
        CHECK_FALSE(guest.vtpm->dirty());
        CHECK(ask(guest, owner(), parameters()));

        // The host's operator needs no owner, and gets the same key and PCRs.
        const auto shown_to_operator =
            quote::decode_deep_quote(guest.operator_quote(tpm::alg::sha1, 10).value()).value();
        CHECK(shown_to_operator.claims.endorsement == deep.claims.endorsement);
        CHECK(shown_to_operator.pcrs == deep.pcrs);
        CHECK_FALSE(guest.vtpm->dirty());
        CHECK(guest.operator_quote(tpm::alg::sha256, 10).error().code == Errc::usage);
        CHECK(ask(guest, owner(), parameters())); // no session of its own is left
    }

    TEST_CASE("the operator's quote of a TPM 1.2 without an owner: the same endorsement key as with one") {
        Guest guest;
        guest.manager.quote_reply = some_reply();
        const auto before = quote::decode_deep_quote(guest.operator_quote(tpm::alg::sha1, 0).value()).value();
        const Bytes pubkey = test::read_endorsement_key(guest.client);
        CHECK(before.claims.endorsement == quote::endorsement_digest_12(pubkey).value());
        test::take_ownership(guest.client, pubkey);
        for (int i = 0; i < 20; ++i) { // more than the TPM has sessions
            const auto after = quote::decode_deep_quote(guest.operator_quote(tpm::alg::sha1, 0).value()).value();
            CHECK(after.claims.endorsement == before.claims.endorsement);
        }
        guest.manager.quote_reply = make_error(Errc::pcr_mismatch, "closed");
        CHECK(guest.operator_quote(tpm::alg::sha1, 0).error().code == Errc::pcr_mismatch);
    }

    TEST_CASE("the operator's quote: not of a TPM that is off, or that its guest has shut down or stored") {
        Guest guest(TpmVersion::tpm20);
        guest.manager.quote_reply = some_reply();
        const Bytes asked = guest.transmit(command_20(parameters_20()), {}).value();
        WireReader r(ByteView(asked).subspan(tpm::header_size + 2));
        const auto by_guest = quote::decode_deep_quote(r.rest()).value();
        const auto deep = quote::decode_deep_quote(guest.operator_quote(tpm::alg::sha256, 10).value()).value();
        CHECK(deep.claims.endorsement == by_guest.claims.endorsement);
        CHECK(deep.claims.vtpm == guest.uuid);
        CHECK(deep.claims.nonce == Bytes(20, std::byte{0x6f}));
        CHECK(guest.operator_quote(0x27, 1).has_error()); // no such bank
        const std::size_t quotes = guest.manager.quotes_asked.size();
        const auto refused = [&] {
            return guest.operator_quote(tpm::alg::sha256, 10).error().code == Errc::unavailable;
        };
        REQUIRE(guest.loop.run(guest.vtpm->store_volatile()));
        CHECK(refused());
        (void)guest.transmit(tpm::get_random_command(TpmVersion::tpm20, 8), {}); // it goes on
        CHECK(guest.operator_quote(tpm::alg::sha256, 10));
        REQUIRE(guest.loop.run(guest.vtpm->get_blob(2)));
        CHECK(refused());
        (void)guest.transmit(tpm::get_random_command(TpmVersion::tpm20, 8), {});
        (void)guest.transmit(tpm::shutdown_command(tpm::StartupMode::state), {});
        CHECK(refused());
        REQUIRE(guest.loop.run(guest.vtpm->stop()));
        CHECK(refused());
        CHECK(guest.manager.quotes_asked.size() == quotes + 1);
    }

    TEST_CASE("in Xen's form: what the two commands ask for; cut at every length, a trailing byte, selections, flags") {
        const Bytes deep = parameters(9);
        const auto parsed = instance::parse_old_deep_quote(deep).value();
        CHECK(parsed.nonce == Bytes(20, std::byte{0x4e}));
        CHECK(parsed.pcrs == Bytes{std::byte{0}, std::byte{4}, std::byte{0}});
        CHECK(parsed.host_pcrs == Bytes{std::byte{0x11}, std::byte{0}});
        CHECK(parsed.flags == 9);
        WireWriter ek;
        ek.zeros(20).be16(3).zeros(3);
        CHECK(instance::parse_parent_sign_ek(ek.view())->host_pcrs == Bytes(3));
        for (std::size_t n = 0; n < deep.size(); ++n) {
            CHECK(instance::parse_old_deep_quote(ByteView(deep).first(n)).has_error());
            CHECK((n >= ek.size() || instance::parse_parent_sign_ek(ek.view().first(n)).has_error()));
        }
        Bytes longer = deep;
        longer.push_back({});
        CHECK(instance::parse_old_deep_quote(longer).error().code == Errc::protocol);
        longer = to_bytes(ek.view());
        longer.push_back({});
        CHECK(instance::parse_parent_sign_ek(longer).error().code == Errc::protocol);
        CHECK(instance::parse_old_deep_quote(parameters(16)).error().code == Errc::usage);
        for (std::uint16_t size : {std::uint16_t{0}, std::uint16_t{4}}) {
            WireWriter w;
            w.zeros(20).be16(size).zeros(size);
            CHECK(instance::parse_parent_sign_ek(w.view()).error().code == Errc::usage);
            w.be16(1).u8(1).be32(0);
            CHECK(instance::parse_old_deep_quote(w.view()).error().code == Errc::usage);
        }
        CHECK(instance::asks_old_quote(deep));
        CHECK(instance::asks_old_quote({}));
        CHECK_FALSE(instance::asks_old_quote(parameters()));
    }

    TEST_CASE(
        "in Xen's form: the owner's vTPM asks over its own PCRs, and over its endorsement key in its first run only") {
        Guest guest;
        const Bytes pubkey = test::read_endorsement_key(guest.client);
        test::take_ownership(guest.client, pubkey);
        const auto owner = [&] { return guest.client.oiap(SecretBytes(test::owner_secret())).value(); };
        const Bytes nonce(20, std::byte{0x4e});
        WireWriter ek;
        ek.bytes(nonce).be16(2).u8(0x11).u8(0);
        const auto ask_ek = [&](hwtpm::Session12 session) {
            return guest.client.run(
                {.ordinal = tpm::ord::vendor_parent_sign_ek, .parameters = ek.view(), .name = "ParentSignEK"},
                std::span(&session, 1));
        };
        // What the manager refuses (hardware that is no TPM 1.2, group 0), a guest is refused by TPM_DISABLED_CMD.
        CHECK(ask(guest, owner(), parameters(1)).error().detail == tpm::rc12::disabled_cmd);
        CHECK(ask_ek(owner()).error().detail == tpm::rc12::disabled_cmd);
        CHECK(guest.manager.old_quotes_asked.size() == 2);

        guest.manager.old_quote_reply = Bytes(256 + 20 + 40, std::byte{0x51});
        CHECK(ask(guest, owner(), parameters(1)).value() == *guest.manager.old_quote_reply); // not changed
        const quote::OldPcrs pcr_10{.selection = {std::byte{0}, std::byte{4}, std::byte{0}}, .values = Bytes(20)};
        proto::OldQuoteRequest asked = guest.manager.old_quotes_asked.back();
        CHECK(asked.data == quote::old_vtpm_digest(nonce, pcr_10, 0).value());
        CHECK(asked.selection == Bytes{std::byte{0x11}, std::byte{0}});
        CHECK(asked.flags == 1);

        CHECK(ask_ek(owner()).value() == *guest.manager.old_quote_reply);
        asked = guest.manager.old_quotes_asked.back();
        CHECK(asked.data == quote::old_endorsement_digest(pubkey, nonce).value());
        CHECK(asked.flags == 0);

        const std::size_t before = guest.manager.old_quotes_asked.size();
        CHECK(ask_ek(guest.client.oiap(SecretBytes(hwtpm::Digest12{})).value()).error().detail == authfail);
        // The machine is reset: its next run.
        REQUIRE(guest.loop.run(guest.vtpm->init(false, {})));
        REQUIRE(tpm::check_response(
                    guest.transmit(tpm::startup_command(TpmVersion::tpm12, tpm::StartupMode::clear), {}).value(),
                    "starting")
                    .error()
                    .detail == 0x26); // TPM_INVALID_POSTINIT: the instance has started it
        CHECK(ask_ek(owner()).error().detail == tpm::rc12::disabled_cmd);
        CHECK(guest.manager.old_quotes_asked.size() == before);
        CHECK(ask(guest, owner(), parameters(1)));
    }

    TEST_CASE("in Xen's form: no proof of a new endorsement key once the vTPM was loaded, as after a crash") {
        EngineState kept;
        {
            Guest first;
            test::take_ownership(first.client, test::read_endorsement_key(first.client));
            auto now = first.engine->snapshot();
            kept.permanent = std::move(now->permanent);
        }
        Guest again(TpmVersion::tpm12, std::move(kept));
        again.manager.old_quote_reply = Bytes(256 + 20);
        WireWriter ek;
        ek.zeros(20).be16(2).u8(0x11).u8(0);
        auto session = again.client.oiap(SecretBytes(test::owner_secret())).value();
        auto refused = again.client.run(
            {.ordinal = tpm::ord::vendor_parent_sign_ek, .parameters = ek.view(), .name = "ParentSignEK"},
            std::span(&session, 1));
        CHECK(refused.error().detail == tpm::rc12::disabled_cmd);
        CHECK(again.manager.old_quotes_asked.empty());
    }

    TEST_CASE("a TPM 2.0's deep quote: what it asks for; cut at every length, a trailing byte, nonces, banks, flags") {
        const Bytes whole = parameters_20();
        const auto parsed = instance::parse_deep_quote_20(whole).value();
        CHECK(parsed.nonce == Bytes(24, std::byte{0x4e}));
        CHECK(parsed.pcrs == std::vector<proto::QuoteSelection>{{.bank = tpm::alg::sha256, .pcrs = 0x401}});
        CHECK(parsed.host_pcrs == std::vector<proto::QuoteSelection>{{.bank = tpm::alg::sha256, .pcrs = 0x11}});
        for (std::size_t n = 0; n < whole.size(); ++n) {
            CHECK(instance::parse_deep_quote_20(ByteView(whole).first(n)).has_error());
        }
        Bytes longer = whole;
        longer.push_back(std::byte{0});
        CHECK(instance::parse_deep_quote_20(longer).error().code == Errc::protocol);
        CHECK(instance::parse_deep_quote_20(parameters_20(64)));
        for (std::size_t nonce : {std::size_t{0}, std::size_t{65}}) {
            CHECK(instance::parse_deep_quote_20(parameters_20(nonce)).error().code == Errc::usage);
        }
        CHECK(instance::parse_deep_quote_20(parameters_20(20, 1)).error().code == Errc::usage);
        WireWriter none;
        none.be16(1).u8(1).be32(0).be32(0).be32(instance::deep_quote_form);
        CHECK(instance::parse_deep_quote_20(none.view()).error().code == Errc::usage);
        WireWriter many;
        many.be16(1).u8(1).be32(0xFFFFFFFF);
        CHECK(instance::parse_deep_quote_20(many.view()).error().code == Errc::protocol);
    }

    TEST_CASE("a TPM 2.0 asks its manager over its own PCRs and endorsement key, always the same one, and serves on") {
        Guest guest(TpmVersion::tpm20);
        const auto send = [&](ByteView command) { return guest.transmit(command, {}).value(); };
        const auto code_of = [](const Bytes& answer) { return tpm::peek_header(answer).code; };
        CHECK(code_of(send(command_20(parameters_20()))) == tpm::rc20::disabled); // group 0 has no key
        guest.manager.quote_reply = some_reply();
        Bytes last;
        for (int i = 0; i < 2; ++i) {
            const Bytes answer = send(command_20(parameters_20()));
            REQUIRE(tpm::is_well_formed_response(TpmVersion::tpm20, answer));
            REQUIRE(code_of(answer) == 0);
            WireReader r(ByteView(answer).subspan(tpm::header_size));
            const auto deep = quote::decode_deep_quote(r.bytes(r.be16())).value();
            CHECK(r.expect_end());
            CHECK(deep.claims.vtpm == guest.uuid);
            CHECK(deep.claims.nonce == Bytes(24, std::byte{0x4e}));
            REQUIRE(deep.pcrs.size() == 2);
            CHECK(deep.pcrs.back() == hwtpm::PcrValue{hwtpm::HashAlg::sha256, 10, Bytes(32)});
            CHECK(guest.manager.quotes_asked.back().pcrs == deep.claims.pcrs);
            CHECK((i == 0 || deep.claims.endorsement == last));
            last = deep.claims.endorsement;
        }
        CHECK(code_of(send(command_20(parameters_20(), 0x8002))) == tpm::rc20::auth_context);
        CHECK(code_of(send(command_20(parameters_20(0)))) == tpm::rc20::value);
        CHECK(code_of(send(command_20({}))) == tpm::rc20::size);
        WireWriter no_bank; // of the vTPM
        no_bank.be16(1).u8(1).be32(1).be16(0x27).u8(3).u8(1).zeros(2);
        no_bank.be32(1).be16(tpm::alg::sha256).u8(1).u8(1).be32(instance::deep_quote_form);
        CHECK(code_of(send(command_20(no_bank.view()))) != 0);
        guest.manager.quote_reply = make_error(Errc::unavailable, "away");
        CHECK(code_of(send(command_20(parameters_20()))) == tpm::rc20::retry);

        // TPM2_HierarchyChangeAuth of the endorsement hierarchy: its key can no longer be made by others.
        WireWriter change;
        change.be16(0x8002).be32(0).be32(0x129).be32(0x4000000B).be32(9).be32(tpm::rh::pw).be16(0).u8(0).be16(0);
        change.be16(1).u8(7).patch_be32(2, static_cast<std::uint32_t>(change.size()));
        REQUIRE(code_of(send(change.view())) == 0);
        guest.manager.quote_reply = some_reply();
        CHECK(code_of(send(command_20(parameters_20()))) == tpm::rc20::auth_unavailable);
        CHECK(code_of(send(tpm::get_random_command(TpmVersion::tpm20, 8))) == 0);
    }
}

} // namespace deep_quote_test
