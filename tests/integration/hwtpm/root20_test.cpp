// RootOfTrust on a real swtpm 2.0.
#include "check.hpp"
#include "support.hpp"
#include "swtpm_process.hpp"

#include "hwtpm/device.hpp"
#include "hwtpm/driver_spec.hpp"
#include "hwtpm/swtpm_device.hpp"
#include "util/wire.hpp"

#include <fstream>

using namespace vtpmd;
using namespace vtpmd::hwtpm;
using vtpmd::test::Loop;

namespace {

std::unique_ptr<RootOfTrust> open(Loop& loop, const std::string& driver) {
    OpenOptions options;
    options.driver = driver;
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

/// Extends a PCR's sha256 bank beside the root's back, as firmware would.
void extend(const std::string& socket, unsigned pcr) {
    Loop loop;
    DriverSpec spec{.kind = DriverKind::swtpm_unix, .path = socket};
    auto device = open_swtpm(spec, 0, loop.log);
    REQUIRE(device);
    WireWriter w;
    w.be16(0x8002).be32(0).be32(0x182).be32(pcr).be32(9).be32(0x40000009).be16(0).u8(0).be16(0);
    w.be32(1).be16(0x000B).bytes(Bytes(32, std::byte{0x5A}));
    w.patch_be32(2, static_cast<std::uint32_t>(w.size()));
    auto answer = (*device)->transmit(w.view(), std::chrono::seconds(10));
    REQUIRE(answer);
    WireReader r(*answer);
    r.skip(6);
    REQUIRE(r.be32() == 0);
}

} // namespace

TEST_SUITE("hwtpm-2.0") {
    TEST_CASE("seal and unseal, to no PCR and to some") {
        fakes::SwtpmProcess swtpm;
        extend(swtpm.socket(), 0);
        extend(swtpm.socket(), 7);
        Loop loop;
        auto root = open(loop, swtpm.driver());
        CHECK(root->version() == TpmVersion::tpm20);
        for (const char* pcrs : {"none", "sha256:0,7"}) {
            CAPTURE(pcrs);
            auto sealed = loop.run(root->seal(a_secret(), to_pcrs(pcrs)));
            REQUIRE(sealed);
            auto opened = loop.run(root->unseal(*sealed));
            REQUIRE(opened);
            CHECK(opened->equals(a_secret().view()));
        }
        loop.run(root->close());
    }

    TEST_CASE("the counter goes on over restarts and re-creation, random bytes and PCRs come") {
        fakes::SwtpmProcess swtpm;
        CounterRef counter;
        std::uint64_t last = 0;
        {
            Loop loop;
            auto root = open(loop, swtpm.driver());
            counter = loop.run(root->counter_create()).value();
            last = loop.run(root->counter_read(counter)).value();
            for (int i = 0; i < 3; ++i) {
                CHECK(loop.run(root->counter_increment(counter)).value() == last + 1);
                ++last;
            }
            CHECK(loop.run(root->random(100)).value().size() == 100);
            auto values = loop.run(root->pcr_read({{HashAlg::sha256, {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 23}}})).value();
            CHECK(values.size() == 11);
            loop.run(root->close());
        }
        swtpm.stop();
        swtpm.start();
        Loop loop;
        auto root = open(loop, swtpm.driver());
        CHECK(loop.run(root->counter_read(counter)).value() == last);
        REQUIRE(loop.run(root->counter_delete(counter)));
        CHECK(loop.run(root->counter_read(counter)).error().code == Errc::not_found);
        auto again = loop.run(root->counter_create()).value();
        CHECK(loop.run(root->counter_read(again)).value() > last);
        loop.run(root->close());
    }

    TEST_CASE("an embedded TPM keeps its counter, its seals and its measured boot") {
        fakes::TempDir dir;
        const std::string driver = "embedded:" + (dir.path() / "tpm").string();
        CounterRef counter;
        std::uint64_t last = 0;
        SealedSecret sealed;
        {
            Loop loop;
            OpenOptions options{.driver = driver};
            auto none = open_root(options, loop.io.get_executor(), loop.log, false);
            REQUIRE(!none);
            CHECK(none.error().code == Errc::not_found);
            auto root = open(loop, driver);
            CHECK(loop.logged("SOFTWARE"));
            auto second = open_root(options, loop.io.get_executor(), loop.log, true);
            REQUIRE(!second);
            CHECK(second.error().code == Errc::busy);
            counter = loop.run(root->counter_create()).value();
            last = loop.run(root->counter_increment(counter)).value();
            auto zero = loop.run(root->seal(a_secret(), to_pcrs("sha256:4")));
            REQUIRE(!zero);
            CHECK(zero.error().code == Errc::pcr_mismatch);
            loop.run(root->close());
        }
        auto measure = [&](std::string_view text) { std::ofstream(dir.path() / "tpm" / "measurements") << text; };
        const std::string digest(64, 'a');
        measure("# firmware\n4 " + digest + " # boot loader\n");
        {
            Loop loop;
            auto root = open(loop, driver);
            CHECK(loop.run(root->counter_read(counter)).value() == last);
            auto made = loop.run(root->seal(a_secret(), to_pcrs("sha256:4")));
            REQUIRE(made);
            sealed = std::move(*made);
            loop.run(root->close());
        }
        measure("4 " + digest + "\n4 " + digest + "\n");
        {
            Loop loop;
            auto root = open(loop, driver);
            auto refused = loop.run(root->unseal(sealed));
            REQUIRE(!refused);
            CHECK(refused.error().code == Errc::pcr_mismatch);
            CHECK(refused.error().message.find("sha256:4 sealed=") != std::string::npos);
            loop.run(root->close());
        }
        measure("4 " + digest + "\n");
        {
            Loop loop;
            auto root = open(loop, driver);
            CHECK(loop.run(root->unseal(sealed)).value().equals(a_secret().view()));
            loop.run(root->close());
        }
        // A damaged state is never replaced, not even when a fresh TPM would be allowed.
        const auto state = dir.path() / "tpm" / "tpm20.state";
        {
            std::fstream f(state, std::ios::in | std::ios::out | std::ios::binary);
            f.seekp(100);
            f.put('\x55');
        }
        Loop loop;
        auto damaged = open_root(OpenOptions{.driver = driver}, loop.io.get_executor(), loop.log, true);
        REQUIRE(!damaged);
        CHECK(damaged.error().code == Errc::corrupt);
        CHECK(damaged.error().message.find("tpm20.state") != std::string::npos);
    }
}
