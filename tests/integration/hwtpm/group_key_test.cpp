// A group's key on real TPMs: sealed on one configuration for another, closed until the host is there, and approved over an
// update of the host.
#include "approver.hpp"
#include "check.hpp"
#include "support.hpp"
#include "swtpm_process.hpp"

#include "hwtpm/drivers/driver_spec.hpp"
#include "hwtpm/drivers/swtpm_device.hpp"
#include "manager/groups/group_key.hpp"
#include "tpm/commands.hpp"

namespace group_key_test {

using namespace vtpmd;
using namespace vtpmd::manager;
using vtpmd::test::Loop;

namespace {

class Host {
  public:
    explicit Host(TpmVersion version)
        : version_(version)
        , swtpm_({.version = version}) {}
    void reboot() {
        swtpm_.stop();
        swtpm_.start();
    }
    /// As firmware would measure something else.
    void measure() {
        Loop loop;
        auto device = hwtpm::open_swtpm({.kind = hwtpm::DriverKind::swtpm_unix, .path = swtpm_.socket()}, 0, loop.log);
        REQUIRE(device);
        const tpm::HashValue value{0x000B, Bytes(32, std::byte{0x5A})};
        const Bytes command = version_ == TpmVersion::tpm12 ? tpm::extend_command(4, tpm::Sha1Digest{})
                                                            : tpm::pcr_extend_command(4, std::span(&value, 1));
        REQUIRE((*device)->transmit(command, std::chrono::seconds(10)));
    }
    /// Runs `use` on an open root of trust.
    template <typename F>
    auto with(F use) {
        Loop loop;
        auto root = hwtpm::open_root({.driver = swtpm_.driver()}, loop.io.get_executor(), loop.log, true);
        REQUIRE(root);
        auto out = use(loop, **root);
        loop.run((*root)->close());
        return out;
    }
    hwtpm::Approval present() {
        return with([this](Loop& loop, hwtpm::RootOfTrust& root) {
            const char* selection = version_ == TpmVersion::tpm12 ? "sha1:0,4" : "sha256:0,4";
            hwtpm::Approval out{
                .selection = hwtpm::parse_pcr_selection(selection).value(), .values = {}, .signature = {}};
            out.values = loop.run(root.pcr_read({out.selection})).value();
            return out;
        });
    }
    Result<SecretBytes> open(const GroupProtection& group) {
        return with([&](Loop& loop, hwtpm::RootOfTrust& root) { return loop.run(open_group_key(root, group)); });
    }

  private:
    TpmVersion version_;
    fakes::SwtpmProcess swtpm_;
};

void story(TpmVersion version) {
    Host host(version);
    const test::ApproverAgent approver;
    const SecretBytes key(as_bytes("the key of a group, 32 bytes lon"));
    ApprovalList list{
        .group = {}, .epoch = 1, .sequence = 1, .platforms = {host.present()}, .labels = {}, .signature = {}};
    host.measure();
    const hwtpm::Approval updated = host.present();
    REQUIRE(updated.values != list.platforms.front().values);

    // Sealed for a platform that is not the present one.
    auto made = host.with([&](Loop& loop, hwtpm::RootOfTrust& root) {
        return loop.run(protect_group_key(root, key.clone(), approver.key.spki(), approver.sign(list)));
    });
    REQUIRE(made);
    GroupProtection group = *made;
    CHECK(host.open(group).error().code == Errc::pcr_mismatch);
    host.reboot();
    CHECK(host.open(group).value().equals(key.view()));

    list.sequence = 2;
    list.platforms.push_back(updated);
    auto approved = host.with([&](Loop& loop, hwtpm::RootOfTrust& root) {
        std::optional<SecretBytes> in_hand;
        if (version == TpmVersion::tpm12) {
            in_hand.emplace(key.clone());
        }
        return loop.run(update_group(root, group, approver.sign(list), std::move(in_hand)));
    });
    REQUIRE(approved);
    CHECK(host.open(*approved).value().equals(key.view()));
    host.measure();
    CHECK(host.open(*approved).value().equals(key.view()));
    CHECK(host.open(group).error().code == Errc::pcr_mismatch);

    list.epoch = 2; // the platform before the update is revoked
    list.sequence = 3;
    list.platforms = {updated};
    auto revoked = host.with([&](Loop& loop, hwtpm::RootOfTrust& root) {
        std::optional<SecretBytes> in_hand(key.clone());
        return loop.run(update_group(root, *approved, approver.sign(list), std::move(in_hand)));
    });
    REQUIRE(revoked);
    CHECK(host.open(*revoked).value().equals(key.view()));
    host.reboot();
    CHECK(host.open(*revoked).error().code == Errc::pcr_mismatch);
}

} // namespace

TEST_SUITE("hwtpm-2.0") {
    TEST_CASE("2.0: a group's key over an update of the host and a revocation") { story(TpmVersion::tpm20); }
}

TEST_SUITE("hwtpm-1.2") {
    TEST_CASE("1.2: a group's key over an update of the host and a revocation") { story(TpmVersion::tpm12); }
}

} // namespace group_key_test
