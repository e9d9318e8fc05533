// A deep quote from end to end: the owner of a TPM 1.2 guest asks its instance (libtpms), which asks the manager over its protocol,
// which asks a real TPM (swtpm) of either family; the verifier takes what comes back.
#include "approver.hpp"
#include "fake_vtpm.hpp"
#include "host.hpp"
#include "memory_channel.hpp"
#include "tpm12_owner.hpp"

#include "hwtpm/tpm12/tpm12.hpp"
#include "instance/instance.hpp"
#include "instance/quotes/deep_quote.hpp"
#include "manager/groups/deep_quotes.hpp"
#include "manager/links/key_service.hpp"
#include "openssl_key.hpp"
#include "quote/deep_quote.hpp"
#include "quote/old_quote.hpp"
#include "tpm/commands.hpp"

namespace deep_quote_on_swtpm_test {

using namespace vtpmd;
using namespace vtpmd::manager;

namespace {

const Uuid group_uuid = parse_uuid("67000000-0000-4000-8000-000000000001").value();
const Uuid guest_uuid = parse_uuid("76000000-0000-4000-8000-000000000001").value();
const Bytes nonce(20, std::byte{0x4e});

/// The manager's half.
struct Managed {
    explicit Managed(TpmVersion version)
        : host(version)
        , approver{.key = test::OpensslKey(version == TpmVersion::tpm12 ? "RSA" : "EC")} {
        REQUIRE(host.start(true));
        groups.emplace(Groups::Parts{
            .executor = host.loop.io.get_executor(), .vault = *host.vault, .root = *host.root, .log = host.loop.log});
        quotes.emplace(DeepQuotes::Parts{.vault = *host.vault, .root = *host.root, .groups = *groups});
        KeyService::Parts parts{
            .executor = host.loop.io.get_executor(),
            .vault = *host.vault,
            .root = *host.root,
            .clock = host.loop.clock,
            .log = host.loop.log,
            .admit = [this](const Uuid& u, const proto::BootHash& l) { return groups->admit(u, l); },
            .quote = [this](const Uuid& u, proto::QuoteRequest r) { return quotes->make(u, std::move(r)); },
            .old_quote = [this](const Uuid& u, const proto::BootHash& l,
                                proto::OldQuoteRequest r) { return quotes->make_old(u, l, std::move(r)); }};
        service = std::make_unique<KeyService>(KeyService::Options{}, std::move(parts));
        hwtpm::Approval present{.selection = host.pcrs("4"), .values = {}, .signature = {}};
        present.values = host.loop.run(host.root->pcr_read({present.selection})).value();
        Groups::Create request{.approver = approver.key.spki(),
                               .approved = approver.sign({.group = group_uuid,
                                                          .epoch = 1,
                                                          .sequence = 1,
                                                          .platforms = {present},
                                                          .labels = {},
                                                          .signature = {}}),
                               .recovery_key = {},
                               .recovery_signature = {}};
        group = host.loop.run(groups->create(std::move(request))).value();
        REQUIRE(host.loop.run(host.vault->register_vtpm(guest_uuid, TpmVersion::tpm12, group)));
    }
    ~Managed() {
        service->stop();
        host.loop.settle();
    }
    Task<Result<std::unique_ptr<proto::Channel>>> connect() {
        auto pair = fakes::MemoryChannel::make(host.loop.io.get_executor());
        LinkInfo link; // any local process: the hello says which vTPM
        (void)host.loop.start(service->serve(std::move(pair.b), std::move(link)));
        co_return std::unique_ptr<proto::Channel>(std::move(pair.a));
    }

    test::Host host;
    const test::ApproverAgent approver;
    std::optional<Groups> groups;
    std::optional<DeepQuotes> quotes;
    std::unique_ptr<KeyService> service;
    GroupId group = 0;
};

/// The instance's half, and the guest.
struct Guest final : hwtpm::TpmDevice {
    explicit Guest(Managed& m)
        : loop(m.host.loop) {
        proto::ClientOptions options;
        options.greeting = {.uuid = guest_uuid, .version = TpmVersion::tpm12};
        manager = proto::make_manager_client(
            loop.io.get_executor(), options, [&m] { return m.connect(); }, loop.clock, loop.log);
        REQUIRE(loop.run(manager->hello(), false));
        instance::InstanceConfig config;
        config.uuid = guest_uuid;
        instance::InstanceParts parts{loop.io.get_executor(), *engine, image, *manager, loop.clock, loop.log, [] {}};
        vtpm = std::make_unique<instance::Instance>(std::move(config), std::move(parts));
        REQUIRE(loop.run(vtpm->start(EngineState{}), false));
    }
    ~Guest() override {
        (void)loop.run(vtpm->close(), false);
        manager->close();
        loop.settle();
    }
    [[nodiscard]] std::string description() const override { return "a vTPM"; }
    [[nodiscard]] bool exclusive() const override { return true; }
    /// Time does not pass meanwhile: a TPM's real time is not the clock's.
    Result<Bytes> transmit(ByteView command, std::chrono::milliseconds /*limit*/) override {
        return loop.run(vtpm->execute(to_bytes(command), 0), false);
    }

