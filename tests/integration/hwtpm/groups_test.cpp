// An approver's whole story in a manager with a real TPM (swtpm) of either family: over updates of the host, a revocation, a
// replay, and another TPM in the place of the first.
#include "approver.hpp"
#include "check.hpp"
#include "host.hpp"

#include "manager/groups/deep_quotes.hpp"
#include "quote/deep_quote.hpp"
#include "quote/hardware_quote.hpp"

namespace groups_on_swtpm_test {

using namespace vtpmd;
using namespace vtpmd::manager;

namespace {

const Uuid group_uuid = parse_uuid("67000000-0000-4000-8000-000000000001").value();
const Uuid member = parse_uuid("76000000-0000-4000-8000-000000000001").value();
const Uuid bystander = parse_uuid("76000000-0000-4000-8000-000000000002").value();

struct Story {
    explicit Story(TpmVersion v)
        : version(v)
        , host(v) {}
    [[nodiscard]] Groups groups() {
        return Groups(
            {.executor = host.loop.io.get_executor(), .vault = *host.vault, .root = *host.root, .log = host.loop.log});
    }
    hwtpm::Approval present() {
        hwtpm::Approval out{.selection = host.pcrs("4"), .values = {}, .signature = {}};
        out.values = host.loop.run(host.root->pcr_read({out.selection})).value();
        return out;
    }
    Result<void> boot() {
        REQUIRE(host.start());
        return host.loop.run(groups().open(group));
    }
    Result<void> update(const ApprovalList& list) { return host.loop.run(groups().update(group, list)); }
    void quote_is_good() {
        const Bytes nonce(20, std::byte{0x4e});
        auto made = host.loop.run(groups().quote(group, {.nonce = nonce, .selections = {host.pcrs("0,4")}}));
        REQUIRE(made);
        const quote::HardwareQuoteCheck check{
            .version = version, .key = groups().show(group)->attestation_key, .nonce = nonce, .pcrs = present().values};
        CHECK(quote::verify_hardware_quote(*made, check));
        deep_quote_is_good();
    }
    void deep_quote_is_good() {
        Groups kept = groups();
        DeepQuotes quotes({.vault = *host.vault, .root = *host.root, .groups = kept});
        const test::OpensslKey endorsement("EC"); // the vTPM's
        quote::DeepQuote deep;
        deep.hardware = version;
        deep.pcrs = {{hwtpm::HashAlg::sha256, 10, Bytes(32, std::byte{0x10})}};
        deep.claims = {.vtpm = member,
                       .group = group_uuid,
                       .endorsement = quote::endorsement_digest(endorsement.spki()).value(),
                       .pcrs = quote::pcrs_digest(deep.pcrs).value(),
                       .nonce = Bytes(32, std::byte{0x4e})};
        const hwtpm::PcrSelection boot = host.pcrs("0,4");
        const proto::QuoteRequest request{
            .nonce = deep.claims.nonce,
            .endorsement = deep.claims.endorsement,
            .pcrs = deep.claims.pcrs,
            .selections = {{.bank = static_cast<std::uint16_t>(boot.bank), .pcrs = 0x11}}};
        auto made = host.loop.run(quotes.make(member, request));
        REQUIRE(made);
        CHECK(made->hardware == version);
        CHECK(made->group == group_uuid);
        deep.quote.attested = made->attested;
        deep.quote.signature = made->signature;
        for (const proto::QuotedPcr& v : made->values) {
            deep.quote.values.push_back({static_cast<hwtpm::HashAlg>(v.bank), v.index, v.digest});
        }
        const quote::DeepQuoteCheck check{.key = kept.show(group)->attestation_key,
                                          .vtpm = member,
                                          .group = group_uuid,
                                          .endorsement_key = endorsement.spki(),
                                          .nonce = deep.claims.nonce,
                                          .pcrs = deep.pcrs,
                                          .host_pcrs = present().values};
        CHECK(quote::verify_deep_quote(deep, check));
        deep.claims.vtpm = bystander; // of the same host, and says so itself
        quote::DeepQuoteCheck forged = check;
        forged.vtpm = bystander;
        CHECK(quote::verify_deep_quote(deep, forged).error().code == Errc::mismatch);
        CHECK(host.loop.run(quotes.make(bystander, request)).error().code == Errc::unsupported);
    }

