// RootOfTrust on a real swtpm 1.2.
#include "check.hpp"
#include "scripted_device.hpp"
#include "support.hpp"
#include "swtpm_process.hpp"

#include "hwtpm/drivers/driver_spec.hpp"
#include "hwtpm/drivers/swtpm_device.hpp"
#include "hwtpm/queue/hardware_root.hpp"
#include "tpm/commands.hpp"
#include "tpm/header.hpp"
#include "util/text.hpp"
#include "util/wire.hpp"

namespace root12_test {

using namespace vtpmd;
using namespace vtpmd::hwtpm;
using vtpmd::test::Loop;
using vtpmd::test::make_counter;

namespace {

Bytes raw(const std::string& socket, ByteView command) {
    Loop loop;
    DriverSpec spec{.kind = DriverKind::swtpm_unix, .path = socket};
    auto device = open_swtpm(spec, 0, loop.log);
    REQUIRE(device);
    auto answer = (*device)->transmit(command, std::chrono::seconds(10));
    REQUIRE(answer);
    REQUIRE(tpm::peek_header(*answer).code == 0);
    return *answer;
}

void extend(const std::string& socket, unsigned pcr) {
    tpm::Sha1Digest digest;
    digest.fill(std::byte{0x5A});
    (void)raw(socket, tpm::extend_command(pcr, digest));
}

std::unique_ptr<RootOfTrust> open(Loop& loop, const fakes::SwtpmProcess& swtpm, unsigned locality = 0) {
    OpenOptions options{.driver = swtpm.driver(), .locality = locality};
    auto root = open_root(options, loop.io.get_executor(), loop.log, true);
    if (!root) {
        FAIL(root.error().message);
    }
    return std::move(*root);
}

SecretBytes a_secret() { return SecretBytes(as_bytes("0123456789abcdef-THE-GROUP-KEY-of-group-0")); }

RootOfTrust::SealOptions to_pcrs(std::string_view text, bool allow_zero = false) {
    return {.selection = parse_pcr_selection(text).value(), .allow_zero_pcrs = allow_zero};
}

} // namespace

TEST_SUITE("hwtpm-1.2") {
    TEST_CASE("1.2: ownership is taken; seals open, over a restart, and name the PCR that changed") {
        fakes::SwtpmProcess swtpm({.version = TpmVersion::tpm12});
        extend(swtpm.socket(), 4);
        std::vector<SealedSecret> kept;
        {
            Loop loop;
            auto root = open(loop, swtpm);
            CHECK(root->version() == TpmVersion::tpm12);
            CHECK(root->banks() == std::vector<HashAlg>{HashAlg::sha1});
            CHECK(loop.logged("ownership taken"));
            for (const char* pcrs : {"none", "sha1:4"}) {
                auto sealed = loop.run(root->seal(a_secret(), to_pcrs(pcrs)));
                REQUIRE(sealed);
                CHECK(loop.run(root->unseal(*sealed)).value().equals(a_secret().view()));
                kept.push_back(std::move(*sealed));
            }
            CHECK(loop.run(root->seal(a_secret(), to_pcrs("sha1:4,5"))).error().code == Errc::pcr_mismatch);
            CHECK(loop.run(root->seal(a_secret(), to_pcrs("sha256:4"))).error().code == Errc::pcr_mismatch);
            CHECK(loop.run(root->seal(SecretBytes(129), to_pcrs("none"))).error().code == Errc::too_large);
            CHECK(loop.run(root->seal(SecretBytes(128), to_pcrs("none"))));
            CHECK(loop.run(root->random(300)).value().size() == 300);
            loop.run(root->close());
        }
        swtpm.stop();
        swtpm.start();
        {
            Loop loop;
            auto root = open(loop, swtpm);
            CHECK_FALSE(loop.logged("ownership taken"));
            CHECK(loop.run(root->unseal(kept[0])).value().equals(a_secret().view()));
            auto refused = loop.run(root->unseal(kept[1]));
            REQUIRE(!refused);
            CHECK(refused.error().code == Errc::pcr_mismatch);
            CHECK(refused.error().message.find("sha1:4 sealed=" + to_hex(kept[1].values[0].digest) + " now=00") !=
                  std::string::npos);
            loop.run(root->close());
        }
        extend(swtpm.socket(), 4);
        Loop loop;
        auto root = open(loop, swtpm);
        CHECK(loop.run(root->unseal(kept[1])).value().equals(a_secret().view()));
        loop.run(root->close());
    }

    TEST_CASE("1.2: the counter goes on over power cuts and re-creation; it is ours alone") {
        fakes::SwtpmProcess swtpm({.version = TpmVersion::tpm12});
        Loop loop;
        auto root = open(loop, swtpm);
        auto counter = make_counter(loop, *root).value();
        const auto first = loop.run(root->counter_read(counter)).value();
        CHECK(loop.run(root->counter_increment(counter)).value() == first + 1);
        CounterRef guessed{counter.handle, Bytes(20, std::byte{7})};
        CHECK(loop.run(root->counter_increment(guessed)).error().code == Errc::mismatch);
        swtpm.stop();
        CHECK(loop.run(root->counter_read(counter)).error().code == Errc::unavailable);
        swtpm.start();
        CHECK(loop.run(root->counter_increment(counter)).value() == first + 2);
        REQUIRE(loop.run(root->counter_delete(counter)));
        CHECK(loop.run(root->counter_read(counter)).error().code == Errc::not_found);
        auto again = make_counter(loop, *root).value();
        CHECK(loop.run(root->counter_read(again)).value() > first + 2);
        loop.run(root->close());
    }

    TEST_CASE("1.2: another TPM's seal, a damaged one, a wrong owner, another locality") {
        fakes::SwtpmProcess one({.version = TpmVersion::tpm12});
        fakes::SwtpmProcess other({.version = TpmVersion::tpm12});
        SealedSecret at_two;
        {
            Loop loop;
            auto root = open(loop, one, 2);
            auto stranger = open(loop, other);
            auto sealed = loop.run(root->seal(a_secret(), to_pcrs("sha1:0", true)));
            REQUIRE(sealed);
            at_two = std::move(*sealed);
            auto foreign = loop.run(stranger->unseal(at_two));
            REQUIRE(!foreign);
            CHECK_MESSAGE(foreign.error().code == Errc::mismatch, foreign.error().message);
            SealedSecret damaged = at_two;
            damaged.blob[damaged.blob.size() - 5] ^= std::byte{1};
            CHECK(loop.run(root->unseal(damaged)).error().code == Errc::mismatch);
            damaged.blob.resize(12);
            CHECK(!loop.run(root->unseal(damaged)));
            CHECK(loop.run(root->unseal(at_two)).value().equals(a_secret().view()));
            CHECK(loop.run(root->identity()).value() != loop.run(stranger->identity()).value());
            loop.run(root->close());
            loop.run(stranger->close());
        }
        Loop loop;
        auto root = open(loop, one, 0);
        auto refused = loop.run(root->unseal(at_two));
        REQUIRE(!refused);
        CHECK(refused.error().code == Errc::permission);
        CHECK(refused.error().message.find("--tpm-locality") != std::string::npos);
        loop.run(root->close());
        root.reset();
        OpenOptions wrong{.driver = one.driver(), .owner_auth = "text:not-mine"};
        auto denied = open_root(wrong, loop.io.get_executor(), loop.log, true);
        REQUIRE(!denied);
        CHECK(denied.error().code == Errc::permission);
        CHECK(denied.error().message.find("--owner-auth") != std::string::npos);
        CHECK(denied.error().message.find("not-mine") == std::string::npos);
    }
}

} // namespace root12_test
