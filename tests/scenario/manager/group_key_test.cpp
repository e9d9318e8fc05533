// An approver's story: a group's key over updates of the host, revocations, replays and forgeries.
#include "approver.hpp"
#include "check.hpp"
#include "fake_root_of_trust.hpp"
#include "loop.hpp"
#include "manager/groups/group_key.hpp"

namespace group_key_test {

using namespace vtpmd;
using namespace vtpmd::manager;
using test::ApproverAgent;

namespace {

Uuid group_id(std::uint8_t n) {
    Uuid u;
    u.bytes[15] = static_cast<std::byte>(n);
    return u;
}

struct Host {
    explicit Host(TpmVersion version) {
        tpm.version = version;
        bank = version == TpmVersion::tpm12 ? hwtpm::HashAlg::sha1 : hwtpm::HashAlg::sha256;
    }
    /// Boots into a configuration.
    void update(std::uint8_t configuration) {
        tpm.pcrs[{bank, 4}] = Bytes(bank == hwtpm::HashAlg::sha1 ? 20 : 32, static_cast<std::byte>(configuration));
    }
    hwtpm::Approval platform(std::uint8_t configuration) {
        const hwtpm::PcrSelection selection{.bank = bank, .pcrs = {0, 4}};
        const Bytes value(bank == hwtpm::HashAlg::sha1 ? 20 : 32, static_cast<std::byte>(configuration));
        return {.selection = selection, .values = {{bank, 0, tpm.pcrs[{bank, 0}]}, {bank, 4, value}}, .signature = {}};
    }
    ApprovalList list(std::uint8_t group, std::uint64_t epoch, std::uint64_t sequence,
                      std::vector<std::uint8_t> configurations) {
        ApprovalList out{.group = group_id(group),
                         .epoch = epoch,
                         .sequence = sequence,
                         .platforms = {},
                         .labels = {},
                         .signature = {}};
        for (std::uint8_t c : configurations) {
            out.platforms.push_back(platform(c));
        }
        return out;
    }
    Result<SecretBytes> open(const GroupProtection& group) { return loop.run(open_group_key(root, group)); }
    Result<GroupProtection> update_list(const GroupProtection& group, ApprovalList list, const SecretBytes* key) {
        std::optional<SecretBytes> given;
        if (key != nullptr) {
            given.emplace(key->clone());
        }
        return loop.run(update_group(root, group, std::move(list), std::move(given)));
    }

    fakes::Loop loop;
    fakes::FakeTpm tpm;
    fakes::FakeRootOfTrust root{tpm};
    hwtpm::HashAlg bank;
};

constexpr std::uint8_t a = 0xa0;
constexpr std::uint8_t b = 0xb0;

SecretBytes a_key(std::uint8_t n) { return SecretBytes(ByteView(Bytes(32, static_cast<std::byte>(n)))); }

} // namespace

TEST_SUITE("groups") {
    TEST_CASE("an approver's story on a TPM 2.0: an update needs an approval alone, a revocation holds") {
        Host host(TpmVersion::tpm20);
        const ApproverAgent approver;
        const ApproverAgent other_approver;
        host.update(a);
        GroupProtection group = host.loop
                                    .run(protect_group_key(host.root, a_key(1), approver.key.spki(),
                                                           approver.sign(host.list(1, 1, 1, {a}))))
                                    .value();
        // Another group, which approves both configurations, is served all along.
        const GroupProtection other = host.loop
                                          .run(protect_group_key(host.root, a_key(2), other_approver.key.spki(),
                                                                 other_approver.sign(host.list(2, 1, 1, {a, b}))))
                                          .value();
        const auto others_are_served = [&] { return host.open(other).value().equals(a_key(2).view()); };
        CHECK(host.open(group).value().equals(a_key(1).view()));
        CHECK(others_are_served());

        host.update(b);
        auto closed = host.open(group);
        REQUIRE(closed.has_error());
        CHECK(closed.error().code == Errc::pcr_mismatch);
        CHECK(closed.error().message.find("sha256:4") != std::string::npos);
        CHECK(others_are_served());

        // Forged, replayed, another's: refused, each for its own reason.
        ApprovalList forged = approver.sign(host.list(1, 1, 2, {a, b}));
        forged.signature.back() ^= std::byte{1};
        CHECK(host.update_list(group, forged, nullptr).error().code == Errc::permission);
        CHECK(host.update_list(group, other_approver.sign(host.list(1, 1, 2, {a, b})), nullptr).error().code ==
              Errc::permission);
        CHECK(host.update_list(group, approver.sign(host.list(2, 1, 2, {a, b})), nullptr).error().code ==
              Errc::mismatch);
        CHECK(host.update_list(group, approver.sign(host.list(1, 1, 1, {a, b})), nullptr).error().code ==
              Errc::rollback);

        // B approved: nobody needs the key, nothing is sealed.
        const auto seals = host.tpm.sealed_for.size();
        const ApprovalList both = approver.sign(host.list(1, 1, 2, {a, b}));
        group = host.update_list(group, both, nullptr).value();
        CHECK(host.tpm.sealed_for.size() == seals);
        auto key = host.open(group);
        REQUIRE(key);
        CHECK(key->equals(a_key(1).view()));

        // A revoked: a new epoch, for which the group has to be open.
        CHECK(host.update_list(group, approver.sign(host.list(1, 1, 3, {b})), &*key).error().code == Errc::usage);
        CHECK(host.update_list(group, approver.sign(host.list(1, 2, 3, {b})), nullptr).error().code ==
              Errc::pcr_mismatch);
        GroupProtection before = group;
        group = host.update_list(group, approver.sign(host.list(1, 2, 3, {b})), &*key).value();
        CHECK(host.open(group).value().equals(a_key(1).view()));
        CHECK(host.update_list(group, both, &*key).error().code == Errc::rollback); // the old approval, replayed
        host.update(a);
        CHECK(host.open(group).error().code == Errc::pcr_mismatch);
        // Not even with the old list under the new seal, as somebody with the disk could put together.
        before.seals = group.seals;
        CHECK(host.open(before).error().code == Errc::mismatch);
        CHECK(others_are_served());

        // The TPM is replaced.
        host.update(b);
        host.tpm.sealed_for.clear();
        CHECK(host.open(group).error().code == Errc::mismatch);
    }

    TEST_CASE("an approver's story on a TPM 1.2: the new platform is approved before the update") {
        Host host(TpmVersion::tpm12);
        const ApproverAgent approver;
        host.update(a);
        CHECK(
            host.loop
                .run(protect_group_key(host.root, a_key(1), approver.key.spki(), approver.sign(host.list(1, 1, 1, {}))))
                .error()
                .code == Errc::usage);
        GroupProtection group = host.loop
                                    .run(protect_group_key(host.root, a_key(1), approver.key.spki(),
                                                           approver.sign(host.list(1, 1, 1, {a}))))
                                    .value();
        auto key = host.open(group);
        REQUIRE(key);
        const ApprovalList both = approver.sign(host.list(1, 1, 2, {a, b}));
        CHECK(host.update_list(group, both, nullptr).error().code == Errc::pcr_mismatch);
        group = host.update_list(group, both, &*key).value();
        CHECK(group.seals.size() == 2);
        CHECK(host.open(group).value().equals(a_key(1).view()));
        host.update(b);
        CHECK(host.open(group).value().equals(a_key(1).view()));
        group = host.update_list(group, approver.sign(host.list(1, 2, 3, {b})), &*key).value();
        host.update(a);
        CHECK(host.open(group).error().code == Errc::pcr_mismatch);
    }
}

} // namespace group_key_test
