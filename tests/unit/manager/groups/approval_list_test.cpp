#include "manager/groups/approval_list.hpp"

#include "approver.hpp"
#include "check.hpp"
#include "util/text.hpp"

namespace manager_approval_list_test {

using namespace vtpmd;
using namespace vtpmd::manager;
using hwtpm::HashAlg;
using test::ApproverAgent;

namespace {

Uuid group_id(std::uint8_t n = 7) {
    Uuid u;
    u.bytes[15] = static_cast<std::byte>(n);
    return u;
}

hwtpm::Approval platform(std::uint8_t mark, HashAlg bank = HashAlg::sha256) {
    const Bytes digest(bank == HashAlg::sha1 ? 20 : 32, static_cast<std::byte>(mark));
    return {
        .selection = {.bank = bank, .pcrs = {0, 4}}, .values = {{bank, 0, digest}, {bank, 4, digest}}, .signature = {}};
}

ApprovalList a_list() {
    return {.group = group_id(),
            .epoch = 2,
            .sequence = 5,
            .platforms = {platform(1), platform(2, HashAlg::sha1)},
            .labels = {LabelHash{std::byte{9}}},
            .signature = {}};
}

} // namespace

TEST_SUITE("manager") {
    TEST_CASE("approval list: round trip; every truncation, a byte more and other versions are refused") {
        const ApproverAgent approver;
        const ApprovalList list = approver.sign(a_list());
        const Bytes bytes = encode(list);
        auto back = decode_approval_list(bytes);
        REQUIRE(back);
        CHECK(encode(*back) == bytes);
        CHECK(back->platforms.at(1).values == list.platforms.at(1).values);
        CHECK(verify(*back, group_id(), approver.key.spki()));
        for (std::size_t n = 0; n < bytes.size(); ++n) {
            CHECK(decode_approval_list(ByteView(bytes).first(n)).error().code == Errc::corrupt);
        }
        Bytes longer = bytes;
        longer.push_back(std::byte{0});
        CHECK(decode_approval_list(longer).error().code == Errc::corrupt);
        Bytes newer = bytes;
        newer[9] = std::byte{2};
        CHECK(decode_approval_list(newer).error().code == Errc::version);
    }

    TEST_CASE("approval list: the bytes that are signed stay as they are") {
        const ApprovalList list{.group = group_id(),
                                .epoch = 2,
                                .sequence = 5,
                                .platforms = {{.selection = {.bank = HashAlg::sha1, .pcrs = {4}},
                                               .values = {{HashAlg::sha1, 4, Bytes(20, std::byte{0x11})}},
                                               .signature = {std::byte{0xab}}}},
                                .labels = {LabelHash{std::byte{9}}},
                                .signature = {}};
        CHECK(to_hex(encode_for_signing(list)) == "7674706d6441504c"
                                                  "0001"
                                                  "00000000000000000000000000000007"
                                                  "0000000000000002"
                                                  "0000000000000005"
                                                  "0001"
                                                  "0004"
                                                  "01"
                                                  "04"
                                                  "1111111111111111111111111111111111111111"
                                                  "0001ab"
                                                  "0001"
                                                  "0900000000000000000000000000000000000000");
        CHECK(to_hex(reference_of(group_id(), 2)) == "00000000000000000000000000000007"
                                                     "0000000000000002");
    }

    TEST_CASE("approval list: a flipped bit anywhere is refused") {
        const ApproverAgent approver;
        const Bytes bytes = encode(approver.sign(a_list()));
        for (std::size_t i = 0; i < bytes.size(); ++i) {
            Bytes altered = bytes;
            altered[i] ^= std::byte{1};
            auto list = decode_approval_list(altered);
            CHECK_FALSE((list && verify(*list, group_id(), approver.key.spki())));
        }
    }

    TEST_CASE("approval list: another approver, another group, a platform signed for another epoch") {
        const ApproverAgent approver;
        const ApproverAgent stranger;
        const ApprovalList list = approver.sign(a_list());
        CHECK(verify(list, group_id(), stranger.key.spki()).error().code == Errc::permission);
        CHECK(verify(list, group_id(8), approver.key.spki()).error().code == Errc::mismatch);
        ApprovalList mixed = list; // the platforms of epoch 2 in a list of epoch 3 that is signed well
        mixed.epoch = 3;
        mixed.signature = approver.key.sign_sha256(encode_for_signing(mixed));
        CHECK(verify(mixed, group_id(), approver.key.spki()).error().code == Errc::permission);
    }

    TEST_CASE("approval list: only newer ones, and nothing is taken away within an epoch") {
        const ApprovalList current = a_list();
        ApprovalList next = current;
        CHECK(may_replace(current, next).error().code == Errc::rollback);
        next.sequence = 4;
        CHECK(may_replace(current, next).error().code == Errc::rollback);
        next.sequence = 6;
        CHECK(may_replace(current, next));
        next.platforms.push_back(platform(3));
        CHECK(may_replace(current, next));
        next.platforms.erase(next.platforms.begin());
        CHECK(may_replace(current, next).error().code == Errc::usage);
        next.epoch = 3;
        CHECK(may_replace(current, next));
        next.epoch = 1;
        CHECK(may_replace(current, next).error().code == Errc::rollback);
    }

    TEST_CASE("approval list: the present platform is found, or it is said what differs; labels") {
        const ApprovalList list = a_list();
        auto present = platform(2, HashAlg::sha1).values;
        CHECK(find_platform(list, present) == 1);
        present[1].digest[0] = std::byte{0xee};
        CHECK_FALSE(find_platform(list, present));
        const std::string why = explain_closed(list, present);
        CHECK(why.find("sha1:4") != std::string::npos);
        CHECK(why.find("sha1:0") == std::string::npos);
        CHECK(explain_closed({}, present) == "no platform is approved");
        CHECK(selections_of(list).size() == 2);
        CHECK(admits(list, LabelHash{std::byte{9}}));
        CHECK_FALSE(admits(list, LabelHash{}));
        CHECK(admits({}, LabelHash{}));
    }
}

} // namespace manager_approval_list_test
