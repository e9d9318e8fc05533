// Groups in the manager: the real vault, journal and key service on a fake disk and a fake TPM, over reboots of the host.
#include "manager/groups.hpp"

#include "approver.hpp"
#include "manager/key_service.hpp"
#include "manager_machine.hpp"
#include "memory_channel.hpp"

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
        service = std::make_unique<KeyService>(
            KeyService::Options{}, KeyService::Parts{.executor = m.loop.io.get_executor(),
                                                     .vault = *m.vault,
                                                     .root = *m.root,
                                                     .clock = m.loop.clock,
                                                     .log = m.loop.log,
                                                     .admit = [this](const Uuid& u, const proto::BootHash& l) {
                                                         return groups->admit(u, l);
                                                     }});
    }
    void stop_groups() {
        if (service) {
            service->stop();
            m.loop.settle();
            service.reset();
        }
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
        auto pair = fakes::MemoryChannel::make(m.loop.io.get_executor());
        LinkInfo link;
        link.boot_hash = label;
        auto served = m.loop.start(service->serve(std::move(pair.b), std::move(link)));
        const auto ask = [&](const Bytes& frame) {
            REQUIRE(m.loop.run(pair.a->send(frame)));
            auto answer = m.loop.run(pair.a->receive());
            REQUIRE(answer);
            return *answer;
        };
        Result<int> out = 0;
        auto hello = proto::parse_hello_reply(ask(proto::encode_hello({.uuid = vtpm_uuid(n)})));
        if (!hello) {
            out = hello.error();
        } else {
            auto key = proto::parse_load_reply(ask(proto::encode_load()));
            REQUIRE(key);
            out = *key ? std::to_integer<int>((*key)->data()[0]) : 0;
            if (mark != 0) {
                REQUIRE(proto::parse_save_reply(ask(proto::encode_save(Bytes(64, static_cast<std::byte>(mark))))));
            }
        }
        pair.a->close();
        m.loop.settle();
        CHECK(served->done);
        return out;
    }

    fakes::Machine m;
    hwtpm::HashAlg bank = hwtpm::HashAlg::sha256;
    std::optional<Groups> groups;
    std::unique_ptr<KeyService> service;
};

} // namespace

TEST_SUITE("groups") {
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
