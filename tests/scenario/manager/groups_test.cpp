// Groups in the manager: the real vault, journal and key service on a fake disk and a fake TPM, over reboots of the host.
#include "manager/groups/groups.hpp"

#include "approver.hpp"
#include "manager/groups/deep_quotes.hpp"
#include "manager/links/key_service.hpp"
#include "manager_machine.hpp"
#include "quote/deep_quote.hpp"
#include "service_link.hpp"

#include <algorithm>

namespace groups_test {

using namespace vtpmd;
using namespace vtpmd::manager;
using test::ApproverAgent;

namespace {

constexpr std::uint8_t a = 0xa0;
constexpr std::uint8_t b = 0xb0;

Uuid id_of(std::uint8_t kind, std::uint8_t n) {
    Uuid u;
    u.bytes[0] = static_cast<std::byte>(kind);
    u.bytes[15] = static_cast<std::byte>(n);
    return u;
}
Uuid group_uuid(std::uint8_t n) { return id_of(0x67, n); }
Uuid vtpm_uuid(std::uint8_t n) { return id_of(0x76, n); }

struct Host {
    explicit Host(TpmVersion version = TpmVersion::tpm20) {
        m.tpm.version = version;
        bank = version == TpmVersion::tpm12 ? hwtpm::HashAlg::sha1 : hwtpm::HashAlg::sha256;
        m.options.seal_pcrs = hwtpm::PcrSelection{.bank = bank, .pcrs = {0}}; // the store opens on A and on B
        configure(a);
        REQUIRE(m.create());
        start_groups();
    }
    ~Host() { stop_groups(); }
    void start_groups() {
        groups.emplace(
            Groups::Parts{.executor = m.loop.io.get_executor(), .vault = *m.vault, .root = *m.root, .log = m.loop.log});
        // Task<> has no value to wait for.
        auto all = [](Groups& g) -> Task<Result<void>> {
            co_await g.open_all();
            co_return Result<void>{};
        };
        REQUIRE(m.loop.run(all(*groups)));
        deep_quotes.emplace(DeepQuotes::Parts{.vault = *m.vault, .root = *m.root, .groups = *groups});
        KeyService::Parts parts{
            .executor = m.loop.io.get_executor(),
            .vault = *m.vault,
            .root = *m.root,
            .clock = m.loop.clock,
            .log = m.loop.log,
            .admit = [this](const Uuid& u, const proto::BootHash& l) { return groups->admit(u, l); },
            .quote = [this](const Uuid& u, proto::QuoteRequest r) { return deep_quotes->make(u, std::move(r)); },
        };
        service = std::make_unique<KeyService>(KeyService::Options{}, std::move(parts));
    }
    void stop_groups() {
        if (service) {
            service->stop();
            m.loop.settle();
            service.reset();
        }
        deep_quotes.reset();
        groups.reset();
    }
    void configure(std::uint8_t configuration) { m.tpm.pcrs[{bank, 4}] = value(configuration); }
    [[nodiscard]] Bytes value(std::uint8_t configuration) const {
        return Bytes(bank == hwtpm::HashAlg::sha1 ? 20 : 32, static_cast<std::byte>(configuration));
    }
    void reboot(std::uint8_t configuration) {
        stop_groups();
        REQUIRE(m.off());
        configure(configuration);
        REQUIRE(m.open());
        start_groups();
    }
    ApprovalList list(std::uint8_t group, std::uint64_t epoch, std::uint64_t sequence,
                      std::vector<std::uint8_t> configurations) {
        ApprovalList out{.group = group_uuid(group),
                         .epoch = epoch,
                         .sequence = sequence,
                         .platforms = {},
                         .labels = {},
                         .signature = {}};
        for (std::uint8_t c : configurations) {
            out.platforms.push_back(
                {.selection = {.bank = bank, .pcrs = {4}}, .values = {{bank, 4, value(c)}}, .signature = {}});
        }
        return out;
    }
    Result<GroupId> create(const ApproverAgent& approver, const ApprovalList& first,
                           const test::OpensslKey* recovery = nullptr) {
        Groups::Create request{.approver = approver.key.spki(),
                               .approved = approver.sign(first),
                               .recovery_key = {},
                               .recovery_signature = {}};
        if (recovery != nullptr) {
            request.recovery_key = recovery->spki();
            request.recovery_signature = approver.key.sign_sha256(recovery_message(first.group, request.recovery_key));
        }
        return m.loop.run(groups->create(std::move(request)));
    }
    Result<void> update(GroupId id, ApprovalList list) { return m.loop.run(groups->update(id, std::move(list))); }
    Result<void> enrol(std::uint8_t n, GroupId group) {
        return m.loop.run(m.vault->register_vtpm(vtpm_uuid(n), TpmVersion::tpm20, group));
    }
    /// A vTPM comes by its link, loads the key it has (its mark, 0: none), saves `mark` if it is given, and goes.
    Result<int> start_vtpm(std::uint8_t n, std::uint8_t mark = 0, const proto::BootHash& label = {}) {
        LinkInfo info;
        info.boot_hash = label;
        fakes::ServiceLink link(m.loop, *service, std::move(info));
        Result<int> out = 0;
        auto hello = proto::parse_hello_reply(link.ask(proto::encode_hello({.uuid = vtpm_uuid(n)})));
        if (!hello) {
            out = hello.error();
        } else {
            auto key = proto::parse_load_reply(link.ask(proto::encode_load()));
            REQUIRE(key);
            out = *key ? std::to_integer<int>((*key)->data()[0]) : 0;
            if (mark != 0) {
                REQUIRE(proto::parse_save_reply(link.ask(proto::encode_save(Bytes(64, static_cast<std::byte>(mark))))));
            }
        }
        link.hang_up();
        CHECK(link.ended());
        return out;
    }

