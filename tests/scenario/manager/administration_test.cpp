// Management by the old protocol of Xen's manager: the administrator's link to the real key service, groups, vault and journal,
// on a fake disk and a fake TPM of both families. The messages are those of Xen's script (proto/vtpmmgr/management.hpp encodes them).
#include "administrator_host.hpp"
#include "approver.hpp"

namespace administration_test {

using namespace vtpmd;
using namespace vtpmd::manager;
using namespace test::administrator;
using test::OldApprover;

namespace {

/// A request of another size, which its header states truly.
Bytes resized(const Bytes& frame, std::size_t body_size) {
    Bytes body = to_bytes(proto::body_of(frame));
    body.resize(body_size);
    auto header = proto::parse_header(frame);
    return proto::make_frame(header->tag, header->code, body);
}

} // namespace

TEST_SUITE("administration") {
    TEST_CASE("what manage-vtpmmgr.pl does, on both families, and again after a restart") {
        for (TpmVersion version : {TpmVersion::tpm12, TpmVersion::tpm20}) {
            CAPTURE(static_cast<int>(version));
            Host host(version);
            const OldApprover approver;
            // Group 0 is there, the store's own.
            CHECK(host.count() == 1);
            CHECK(to_hex(host.shown(0)) == std::string(512, '0') + std::string(32, '0'));

            management::GroupNew add{.chosen_id = {}, .modulus = approver.modulus()};
            add.chosen_id.fill(std::byte{9});
            const Bytes made = host.tell(add);
            REQUIRE(made.size() == 16 + 256 + 256);
            CHECK(made[16] == std::byte{0xc1}); // the modulus of the attestation key
            CHECK(made[16 + 256] == std::byte{9});
            CHECK(host.count() == 2);
            Bytes expected = to_bytes(approver.modulus());
            expected.resize(256 + 16); // no list yet
            CHECK(host.shown(1) == expected);

            // A vTPM of the group's, before the first list.
            CHECK(host.tell(management::VtpmNew{.group = 1, .uuid = vtpm_uuid(1)}) == to_bytes(vtpm_uuid(1).bytes));
            CHECK(host.start_vtpm(1, 11).value() == 0);

            const management::ConfigList list = Host::list(5, {a, b});
            CHECK(host.tell(approver.sign(1, list, pcr_4)).empty());
            expected.resize(256);
            const Bytes encoded = encode(list);
            expected.insert(expected.end(), encoded.begin(), encoded.end());
            CHECK(host.shown(1) == expected);

            const Bytes random = host.tell(management::VtpmNew{.group = 1, .uuid = std::nullopt});
            REQUIRE(random.size() == 16);
            Bytes listed = host.tell(management::VtpmList{.group = 1, .offset = 0});
            CHECK(listed.size() == 4 + 2 * 16);
            CHECK(host.start_vtpm(1).value() == 11);

            host.reboot(b);
            CHECK(host.count() == 2);
            CHECK(host.shown(1) == expected);
            CHECK(host.tell(management::VtpmList{.group = 1, .offset = 0}) == listed);
            CHECK(host.start_vtpm(1, 12).value() == 11);

            Uuid other;
            std::ranges::copy(random, other.bytes.begin());
            CHECK(host.ask(management::GroupDel{1}).code == busy); // busy: it has vTPMs
            CHECK(host.tell(management::VtpmDel{other}).empty());
            CHECK(host.tell(management::VtpmDel{vtpm_uuid(1)}).empty());
            CHECK(host.ask(management::VtpmDel{vtpm_uuid(1)}).code != 0);
            CHECK(host.tell(management::VtpmList{.group = 1, .offset = 0}) == Bytes(4));
            CHECK(host.tell(management::GroupDel{1}).empty());
            CHECK(host.count() == 1);
            host.reboot(b);
            CHECK(host.count() == 1);
            // It left a tombstone.
            CHECK(host.ask(management::VtpmNew{.group = 0, .uuid = vtpm_uuid(1)}).code != 0);
        }
    }

    TEST_CASE("a platform that is not approved closes the group; TPM 2.0: an approval alone opens it again") {
        Host host;
        const OldApprover approver;
        (void)host.tell(management::GroupNew{.chosen_id = {}, .modulus = approver.modulus()});
        (void)host.tell(management::VtpmNew{.group = 1, .uuid = vtpm_uuid(1)});
        (void)host.tell(management::VtpmNew{.group = 0, .uuid = vtpm_uuid(2)});
        (void)host.tell(approver.sign(1, Host::list(1, {a}), pcr_4));
        CHECK(host.start_vtpm(1, 11).value() == 0);
        host.reboot(b);
        CHECK(host.start_vtpm(1).error().code == Errc::pcr_mismatch);
        CHECK(host.ask(management::VtpmNew{.group = 1, .uuid = vtpm_uuid(3)}).code != 0);
        CHECK(host.start_vtpm(2, 22).has_value());
        const auto both = approver.sign(1, Host::list(2, {a, b}), pcr_4);
        CHECK(host.tell(both).empty());
        CHECK(host.start_vtpm(1).value() == 11);
        // A revoked; the old lists do not come back, also not after a restart.
        CHECK(host.tell(approver.sign(1, Host::list(3, {b}), pcr_4)).empty());
        CHECK(host.ask(both).code == rolled_back);
        host.reboot(a);
        CHECK(host.ask(both).code != 0);
        CHECK(host.start_vtpm(1).error().code == Errc::pcr_mismatch);
        CHECK(host.start_vtpm(2).value() == 22);
        host.reboot(b);
        CHECK(host.start_vtpm(1).value() == 11);
    }

    TEST_CASE("a TPM 2.0 without the SHA-1 bank: a composite is of the SHA-256 bank's values") {
        Host host;
        const OldApprover approver;
        (void)host.tell(management::GroupNew{.chosen_id = {}, .modulus = approver.modulus()});
        (void)host.tell(management::VtpmNew{.group = 1, .uuid = vtpm_uuid(1)});
        host.m.tpm.banks = {hwtpm::HashAlg::sha256};
        management::ConfigList list{.sequence = 1, .platforms = {{}}, .labels = {}};
        std::ranges::copy(
            hwtpm::pcr_composite({.bank = hwtpm::HashAlg::sha256, .pcrs = {4}},
                                 {{hwtpm::HashAlg::sha256, 4, host.m.tpm.pcrs[{hwtpm::HashAlg::sha256, 4}]}})
                .value(),
            list.platforms[0].begin());
        CHECK(host.tell(approver.sign(1, list, pcr_4)).empty());
        CHECK(host.start_vtpm(1).has_value());
        CHECK(host.tell(approver.sign(1, Host::list(2, {a}), pcr_4)).empty()); // the other bank's
        CHECK(host.start_vtpm(1).error().code == Errc::pcr_mismatch);
    }

    TEST_CASE("TPM 1.2: the TPM itself opens the group; a closed one takes no list") {
        Host host(TpmVersion::tpm12);
        const OldApprover approver;
        (void)host.tell(management::GroupNew{.chosen_id = {}, .modulus = approver.modulus()});
        (void)host.tell(management::VtpmNew{.group = 1, .uuid = vtpm_uuid(1)});
        (void)host.tell(approver.sign(1, Host::list(1, {a}), pcr_4));
        CHECK(host.start_vtpm(1, 11).value() == 0);
        host.reboot(b);
        CHECK(host.start_vtpm(1).error().code == Errc::pcr_mismatch);
        CHECK(host.ask(approver.sign(1, Host::list(2, {a, b}), pcr_4)).code != 0);
        host.reboot(a);
        CHECK(host.tell(approver.sign(1, Host::list(2, {a, b}), pcr_4)).empty());
        host.reboot(b);
        CHECK(host.start_vtpm(1).value() == 11);
        // Nothing of the group's key is left that the store alone could open.
        CHECK(host.groups->show(host.groups->list().back().id)->old->box.empty());
    }

    TEST_CASE("others than the administrator's link manage nothing, and learn nothing") {
        Host host;
        const OldApprover approver;
        const std::vector<management::Request> requests{
            management::GroupList{}, management::GroupNew{.chosen_id = {}, .modulus = approver.modulus()},
            management::VtpmNew{.group = 0, .uuid = vtpm_uuid(1)}, management::VtpmList{.group = 0, .offset = 0}};
        auto other = host.connect({.made_for = vtpm_uuid(7), .named_by_transport = true, .peer_gone = {}});
        // Whoever may use the socket can say any UUID: to say the administrator's makes nobody the administrator.
        auto says_so = host.connect({});
        (void)host.ask(*says_so, proto::encode_hello({.uuid = admin_uuid, .create = true}));
        WireWriter w;
        w.be32(20).bytes(Bytes(20));
        const Bytes extend = proto::make_frame(proto::tag::tpm12_command, 0x14, w.view());
        for (auto* channel : {other.get(), says_so.get()}) {
            for (const management::Request& request : requests) {
                CHECK(host.ask(*channel, encode(request)).code == auth_fail);
                CHECK(host.ask(*channel, resized(encode(request), 3)).code == auth_fail);
            }
            CHECK(host.ask(*channel, proto::make_frame(proto::tag::management, 99)).code == auth_fail);
            CHECK(host.ask(*channel, extend).code == bad_ordinal);
        }
        CHECK(host.ask(*host.link, extend).code == 0);
        CHECK(host.m.vault->registry().groups().size() == 1);
        CHECK(host.m.vault->registry().find(vtpm_uuid(1)) == nullptr);
    }

    TEST_CASE("hostile requests of the administrator: answered, and nothing changes") {
        Host host;
        const OldApprover approver;
        const OldApprover stranger;
        (void)host.tell(management::GroupNew{.chosen_id = {}, .modulus = approver.modulus()});
        const auto good = approver.sign(1, Host::list(4, {a}), pcr_4);
        CHECK(host.tell(good).empty());
        const Bytes before = host.shown(1);

        // Every request cut at any length, or longer.
        const std::vector<management::Request> requests{
            management::GroupNew{.chosen_id = {}, .modulus = approver.modulus()},
            approver.sign(1, Host::list(9, {a, b}), pcr_4),
            management::GroupDel{1},
            management::GroupShow{1},
            management::VtpmList{.group = 1, .offset = 0},
            management::VtpmDel{vtpm_uuid(1)}};
        for (const management::Request& request : requests) {
            CAPTURE(management::name_of(request));
            const Bytes whole = encode(request);
            const std::size_t size = whole.size() - proto::header_size;
            for (std::size_t n = 0; n < size; ++n) {
                CHECK(host.ask(*host.link, resized(whole, n)).code == bad_size);
            }
            CHECK(host.ask(*host.link, resized(whole, size + 1)).code == bad_size);
        }
        CHECK(host.ask(*host.link, proto::make_frame(proto::tag::management, 0x02000299)).code == bad_ordinal);

        // A list that is not the approver's, or not newer: signature, content, group, order.
        CHECK(host.ask(stranger.sign(1, Host::list(9, {a}), pcr_4)).code == auth_fail);
        auto forged = approver.sign(1, Host::list(9, {a}), pcr_4);
        forged.signature[100] ^= std::byte{1};
        CHECK(host.ask(forged).code == auth_fail);
        auto raised = good;
        raised.list.sequence = 9;
        CHECK(host.ask(raised).code == auth_fail);
        auto labelled = approver.sign(1, Host::list(9, {a}), pcr_4);
        labelled.list.labels.emplace_back();
        CHECK(host.ask(labelled).code == auth_fail);
        CHECK(host.ask(good).code == rolled_back);                                         // replayed
        CHECK(host.ask(approver.sign(1, Host::list(3, {a}), pcr_4)).code == rolled_back);  // older
        CHECK(host.ask(approver.sign(1, Host::list(9, {}), pcr_4)).code == bad_parameter); // nothing could open it
        CHECK(host.ask(approver.sign(1, Host::list(9, {a}), 0)).code == bad_parameter);    // anything could
        CHECK(host.ask(approver.sign(1, Host::list(9, {a}), 1U << 24U)).code == bad_parameter);
        CHECK(host.ask(approver.sign(0, Host::list(9, {a}), pcr_4)).code == bad_parameter); // the store's own
        std::vector<std::uint8_t> many(65, a);
        CHECK(host.ask(approver.sign(1, Host::list(9, many), pcr_4)).code == bad_size);

        for (std::uint32_t number : {2U, 77U, 0xFFFFFFFFU}) {
            CHECK(host.ask(approver.sign(number, Host::list(9, {a}), pcr_4)).code == bad_index);
            CHECK(host.ask(management::GroupDel{number}).code == bad_index);
            CHECK(host.ask(management::GroupShow{number}).code == bad_index);
            CHECK(host.ask(management::VtpmList{.group = number, .offset = 0}).code == bad_index);
            CHECK(host.ask(management::VtpmNew{.group = number, .uuid = std::nullopt}).code == bad_index);
        }
        CHECK(host.ask(management::GroupDel{0}).code == bad_parameter);
        CHECK(host.ask(management::VtpmDel{vtpm_uuid(9)}).code == bad_index);
        CHECK(host.ask(management::VtpmNew{.group = 0, .uuid = Uuid{}}).code == bad_parameter);
        // No RSA-2048 moduli: even, too short, zero.
        management::GroupNew key{.chosen_id = {}, .modulus = approver.modulus()};
        key.modulus[255] &= std::byte{0xFE};
        CHECK(host.ask(key).code == bad_parameter);
        key.modulus = approver.modulus();
        key.modulus[0] = std::byte{0};
        CHECK(host.ask(key).code == bad_parameter);
        key.modulus = {};
        CHECK(host.ask(key).code == bad_parameter);

        CHECK(host.count() == 2);
        CHECK(host.shown(1) == before);
        host.reboot(a);
        CHECK(host.shown(1) == before);
    }

    TEST_CASE("long lists come page by page, in one order") {
        Host host(TpmVersion::tpm20, std::uint64_t{2} << 20); // a store that admits them all
        const std::uint16_t count = 600;
        std::vector<Uuid> all;
        for (std::uint16_t n = 0; n < count; ++n) {
            all.push_back(vtpm_uuid(n));
            (void)host.tell(management::VtpmNew{.group = 0, .uuid = all.back()});
        }
        std::vector<Uuid> seen;
        for (int page = 0; page < 4 && seen.size() < count; ++page) {
            const Bytes body =
                host.tell(management::VtpmList{.group = 0, .offset = static_cast<std::uint32_t>(seen.size())});
            CHECK(body.size() <= management::answer_limit - proto::header_size);
            WireReader in(body);
            CHECK(in.be32() == count);
            while (in.remaining() > 0) {
                seen.push_back(Uuid{in.array<16>()});
            }
        }
        CHECK(seen == all);
        CHECK(host.tell(management::VtpmList{.group = 0, .offset = count}).size() == 4);
        CHECK(host.tell(management::VtpmList{.group = 0, .offset = 0xFFFFFFFF}).size() == 4);
    }

    TEST_CASE("GROUP_SHOW: the longest list of the old form fits; a longer one of our own form is refused, whole") {
        Host host;
        const OldApprover approver;
        (void)host.tell(management::GroupNew{.chosen_id = {}, .modulus = approver.modulus()});
        auto list = Host::list(1, {a});
        const std::size_t room = management::answer_limit - proto::header_size - 16 - 256 - 16; // of hashes
        list.labels.resize(room / sizeof(management::Hash) - 1);
        CHECK(host.tell(approver.sign(1, list, pcr_4)).empty());
        CHECK(host.shown(1).size() == 256 + encode(list).size());
        list.sequence = 2;
        list.labels.emplace_back();
        CHECK(host.ask(approver.sign(1, list, pcr_4)).code == bad_size);

        const test::ApproverAgent own;
        for (const std::size_t labels : {std::size_t{100}, label_limit}) {
            const Uuid uuid = id_of(0x67, static_cast<std::uint16_t>(labels));
            ApprovalList approved{
                .group = uuid, .epoch = 1, .sequence = 1, .platforms = {}, .labels = {}, .signature = {}};
            approved.labels.resize(labels);
            Groups::Create request{.approver = own.key.spki(),
                                   .approved = own.sign(std::move(approved)),
                                   .recovery_key = {},
                                   .recovery_signature = {}};
            REQUIRE(host.m.loop.run(host.groups->create(std::move(request))));
            const Answer answer = host.ask(management::GroupShow{host.count() - 1});
            CHECK(answer.code == (labels == label_limit ? bad_size : 0));
            CHECK(answer.body.size() == (labels == label_limit ? 0 : 16 + 256 + 16 + labels * 20));
        }
        CHECK(host.count() == 4); // and the link serves on
    }

    TEST_CASE("VTPM_SHOW, GROUP_QUOTE and GROUP_ACTIVATE") {
        for (TpmVersion version : {TpmVersion::tpm12, TpmVersion::tpm20}) {
            Host host(version);
            const OldApprover approver;
            (void)host.tell(management::GroupNew{.chosen_id = {}, .modulus = approver.modulus()});
            (void)host.tell(management::VtpmNew{.group = 1, .uuid = vtpm_uuid(1)});
            CHECK(host.start_vtpm(1, 11).value() == 0);
            const Bytes expected = encode(management::VtpmStatus{.group = 1,
                                                                 .open = false,
                                                                 .has_state = true,
                                                                 .administrator = false,
                                                                 .version = 0x0102,
                                                                 .created = 1'700'000'000,
                                                                 .saves = 1});
            CHECK(host.tell(management::VtpmShow{vtpm_uuid(1)}) == expected);
            CHECK(host.ask(management::VtpmShow{vtpm_uuid(2)}).code == bad_index);
            // The fake TPM's key has the name 1; its quotes are not signed.
            const Answer secret = host.ask(management::GroupActivate{.group = 1, .blob = Bytes(17, std::byte{1})});
            CHECK(secret.code == 0);
            CHECK(to_hex(secret.body) == "0000000600010010" + to_hex(Bytes(16, std::byte{1})));
            CHECK(host.ask(management::GroupActivate{.group = 1, .blob = {}}).code != 0);
            CHECK(host.ask(management::GroupQuote{.group = 1, .nonce = {}, .pcrs = pcr_4}).code != 0);
        }
    }

    TEST_CASE("VTPM_EDIT moves a vTPM to another group as long as it has no state") {
        Host host;
        const OldApprover approver;
        (void)host.tell(management::GroupNew{.chosen_id = {}, .modulus = approver.modulus()});
        (void)host.tell(management::VtpmNew{.group = 0, .uuid = vtpm_uuid(1)});
        CHECK(host.tell(management::VtpmEdit{.uuid = vtpm_uuid(1), .group = 1}).empty());
        CHECK(host.tell(management::VtpmEdit{.uuid = vtpm_uuid(1), .group = 1}).empty());
        CHECK(host.tell(management::VtpmList{.group = 0, .offset = 0}) == Bytes(4));
        CHECK(host.tell(management::VtpmList{.group = 1, .offset = 0}).size() == 4 + 16);
        CHECK(host.ask(management::GroupDel{1}).code == busy);
        CHECK(host.ask(management::VtpmEdit{.uuid = vtpm_uuid(2), .group = 1}).code == bad_index);
        CHECK(host.ask(management::VtpmEdit{.uuid = vtpm_uuid(1), .group = 2}).code == bad_index);
        host.reboot(a);
        CHECK(host.start_vtpm(1, 11).value() == 0);
        CHECK(host.ask(management::VtpmEdit{.uuid = vtpm_uuid(1), .group = 0}).code == bad_parameter);
        host.reboot(a);
        CHECK(host.start_vtpm(1).value() == 11);
        // Not while it is open, and not into a closed group.
        (void)host.tell(management::VtpmNew{.group = 0, .uuid = vtpm_uuid(2)});
        auto open = host.connect({.made_for = vtpm_uuid(2), .named_by_transport = true, .peer_gone = {}});
        (void)host.ask(*open, proto::encode_load());
        CHECK(host.ask(management::VtpmEdit{.uuid = vtpm_uuid(2), .group = 1}).code == busy);
        open->close();
        host.m.loop.settle();
        CHECK(host.tell(approver.sign(1, Host::list(1, {b}), pcr_4)).empty());
        CHECK(host.ask(management::VtpmEdit{.uuid = vtpm_uuid(2), .group = 1}).code == 0x407);
    }

    TEST_CASE("the record of a group of the old form: round trip, and cut at any length it is refused") {
        for (TpmVersion version : {TpmVersion::tpm12, TpmVersion::tpm20}) {
            Host host(version);
            const OldApprover approver;
            (void)host.tell(management::GroupNew{.chosen_id = {}, .modulus = approver.modulus()});
            for (const bool listed : {false, true}) {
                if (listed) {
                    (void)host.tell(approver.sign(1, Host::list(1, {a, b}), pcr_4));
                }
                const Bytes bytes = host.m.vault->registry().groups().rbegin()->second.detail;
                CHECK(encode(decode_group_detail(bytes).value()) == bytes);
                for (std::size_t n = 0; n < bytes.size(); ++n) {
                    CHECK(decode_group_detail(ByteView(bytes).first(n)).has_error());
                }
                Bytes longer = bytes;
                longer.push_back(std::byte{0});
                CHECK(decode_group_detail(longer).error().code == Errc::corrupt);
            }
        }
    }
}

} // namespace administration_test