    fakes::Loop& loop;
    fakes::Points points{loop.io.get_executor()};
    std::unique_ptr<Engine> engine = Engine::create(TpmVersion::tpm12).value();
    fakes::FakeImage image{points};
    std::unique_ptr<proto::ManagerClient> manager;
    std::unique_ptr<instance::Instance> vtpm;
    hwtpm::Tpm12Client client{*this};
};

void from_end_to_end(TpmVersion version) {
    Managed m(version);
    Guest guest(m);
    const Bytes pubkey = test::read_endorsement_key(guest.client);
    test::take_ownership(guest.client, pubkey);
    REQUIRE(guest.transmit(tpm::extend_command(10, tpm::Sha1Digest{std::byte{7}}), {}));
    const auto value = tpm::parse_pcr_value(*guest.transmit(tpm::pcr_read_command(10), {}));
    REQUIRE(value);

    WireWriter w;
    w.bytes(nonce).be16(3).u8(0).u8(0x04).u8(0).be16(3).u8(0x11).zeros(2).be32(instance::deep_quote_form);
    auto session = guest.client.oiap(SecretBytes(test::owner_secret()));
    REQUIRE(session);
    auto answer =
        guest.client.run({.ordinal = tpm::ord::vendor_deep_quote, .parameters = w.view(), .name = "a deep quote"},
                         std::span(&*session, 1));
    REQUIRE(answer);

    auto decoded = quote::decode_deep_quote(*answer);
    REQUIRE(decoded);
    quote::DeepQuote deep = std::move(*decoded);
    quote::DeepQuoteCheck check{.key = m.groups->show(m.group)->attestation_key,
                                .vtpm = guest_uuid,
                                .group = group_uuid,
                                .endorsement_key = hwtpm::spki_of_pubkey(pubkey).value(),
                                .nonce = nonce,
                                .pcrs = {{hwtpm::HashAlg::sha1, 10, to_bytes(*value)}},
                                .host_pcrs = m.host.loop.run(m.host.root->pcr_read({m.host.pcrs("0,4")})).value()};
    CHECK(deep.hardware == version);
    CHECK(quote::verify_deep_quote(deep, check));
    check.pcrs.front().digest.front() ^= std::byte{1};
    CHECK(quote::verify_deep_quote(deep, check).error().code == Errc::pcr_mismatch);
    deep.pcrs = check.pcrs;
    deep.claims.pcrs = quote::pcrs_digest(deep.pcrs).value();
    CHECK(quote::verify_deep_quote(deep, check).error().code == Errc::mismatch);

    // The platform is not approved any more: the same owner gets none.
    m.host.vault->close_group(m.group, "closed");
    auto next = guest.client.oiap(SecretBytes(test::owner_secret()));
    REQUIRE(next);
    auto refused = guest.client.run(
        {.ordinal = tpm::ord::vendor_deep_quote, .parameters = w.view(), .name = "a deep quote"}, std::span(&*next, 1));
    REQUIRE(!refused);
    CHECK(refused.error().detail == tpm::rc12::fail);
    REQUIRE(m.host.loop.run(m.groups->open(m.group)));
}

Result<Bytes> ask_as_owner(Guest& guest, std::uint32_t ordinal, ByteView parameters) {
    auto session = guest.client.oiap(SecretBytes(test::owner_secret()));
    REQUIRE(session);
    return guest.client.run({.ordinal = ordinal, .parameters = parameters, .name = "a deep quote in Xen's form"},
                            std::span(&*session, 1));
}

/// The hardware's PCRs that `selection` names, and what the verifier knows.
quote::OldQuoteCheck known(Managed& m, Bytes parameters) {
    quote::OldQuoteCheck check;
    check.parameters = std::move(parameters);
    check.key = m.groups->show(m.group)->attestation_key;
    check.nonce = nonce;
    return check;
}

/// Independent of what the verifier made: the key signed exactly this structure.
void check_raw(const hwtpm::Quote& q, const Bytes& key) {
    CHECK(q.attested.size() == 48);
    CHECK(test::verify_sha1(key, q.attested, q.signature));
}

} // namespace

TEST_SUITE("hwtpm-1.2") {
    TEST_CASE("1.2: deep quotes in Xen's form, from a guest's owner to the verifier") {
        Managed m(TpmVersion::tpm12);
        Guest guest(m);
        const Bytes pubkey = test::read_endorsement_key(guest.client);
        test::take_ownership(guest.client, pubkey);
        REQUIRE(guest.transmit(tpm::extend_command(10, tpm::Sha1Digest{std::byte{7}}), {}));
        const Bytes value = to_bytes(*tpm::parse_pcr_value(*guest.transmit(tpm::pcr_read_command(10), {})));
        for (std::uint32_t flags = 0; flags <= tpm::old_quote::all_flags; ++flags) {
            CAPTURE(flags);
            WireWriter w; // the hardware's selection in two bytes, or in three
            w.bytes(nonce).be16(3).u8(0).u8(4).u8(0).be16(flags % 2 == 0 ? 3 : 2).u8(0x11).u8(0);
            w.zeros(flags % 2 == 0 ? 1 : 0).be32(flags);
            auto check = known(m, to_bytes(w.view()));
            check.pcrs = {{hwtpm::HashAlg::sha1, 10, value}};
            check.host_pcrs = m.host.loop.run(m.host.root->pcr_read({m.host.pcrs("0,4")})).value();
            check.vtpm = (flags & tpm::old_quote::vtpm_uuid) != 0 ? std::optional(guest_uuid) : std::nullopt;
            check.approver = (flags & tpm::old_quote::group_key) != 0 ? m.approver.key.spki() : Bytes{};
            auto answer = ask_as_owner(guest, tpm::ord::vendor_deep_quote, w.view());
            REQUIRE(answer);
            auto verified = quote::verify_old_quote(*answer, check);
            REQUIRE(verified);
            check_raw(*verified, check.key);
            check.pcrs.front().digest.front() ^= std::byte{1};
            CHECK(quote::verify_old_quote(*answer, check).error().code == Errc::mismatch);
        }
        // Neither of the vTPM nor of the hardware is a PCR asked for.
        WireWriter none;
        none.bytes(nonce).be16(3).zeros(3).be16(3).zeros(3).be32(1);
        auto check = known(m, to_bytes(none.view()));
        check.vtpm = guest_uuid;
        auto answer = ask_as_owner(guest, tpm::ord::vendor_deep_quote, none.view());
        if (answer) {
            CHECK(quote::verify_old_quote(*answer, check));
        }
        CHECK(answer.has_value());

        WireWriter ek;
        ek.bytes(nonce).be16(3).u8(0x11).zeros(2);
        auto proof = ask_as_owner(guest, tpm::ord::vendor_parent_sign_ek, ek.view());
        REQUIRE(proof);
        check = known(m, to_bytes(ek.view()));
        check.command = quote::OldCommand::parent_sign_ek;
        check.endorsement_key = hwtpm::spki_of_pubkey(pubkey).value();
        auto verified = quote::verify_old_quote(*proof, check);
        REQUIRE(verified);
        check_raw(*verified, check.key);
        check.endorsement_key = m.approver.key.spki();
        CHECK(quote::verify_old_quote(*proof, check).error().code != Errc::permission);

        m.host.vault->close_group(m.group, "closed");
        auto refused = ask_as_owner(guest, tpm::ord::vendor_deep_quote, none.view());
        REQUIRE(!refused);
        CHECK(refused.error().detail == tpm::rc12::fail);
    }
}

TEST_SUITE("hwtpm-2.0") {
    TEST_CASE("2.0: deep quotes in Xen's form are refused, by name and code; ours is there") {
        Managed m(TpmVersion::tpm20);
        Guest guest(m);
        test::take_ownership(guest.client, test::read_endorsement_key(guest.client));
        WireWriter w;
        w.bytes(nonce).be16(3).zeros(3).be16(3).u8(0x11).zeros(2).be32(1);
        CHECK(ask_as_owner(guest, tpm::ord::vendor_deep_quote, w.view()).error().detail == tpm::rc12::disabled_cmd);
        const ByteView ek = w.view().first(25);
        CHECK(ask_as_owner(guest, tpm::ord::vendor_parent_sign_ek, ek).error().detail == tpm::rc12::disabled_cmd);
    }

    TEST_CASE("2.0: a deep quote from a guest's owner to the verifier") { from_end_to_end(TpmVersion::tpm20); }
}

TEST_SUITE("hwtpm-1.2") {
    TEST_CASE("1.2: a deep quote from a guest's owner to the verifier") { from_end_to_end(TpmVersion::tpm12); }
}

} // namespace deep_quote_on_swtpm_test