    TpmVersion version;
    test::Host host;
    GroupId group = 0;
};

void story(TpmVersion version) {
    test::Host spare(version);
    const test::Host::Copy another_tpm = spare.copy();
    const fakes::TempDir dir;
    const std::string recovery_file = (dir.path() / "recovery").string();
    const test::ApproverAgent approver;
    const test::OpensslKey recovery("EC");

    Story s(version);
    s.host.options.recovery_file = recovery_file;
    REQUIRE(s.host.start(true));
    s.host.options.recovery_file.clear();
    const hwtpm::Approval a = s.present();
    ApprovalList list{.group = group_uuid, .epoch = 1, .sequence = 1, .platforms = {a}, .labels = {}, .signature = {}};
    Groups::Create request{.approver = approver.key.spki(),
                           .approved = approver.sign(list),
                           .recovery_key = recovery.spki(),
                           .recovery_signature =
                               approver.key.sign_sha256(recovery_message(group_uuid, recovery.spki()))};
    auto made = s.host.loop.run(s.groups().create(std::move(request)));
    REQUIRE(made);
    s.group = *made;
    REQUIRE(s.host.loop.run(s.host.vault->register_vtpm(member, TpmVersion::tpm20, s.group)));
    REQUIRE(s.host.enrol(bystander));
    REQUIRE(s.host.save(member, 1));
    REQUIRE(s.host.save(bystander, 2));
    s.quote_is_good();

    s.host.measure();
    auto closed = s.boot();
    REQUIRE(closed.has_error());
    CHECK(closed.error().code == Errc::pcr_mismatch);
    CHECK(s.host.loop.run(s.host.vault->load_key(member)).error().code == Errc::pcr_mismatch);
    CHECK(s.host.load(bystander) == 2);
    const hwtpm::Approval b = s.present();
    list.sequence = 2;
    list.platforms = {a, b};
    const ApprovalList both = approver.sign(list);
    if (version == TpmVersion::tpm12) { // which approves before the update
        CHECK(s.update(both).error().code == Errc::pcr_mismatch);
        s.host.power_cycle(test::FaultDisk::Loss::none);
        REQUIRE(s.boot());
        REQUIRE(s.update(both));
        s.host.measure();
        REQUIRE(s.boot());
    } else {
        REQUIRE(s.update(both));
    }
    CHECK(s.host.load(member) == 1);

    list.epoch = 2; // A is revoked
    list.sequence = 3;
    list.platforms = {b};
    REQUIRE(s.update(approver.sign(list)));
    CHECK(s.update(both).error().code == Errc::rollback);
    CHECK(s.host.load(member) == 1);
    s.host.power_cycle(test::FaultDisk::Loss::none);
    CHECK(s.boot().error().code == Errc::pcr_mismatch);
    CHECK(s.host.load(bystander) == 2);

    // Another TPM: the store by its recovery file, the group by the approver's recovery key.
    s.host.put_back_tpm(another_tpm);
    s.host.measure();
    s.host.options.accept_no_counter = true; // the other TPM has no counter to compare
    s.host.options.recovery_file = recovery_file;
    auto lost = s.boot();
    s.host.options.accept_no_counter = false;
    s.host.options.recovery_file.clear();
    REQUIRE(lost.has_error());
    CHECK(lost.error().code == Errc::mismatch);
    const SecretBytes shared{ByteView(recovery.derive(s.groups().show(s.group)->recovery_challenge))};
    REQUIRE(s.host.loop.run(s.groups().recover(s.group, shared.clone())));
    CHECK(s.host.load(member) == 1);
    s.quote_is_good();
    REQUIRE(s.boot());
    CHECK(s.host.load(member) == 1);
    CHECK(s.host.load(bystander) == 2);
}

} // namespace

TEST_SUITE("hwtpm-2.0") {
    TEST_CASE("2.0: an approver's whole story in a manager, and another TPM") { story(TpmVersion::tpm20); }
}

TEST_SUITE("hwtpm-1.2") {
    TEST_CASE("1.2: an approver's whole story in a manager, and another TPM") { story(TpmVersion::tpm12); }
}

} // namespace groups_on_swtpm_test
