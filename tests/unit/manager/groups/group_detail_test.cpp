// A group's record of every version there ever was is read, and written as it was (tests/data/README.md).
#include "check.hpp"
#include "manager/groups/group_detail.hpp"
#include "test_data.hpp"
#include "util/text.hpp"

#include <cstdlib>
#include <fstream>
#include <iterator>

namespace manager_group_detail_test {

using namespace vtpmd;
using namespace vtpmd::manager;

namespace {

const std::string directory = VTPMD_TEST_DATA;

Bytes filled(std::size_t size, unsigned value) { return Bytes(size, static_cast<std::byte>(value)); }

GroupDetail sample() {
    using hwtpm::HashAlg;
    GroupDetail d;
    d.protection.approver = filled(294, 0x11);
    d.protection.approved.group.bytes.fill(std::byte{0x67});
    d.protection.approved.sequence = 7;
    d.protection.approved.labels.resize(2);
    d.protection.approved.labels[1].fill(std::byte{0x22});
    d.protection.seals.push_back(
        {.blob = filled(200, 0x33),
         .selection = {.bank = HashAlg::sha1, .pcrs = {0, 4}},
         .values = {{HashAlg::sha1, 0, filled(20, 0x44)}, {HashAlg::sha1, 4, filled(20, 0x45)}}});
    d.attestation = {.blob = filled(300, 0x55),
                     .key = filled(294, 0x56),
                     .public_area = filled(284, 0x57),
                     .binding = filled(256, 0x58)};
    return d;
}

/// Of our own form, with recovery.
GroupDetail of_version_1() {
    GroupDetail d = sample();
    d.protection.approved.epoch = 3;
    d.protection.approved.platforms.push_back({.selection = {.bank = hwtpm::HashAlg::sha256, .pcrs = {4}},
                                               .values = {{hwtpm::HashAlg::sha256, 4, filled(32, 0x66)}},
                                               .signature = filled(71, 0x67)});
    d.protection.approved.signature = filled(70, 0x68);
    d.recovery = {.key = filled(91, 0x77), .challenge = filled(91, 0x78), .box = filled(60, 0x79)};
    return d;
}

/// Of the old form.
GroupDetail of_version_2() {
    GroupDetail d = sample();
    proto::management::GroupUpdate update;
    update.signature.fill(std::byte{0x88});
    update.list.sequence = 7;
    update.list.platforms.resize(1);
    update.list.platforms[0].fill(std::byte{0x89});
    update.list.labels = d.protection.approved.labels;
    update.selections = {0x10};
    d.old = OldForm{.update = update, .box = filled(60, 0x8a)};
    return d;
}

/// Of the old form, registered for recovery.
GroupDetail of_version_3() {
    GroupDetail d = of_version_2();
    d.old->box.clear();
    d.old->sealed_box = true;
    OldRegistration& r = d.old->registration.emplace();
    r.approver_half.fill(std::byte{0x91});
    r.manager_half.fill(std::byte{0x92});
    r.blob.fill(std::byte{0x93});
    r.check.fill(std::byte{0x94});
    return d;
}

} // namespace

TEST_SUITE("manager") {
    TEST_CASE("golden: a group's record, versions 1 to 3") {
        const std::pair<std::string, GroupDetail> all[]{{"group-v1.record", of_version_1()},
                                                        {"group-v2.record", of_version_2()},
                                                        {"group-v3.record", of_version_3()}};
        for (const auto& golden : all) {
            std::ifstream in(directory + "/" + golden.first, std::ios::binary);
            const std::string content{std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
            const Bytes stored = to_bytes(as_bytes(content));
            auto read = decode_group_detail(stored);
            REQUIRE_MESSAGE(read, golden.first);
            CHECK(to_hex(encode(*read)) == to_hex(stored));
            CHECK(to_hex(encode(golden.second)) == to_hex(stored));
        }
        CHECK(decode_group_detail(encode(of_version_3()))->old->registration == of_version_3().old->registration);
        Bytes neither = encode(of_version_3());
        neither.back() = std::byte{2};
        CHECK(decode_group_detail(neither).error().code == Errc::corrupt);
        CHECK(of_version_2().old->update == decode_group_detail(encode(of_version_2()))->old->update);
    }
    TEST_CASE("golden: make the groups' records" *
              doctest::skip()) { // VTPMD_MAKE_GOLDEN=DIR vtpmd-unit --no-skip -tc=...
        const char* to = std::getenv("VTPMD_MAKE_GOLDEN");
        REQUIRE(to != nullptr);
        for (const auto& [name, detail] : {std::pair{"group-v1.record", of_version_1()},
                                           {"group-v2.record", of_version_2()},
                                           {"group-v3.record", of_version_3()}}) {
            const Bytes bytes = encode(detail);
            std::ofstream out(std::string(to) + "/" + name, std::ios::binary);
            out.write(reinterpret_cast<const char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
            REQUIRE(out.good());
        }
    }
}

} // namespace manager_group_detail_test
