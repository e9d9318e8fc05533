// TPM_ORD_DeepQuote of a TPM 1.2 instance: libtpms, with an owner, on a fake disk and a fake manager.
#include "quote/deep_quote.hpp"

#include "fake_vtpm.hpp"
#include "hwtpm/device.hpp"
#include "hwtpm/tpm12.hpp"
#include "instance/deep_quote.hpp"
#include "instance/instance.hpp"
#include "loop.hpp"
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
    Guest() {
        instance::InstanceConfig config;
        config.uuid = parse_uuid("76000000-0000-4000-8000-000000000001").value();
        uuid = config.uuid;
        instance::InstanceParts parts{loop.io.get_executor(), *engine, image, manager, loop.clock, loop.log, [] {}};
        vtpm = std::make_unique<Instance>(std::move(config), std::move(parts));
        REQUIRE(loop.run(vtpm->start(EngineState{})));
    }
    ~Guest() override { (void)loop.run(vtpm->close()); }
    [[nodiscard]] std::string description() const override { return "a vTPM"; }
    [[nodiscard]] bool exclusive() const override { return true; }
    Result<Bytes> transmit(ByteView command, std::chrono::milliseconds /*limit*/) override {
        return loop.run(vtpm->execute(to_bytes(command), 0));
    }

    Loop loop;
    Points points{loop.io.get_executor()};
    std::unique_ptr<Engine> engine = Engine::create(TpmVersion::tpm12).value();
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

} // namespace

TEST_SUITE("deep quote") {
    TEST_CASE("TPM_DeepQuote: what it asks for; cut at every length, a trailing byte, PCRs that there are not, flags") {
        const Bytes whole = parameters();
        const auto parsed = instance::parse_deep_quote(whole).value();
        CHECK(parsed.nonce == Bytes(20, std::byte{0x4e}));
        CHECK(parsed.pcrs == 1U << 10U);
        CHECK(parsed.host_pcrs == 0x11);
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
        CHECK(instance::parse_deep_quote(wide.view()).value().pcrs == 0);
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

        proto::QuoteReply reply;
        reply.hardware = TpmVersion::tpm20;
        reply.group.bytes.fill(std::byte{2});
        reply.attested = Bytes(100, std::byte{0xa7});
        reply.signature = Bytes(262, std::byte{0x51});
        reply.values.push_back({.bank = 0x0b, .index = 4, .digest = Bytes(32, std::byte{4})});
        guest.manager.quote_reply = reply;
        CHECK(ask(guest, owner(), parameters(0)).error().detail == tpm::rc12::bad_parameter); // Xen's form
        CHECK(guest.manager.quotes_asked.size() == 2);

        auto shown = ask(guest, owner(), parameters()); // whose answer's authorisation the client checks
        REQUIRE(shown);
        WireReader r(*shown);
        CHECK(r.array<16>() == guest.uuid.bytes);
        CHECK(r.u8() == 1);
        CHECK(r.be16() == tpm::alg::sha1);
        CHECK(r.u8() == 10);
        CHECK(to_bytes(r.bytes(r.u8())) == to_bytes(*value));
        CHECK(proto::parse_quote_reply(proto::encode_success(r.rest())).value() == reply);
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
    }
}

} // namespace deep_quote_test