    fakes::Machine m;
    hwtpm::HashAlg bank = hwtpm::HashAlg::sha256;
    std::optional<Groups> groups;
    std::optional<DeepQuotes> deep_quotes;
    std::unique_ptr<KeyService> service;
};

/// A vTPM's link that stays open.
struct Link : fakes::ServiceLink {
    explicit Link(Host& host, LinkInfo info = {})
        : ServiceLink(host.m.loop, *host.service, std::move(info)) {}
    Result<proto::HelloReply> hello(std::uint8_t n) {
        return proto::parse_hello_reply(ask(proto::encode_hello({.uuid = vtpm_uuid(n)})));
    }
    Result<proto::QuoteReply> quote(const proto::QuoteRequest& request) {
        return proto::parse_quote_reply(ask(proto::encode_quote(request)));
    }
};

proto::QuoteRequest quote_request(hwtpm::HashAlg bank) {
    return {.form = proto::QuoteForm::digests,
            .nonce = Bytes(24, std::byte{0x4e}),
            .endorsement = Bytes(32, std::byte{0xe0}),
            .pcrs = Bytes(32, std::byte{0xc0}),
            .selections = {{.bank = static_cast<std::uint16_t>(bank), .pcrs = 0x11}}};
}

/// The nonce of the hardware quote that says all this of a vTPM.
Bytes digest_for(const Host& host, std::uint8_t vtpm, std::uint8_t group, const proto::QuoteRequest& request) {
    return quote::deep_quote_digest(host.m.tpm.version, {.vtpm = vtpm_uuid(vtpm),
                                                         .group = group_uuid(group),
                                                         .endorsement = request.endorsement,
                                                         .pcrs = request.pcrs,
                                                         .nonce = request.nonce})
        .value();
}

} // namespace

TEST_SUITE("groups") {
    TEST_CASE("a deep quote names the vTPM of the link that asks, on both families: no link gets one of another's") {
        for (TpmVersion version : {TpmVersion::tpm20, TpmVersion::tpm12}) {
            Host host(version);
            const ApproverAgent approver;
            const GroupId group = host.create(approver, host.list(1, 1, 1, {a})).value();
            const GroupId other = host.create(approver, host.list(2, 1, 1, {a})).value();
            REQUIRE(host.enrol(1, group));
            REQUIRE(host.enrol(2, group));
            REQUIRE(host.enrol(3, other));
            const proto::QuoteRequest request = quote_request(host.bank);

            Link first(host);
            CHECK(first.quote(request).error().code == Errc::permission); // before the hello
            REQUIRE(first.hello(1));
            const proto::QuoteReply shown = first.quote(request).value();
            CHECK(shown.hardware == version);
            CHECK(shown.group == group_uuid(1));
            // The fake TPM's quote shows the nonce as what is signed, and the key's blob as the signature.
            CHECK(shown.attested == digest_for(host, 1, 1, request));
            REQUIRE(shown.values.size() == 2);
            CHECK(shown.values[1] ==
                  proto::QuotedPcr{.bank = static_cast<std::uint16_t>(host.bank), .index = 4, .digest = host.value(a)});

            Link second(host);
            REQUIRE(second.hello(2));
            const proto::QuoteReply own = second.quote(request).value();
            CHECK(own.attested == digest_for(host, 2, 1, request));
            CHECK(own.attested != shown.attested);
            CHECK(own.signature == shown.signature);
            CHECK(second.hello(1).error().code == Errc::usage); // one name a link
            CHECK(second.quote(request)->attested == own.attested);
            Link thief(host); // while the first is open
            CHECK(thief.hello(1).error().code == Errc::busy);

            Link third(host); // another group: by that group's key
            REQUIRE(third.hello(3));
            CHECK(third.quote(request)->attested == digest_for(host, 3, 2, request));
            CHECK(third.quote(request)->signature != shown.signature);

            host.m.tpm.banks = {host.bank};
            proto::QuoteRequest best = request;
            best.selections.front().bank = 0;
            CHECK(first.quote(best).value() == shown);

            proto::QuoteRequest fresh = request;
            fresh.nonce.back() ^= std::byte{1};
            CHECK(first.quote(fresh)->attested == digest_for(host, 1, 1, fresh));
            CHECK(first.quote(fresh)->attested != shown.attested);
            CHECK(host.service->counters().of(Request::quote).done == 8);
        }
    }

    TEST_CASE("a link that was made for one vTPM gets its quote without a hello, and never another's") {
        Host host;
        const ApproverAgent approver;
        const GroupId group = host.create(approver, host.list(1, 1, 1, {a})).value();
        REQUIRE(host.enrol(1, group));
        REQUIRE(host.enrol(2, group));
        const proto::QuoteRequest request = quote_request(host.bank);
        LinkInfo ring;
        ring.made_for = vtpm_uuid(2);
        ring.named_by_transport = true;
        {
            Link link(host, ring);
            CHECK(link.quote(request)->attested == digest_for(host, 2, 1, request));
        }
        Link link(host, ring);
        CHECK(link.hello(1).error().code == Errc::permission);
    }

    TEST_CASE("no deep quote from a closed group, of a revoked label, or of the store's own group; the link goes on") {
        Host host;
        const ApproverAgent approver;
        proto::BootHash label{};
        label.fill(std::byte{0x11});
        ApprovalList list = host.list(1, 1, 1, {a});
        list.labels = {label};
        const GroupId group = host.create(approver, list).value();
        REQUIRE(host.enrol(1, group));
        REQUIRE(host.enrol(2, 0));
        const proto::QuoteRequest request = quote_request(host.bank);
        const auto quotes_made = [&] { return std::ranges::count(host.m.tpm.calls, std::string("quote")); };

        Link keyless(host);
        REQUIRE(keyless.hello(2));
        CHECK(keyless.quote(request).error().code == Errc::unsupported);

        LinkInfo info;
        info.boot_hash = label;
        Link link(host, info);
        REQUIRE(link.hello(1));
        REQUIRE(link.quote(request));
        CHECK(quotes_made() == 1);

        proto::QuoteRequest no_bank = request;
        no_bank.selections = {{.bank = 0x0d, .pcrs = 1}};
        CHECK(link.quote(no_bank).error().code == Errc::usage);

        list.sequence = 2;
        list.labels.front().fill(std::byte{0x12});
        REQUIRE(host.update(group, approver.sign(list)));
        CHECK(link.quote(request).error().code == Errc::permission);

        list.sequence = 3;
        list.labels.clear();
        REQUIRE(host.update(group, approver.sign(list)));
        CHECK(link.quote(request));
        CHECK(quotes_made() == 2);
        REQUIRE(host.update(group, approver.sign(host.list(1, 2, 4, {b}))));
        CHECK(link.quote(request).error().code == Errc::pcr_mismatch);
        CHECK(quotes_made() == 2); // the hardware was not asked for what is refused
        REQUIRE(host.update(group, approver.sign(host.list(1, 2, 5, {a, b}))));
        CHECK(link.quote(request));

        // Closed while the hardware was at it.
        host.m.tpm.before = [&](std::string_view operation) -> std::optional<Error> {
            if (operation == "quote") {
                host.m.vault->close_group(group, "closed meanwhile");
            }
            return std::nullopt;
        };
        CHECK(link.quote(request).error().code == Errc::pcr_mismatch);
        host.m.tpm.before = nullptr;
        REQUIRE(host.m.loop.run(host.groups->open(group)));

        host.m.tpm.before = [](std::string_view operation) -> std::optional<Error> {
            return operation == "quote" ? std::optional(make_error(Errc::timed_out, "no answer")) : std::nullopt;
        };
        CHECK(link.quote(request).error().code == Errc::unavailable);
        host.m.tpm.before = nullptr;
        CHECK(link.quote(request));
        CHECK(host.service->counters().of(Request::quote).refused == 5);
        CHECK(host.service->counters().of(Request::quote).failed == 1);

        REQUIRE(proto::parse_save_reply(link.ask(proto::encode_save(Bytes(proto::hash_key_long)))));
        REQUIRE(proto::parse_save_reply(link.ask(proto::encode_handed_over())));
        CHECK(link.quote(request).error().code == Errc::not_found); // not here any more
    }

    TEST_CASE("an approver's whole story in the manager, TPM 2.0") {
        Host host;
        const ApproverAgent approver;
        const ApproverAgent other;
        const test::OpensslKey recovery("EC");
        const GroupId group = host.create(approver, host.list(1, 1, 1, {a}), &recovery).value();
        const GroupId others = host.create(other, host.list(2, 1, 1, {a, b})).value();
        REQUIRE(host.enrol(1, group));
        REQUIRE(host.enrol(2, others));
        REQUIRE(host.enrol(3, 0));
        CHECK(host.start_vtpm(1, 11).value() == 0);
        CHECK(host.start_vtpm(2, 22).value() == 0);
        CHECK(host.start_vtpm(3, 33).value() == 0);
        const auto others_are_served = [&] {
            CHECK(host.start_vtpm(2, 22).value() == 22);
            CHECK(host.start_vtpm(3, 33).value() == 33);
        };
        host.reboot(a);
        CHECK(host.start_vtpm(1).value() == 11);

        // The host is updated: closed, and it says what differs.
        host.reboot(b);
        auto refused = host.start_vtpm(1);
        REQUIRE(refused.has_error());
        CHECK(refused.error().code == Errc::pcr_mismatch);
        CHECK(refused.error().message.find("sha256:4") != std::string::npos);
        CHECK(host.enrol(9, group).error().code == Errc::pcr_mismatch);
        CHECK_FALSE(host.groups->show(group)->open);
        CHECK(host.groups->show(group)->why_closed.find("sha256:4") != std::string::npos);
        others_are_served();

        // Forged, replayed, another approver's.
        ApprovalList forged = approver.sign(host.list(1, 1, 2, {a, b}));
        forged.signature.back() ^= std::byte{1};
        CHECK(host.update(group, forged).error().code == Errc::permission);
        CHECK(host.update(group, other.sign(host.list(1, 1, 2, {a, b}))).error().code == Errc::permission);
        CHECK(host.update(group, approver.sign(host.list(1, 1, 1, {a, b}))).error().code == Errc::rollback);
        CHECK(host.start_vtpm(1).error().code == Errc::pcr_mismatch);

        // B approved: open again, by the approval alone.
        const ApprovalList both = approver.sign(host.list(1, 1, 2, {a, b}));
        REQUIRE(host.update(group, both));
        CHECK(host.start_vtpm(1, 12).value() == 11);

        // A revoked; the old approval does not come back, also not after a restart.
        REQUIRE(host.update(group, approver.sign(host.list(1, 2, 3, {b}))));
        CHECK(host.update(group, both).error().code == Errc::rollback);
        host.reboot(a);
        CHECK(host.update(group, both).error().code == Errc::rollback);
        CHECK(host.start_vtpm(1).error().code == Errc::pcr_mismatch);
        others_are_served();
        host.reboot(b);
        CHECK(host.start_vtpm(1).value() == 12);

        // The TPM forgets what was sealed to it, as a new one would: the approver's recovery key brings the group back.
        host.m.tpm.sealed_for.clear();
        host.reboot(b);
        CHECK(host.start_vtpm(1).has_error());
        const GroupInfo before = host.groups->show(group).value();
        CHECK(
            host.m.loop.run(host.groups->recover(group, SecretBytes(ByteView(Bytes(32, std::byte{7}))))).error().code ==
            Errc::permission);
        const SecretBytes shared{ByteView(recovery.derive(before.recovery_challenge))};
        REQUIRE(host.m.loop.run(host.groups->recover(group, shared.clone())));
        CHECK(host.start_vtpm(1).value() == 12);
        const GroupInfo after = host.groups->show(group).value();
        CHECK(after.recovery_challenge != before.recovery_challenge);
        CHECK(after.attestation_key != before.attestation_key);
        CHECK(host.m.loop.run(host.groups->recover(group, shared.clone())).error().code ==
              Errc::permission); // once only
        host.reboot(b);
        CHECK(host.start_vtpm(1).value() == 12);
    }

    TEST_CASE("an approver's whole story in the manager, TPM 1.2: B is approved before the update") {
        Host host(TpmVersion::tpm12);
        const ApproverAgent approver;
        const GroupId group = host.create(approver, host.list(1, 1, 1, {a})).value();
        REQUIRE(host.enrol(1, group));
        REQUIRE(host.enrol(2, 0));
        CHECK(host.start_vtpm(1, 11).value() == 0);
        host.reboot(b);
        CHECK(host.start_vtpm(1).error().code == Errc::pcr_mismatch);
        CHECK(host.start_vtpm(2, 22).value() == 0);
        CHECK(host.update(group, approver.sign(host.list(1, 1, 2, {a, b}))).error().code == Errc::pcr_mismatch);
        host.reboot(a);
        REQUIRE(host.update(group, approver.sign(host.list(1, 1, 2, {a, b}))));
        host.reboot(b);
        CHECK(host.start_vtpm(1).value() == 11);
        REQUIRE(host.update(group, approver.sign(host.list(1, 2, 3, {b}))));
        host.reboot(a);
        CHECK(host.start_vtpm(1).error().code == Errc::pcr_mismatch);
        CHECK(host.start_vtpm(2).value() == 22);
    }

    TEST_CASE("a list without the present platform closes the group at once, also for those that are at work") {
        Host host;
        const ApproverAgent approver;
        const GroupId group = host.create(approver, host.list(1, 1, 1, {a})).value();
        REQUIRE(host.enrol(1, group));
        REQUIRE(host.m.save(vtpm_uuid(1), 5));
        REQUIRE(host.update(group, approver.sign(host.list(1, 2, 2, {b}))));
        CHECK(host.m.save(vtpm_uuid(1), 6).error().code == Errc::pcr_mismatch);
        CHECK(host.m.loop.run(host.m.vault->load_key(vtpm_uuid(1))).error().code == Errc::pcr_mismatch);
        host.reboot(b);
        CHECK(host.m.load(vtpm_uuid(1)) == 5);
    }

    TEST_CASE("a group admits vTPMs by their label") {
        Host host;
        const ApproverAgent approver;
        proto::BootHash good{};
        good.fill(std::byte{0x11});
        ApprovalList list = host.list(1, 1, 1, {a});
        list.labels = {good};
        const GroupId group = host.create(approver, list).value();
        REQUIRE(host.enrol(1, group));
        proto::BootHash bad = good;
        bad[19] = std::byte{0x12};
        auto refused = host.start_vtpm(1, 0, bad);
        CHECK(refused.error().code == Errc::permission);
        CHECK(host.start_vtpm(1).error().code == Errc::permission); // a process, without a label
        CHECK(host.start_vtpm(1, 0, good).has_value());
    }

    TEST_CASE("a vTPM that comes back from another host is in its group again, or does not come back: not in the "
              "store's own") {
        Host host;
        const ApproverAgent approver;
        const GroupId first = host.create(approver, host.list(1, 1, 1, {a})).value();
        REQUIRE(host.enrol(1, first));
        REQUIRE(host.start_vtpm(1, 5));
        const auto comes_back = [&](bool incoming) {
            Link link(host);
            return proto::parse_hello_reply(
                link.ask(proto::encode_hello({.uuid = vtpm_uuid(1), .create = true, .incoming = incoming})));
        };
        const auto goes_away = [&] {
            Link link(host);
            REQUIRE(proto::parse_hello_reply(link.ask(proto::encode_hello(
                {.uuid = vtpm_uuid(1), .incoming = host.m.vault->registry().find(vtpm_uuid(1))->returned}))));
            REQUIRE(proto::parse_save_reply(link.ask(proto::encode_handed_over())));
        };
        goes_away();
        host.reboot(b); // over the journal, and on a platform that is not approved
        CHECK(comes_back(true).error().code == Errc::pcr_mismatch);
        CHECK(host.m.vault->registry().tombstone(vtpm_uuid(1)) != nullptr);
        host.reboot(a);
        CHECK(comes_back(false).error().code == Errc::tombstone);
        REQUIRE(comes_back(true));
        CHECK(host.m.vault->registry().find(vtpm_uuid(1))->group == first);

        // Its group is deleted while it is away; another one is not its group. (A number is not given out twice.)
        goes_away();
        REQUIRE(host.m.loop.run(host.groups->remove(first)));
        const GroupId second = host.create(approver, host.list(2, 1, 1, {a})).value();
        CHECK(second != first);
        const auto refused = comes_back(true);
        CHECK(refused.error().code == Errc::not_found);
        CHECK(host.m.vault->registry().find(vtpm_uuid(1)) == nullptr);
    }

    TEST_CASE("groups: made once, deleted when empty, listed") {
        Host host;
        const ApproverAgent approver;
        ApprovalList forged = approver.sign(host.list(1, 1, 1, {a}));
        forged.sequence = 9;
        Groups::Create bad{
            .approver = approver.key.spki(), .approved = forged, .recovery_key = {}, .recovery_signature = {}};
        CHECK(host.m.loop.run(host.groups->create(std::move(bad))).error().code == Errc::permission);
        // A recovery key that the approver has not signed for is somebody else's.
        const test::OpensslKey stranger("EC");
        Groups::Create escrow{.approver = approver.key.spki(),
                              .approved = approver.sign(host.list(1, 1, 1, {a})),
                              .recovery_key = stranger.spki(),
                              .recovery_signature =
                                  stranger.sign_sha256(recovery_message(group_uuid(1), stranger.spki()))};
        CHECK(host.m.loop.run(host.groups->create(std::move(escrow))).error().code == Errc::permission);
        CHECK(host.groups->list().size() == 1);

        const GroupId group = host.create(approver, host.list(1, 1, 1, {a})).value();
        CHECK(host.create(approver, host.list(1, 1, 2, {a})).error().code == Errc::exists);
        REQUIRE(host.enrol(1, group));
        CHECK(host.groups->list().size() == 2);
        CHECK(host.groups->show(group)->vtpms == 1);
        CHECK(host.groups->find(group_uuid(1)) == group);
        CHECK(host.m.loop.run(host.groups->remove(group)).error().code == Errc::busy);
        CHECK(host.m.loop.run(host.groups->remove(0)).error().code == Errc::usage);
        CHECK(host.m.loop.run(host.groups->remove(77)).error().code == Errc::not_found);
        REQUIRE(host.m.loop.run(host.service->remove(vtpm_uuid(1), TombstoneRecord::Reason::deleted)));
        REQUIRE(host.m.loop.run(host.groups->remove(group)));
        host.reboot(a);
        CHECK(host.groups->list().size() == 1);
        CHECK(host.groups->show(group).error().code == Errc::not_found);
        CHECK(host.enrol(5, group).error().code == Errc::not_found);
        CHECK(host.update(0, host.list(1, 1, 1, {a})).error().code == Errc::usage);
    }

    TEST_CASE("a group's TPM that does not answer says nothing of the group: what is open stays open") {
        Host host;
        const ApproverAgent approver;
        const GroupId group = host.create(approver, host.list(1, 1, 1, {a})).value();
        host.m.tpm.before = [](std::string_view operation) -> std::optional<Error> {
            return operation == "unseal_for" ? std::optional(make_error(Errc::timed_out, "no answer")) : std::nullopt;
        };
        CHECK(host.m.loop.run(host.groups->open(group)).error().code == Errc::timed_out);
        CHECK(host.m.vault->group_open(group));
        host.m.tpm.before = nullptr;
    }

    TEST_CASE("a group's record: round trip, and cut at any length it is refused") {
        Host host;
        const ApproverAgent approver;
        const test::OpensslKey recovery("EC");
        const GroupId group = host.create(approver, host.list(1, 1, 1, {a, b}), &recovery).value();
        const Bytes bytes = host.m.vault->registry().group(group)->detail;
        CHECK(encode(decode_group_detail(bytes).value()) == bytes);
        for (std::size_t n = 0; n < bytes.size(); ++n) {
            CHECK(decode_group_detail(ByteView(bytes).first(n)).has_error());
        }
        Bytes longer = bytes;
        longer.push_back(std::byte{0});
        CHECK(decode_group_detail(longer).error().code == Errc::corrupt);
    }
}

} // namespace groups_test
