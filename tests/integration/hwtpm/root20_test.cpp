// RootOfTrust on a real swtpm 2.0.
#include "check.hpp"
#include "scripted_device.hpp"
#include "support.hpp"
#include "swtpm_process.hpp"

#include "hwtpm/device.hpp"
#include "hwtpm/drivers/driver_spec.hpp"
#include "hwtpm/drivers/swtpm_device.hpp"
#include "hwtpm/queue/hardware_root.hpp"
#include "tpm/commands.hpp"
#include "tpm/header.hpp"
#include "util/text.hpp"
#include "util/wire.hpp"

#include <algorithm>
#include <fstream>

namespace root20_test {

using namespace vtpmd;
using namespace vtpmd::hwtpm;
using vtpmd::test::Loop;
using vtpmd::test::make_counter;

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

/// One command beside the root's back, on a connection of its own. swtpm serves one connection at a time, so no root may be
/// open.
Bytes raw(const std::string& socket, ByteView command) {
    Loop loop;
    DriverSpec spec{.kind = DriverKind::swtpm_unix, .path = socket};
    auto device = open_swtpm(spec, 0, loop.log);
    REQUIRE(device);
    auto answer = (*device)->transmit(command, std::chrono::seconds(10));
    REQUIRE(answer);
    WireReader r(*answer);
    r.skip(6);
    REQUIRE(r.be32() == 0);
    return *answer;
}

/// TPM2_PCR_Extend of the sha256 bank, as firmware would.
void extend(const std::string& socket, unsigned pcr) {
    const tpm::HashValue value{0x000B, Bytes(32, std::byte{0x5A})};
    (void)raw(socket, tpm::pcr_extend_command(pcr, std::span(&value, 1)));
}

/// TPM2_HierarchyChangeAuth of the owner, from the empty value.
void set_owner_auth(const std::string& socket, std::string_view auth) {
    WireWriter w;
    w.be16(0x8002).be32(0).be32(0x129).be32(0x40000001).be32(9).be32(0x40000009).be16(0).u8(0).be16(0);
    w.be16(static_cast<std::uint16_t>(auth.size())).bytes(as_bytes(auth));
    w.patch_be32(2, static_cast<std::uint32_t>(w.size()));
    (void)raw(socket, w.view());
}

/// Handles of a kind: TPM2_GetCapability(TPM_CAP_HANDLES).
std::vector<std::uint32_t> handles_of(const std::string& socket, std::uint32_t first) {
    WireWriter w;
    w.be16(0x8001).be32(22).be32(0x17A).be32(1).be32(first).be32(64);
    const Bytes answer = raw(socket, w.view());
    WireReader r(answer);
    r.skip(10 + 1 + 4);
    std::vector<std::uint32_t> out(r.be32());
    for (auto& h : out) {
        h = r.be32();
    }
    REQUIRE(r.expect_end());
    return out;
}

std::unique_ptr<RootOfTrust> open_recorded(Loop& loop, const std::string& socket, fakes::BusRecord& record) {
    DriverSpec spec{.kind = DriverKind::swtpm_unix, .path = socket};
    auto device = open_swtpm(spec, 0, loop.log);
    REQUIRE(device);
    auto root = make_root20(std::make_unique<fakes::RecordingDevice>(std::move(*device), record), {},
                            loop.io.get_executor(), loop.log);
    REQUIRE(root);
    return std::move(*root);
}

constexpr std::uint32_t transient_first = 0x80000000;
constexpr std::uint32_t loaded_sessions = 0x02000000;

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
            counter = make_counter(loop, *root).value();
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
        auto again = make_counter(loop, *root).value();
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
            counter = make_counter(loop, *root).value();
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

    TEST_CASE("a PCR that changed is named, with both values; put back, the seal opens again") {
        fakes::SwtpmProcess swtpm;
        extend(swtpm.socket(), 4);
        extend(swtpm.socket(), 7);
        SealedSecret sealed;
        {
            Loop loop;
            auto root = open(loop, swtpm.driver());
            auto made = loop.run(root->seal(a_secret(), to_pcrs("sha256:4,7")));
            REQUIRE(made);
            sealed = std::move(*made);
            loop.run(root->close());
        }
        extend(swtpm.socket(), 7);
        {
            Loop loop;
            auto root = open(loop, swtpm.driver());
            auto refused = loop.run(root->unseal(sealed));
            REQUIRE(!refused);
            CHECK(refused.error().code == Errc::pcr_mismatch);
            CHECK(refused.error().message.find("sha256:7 sealed=" + to_hex(sealed.values[1].digest) + " now=") !=
                  std::string::npos);
            CHECK(refused.error().message.find("sha256:4") == std::string::npos);
            loop.run(root->close());
        }
        swtpm.stop();
        swtpm.start();
        extend(swtpm.socket(), 4);
        extend(swtpm.socket(), 7);
        Loop loop;
        auto root = open(loop, swtpm.driver());
        CHECK(loop.run(root->unseal(sealed)).value().equals(a_secret().view()));
        // The record of the values is for the message only: altering it opens nothing and hides nothing.
        SealedSecret altered = sealed;
        altered.selection = parse_pcr_selection("sha256:4").value();
        auto refused = loop.run(root->unseal(altered));
        REQUIRE(!refused);
        CHECK(refused.error().code == Errc::pcr_mismatch);
        loop.run(root->close());
    }

    TEST_CASE("PCRs that nothing was measured into, and banks that are not there, are refused by name") {
        fakes::SwtpmProcess swtpm;
        extend(swtpm.socket(), 0);
        Loop loop;
        auto root = open(loop, swtpm.driver());
        auto zero = loop.run(root->seal(a_secret(), to_pcrs("sha256:0,2,17")));
        REQUIRE(!zero);
        CHECK(zero.error().code == Errc::pcr_mismatch);
        CHECK(zero.error().message.find("sha256:2, sha256:17") != std::string::npos);
        auto allowed = loop.run(root->seal(a_secret(), to_pcrs("sha256:0,2,17", true)));
        REQUIRE(allowed);
        CHECK(loop.run(root->unseal(*allowed)).value().equals(a_secret().view()));
        const auto banks = root->banks();
        CHECK(std::find(banks.begin(), banks.end(), HashAlg::sha256) != banks.end());
        RootOfTrust::SealOptions no_bank = to_pcrs("sha256:0");
        no_bank.selection.bank = static_cast<HashAlg>(0x0012); // SM3
        CHECK(loop.run(root->seal(a_secret(), no_bank)).error().code == Errc::pcr_mismatch);
        CHECK(loop.run(root->seal(SecretBytes(129), to_pcrs("none"))).error().code == Errc::too_large);
        CHECK(loop.run(root->seal(SecretBytes(), to_pcrs("none"))).error().code == Errc::too_large);
        auto longest = loop.run(root->seal(SecretBytes(128), to_pcrs("sha256:0")));
        REQUIRE(longest);
        CHECK(loop.run(root->unseal(*longest)).value().size() == 128);
        loop.run(root->close());
    }

    TEST_CASE("another TPM's seal is a mismatch, a damaged one too; the parts' identities differ") {
        fakes::SwtpmProcess one;
        fakes::SwtpmProcess other;
        Loop loop;
        auto root = open(loop, one.driver());
        auto stranger = open(loop, other.driver());
        auto sealed = loop.run(root->seal(a_secret(), to_pcrs("none")));
        REQUIRE(sealed);
        auto refused = loop.run(stranger->unseal(*sealed));
        REQUIRE(!refused);
        CHECK(refused.error().code == Errc::mismatch);
        CHECK(refused.error().message.find("cleared") != std::string::npos);
        CHECK(loop.run(root->identity()).value() != loop.run(stranger->identity()).value());
        SealedSecret damaged = *sealed;
        damaged.blob[damaged.blob.size() - 5] ^= std::byte{1};
        CHECK(loop.run(root->unseal(damaged)).error().code == Errc::mismatch);
        damaged.blob.resize(10);
        CHECK(loop.run(root->unseal(damaged)).error().code == Errc::corrupt);
        auto counter = make_counter(loop, *root).value();
        CHECK(loop.run(stranger->counter_read(counter)).error().code == Errc::not_found);
        CounterRef guessed{counter.handle, Bytes(32, std::byte{7})};
        CHECK(loop.run(root->counter_increment(guessed)).error().code == Errc::mismatch);
        CHECK(loop.run(root->counter_increment(counter))); // and it locks nobody out
        loop.run(root->close());
        loop.run(stranger->close());
    }

    TEST_CASE("no secret is in clear on the bus, nor the counter's authorisation") {
        fakes::SwtpmProcess swtpm;
        extend(swtpm.socket(), 7);
        Loop loop;
        fakes::BusRecord bus;
        auto root = open_recorded(loop, swtpm.socket(), bus);
        for (const char* pcrs : {"none", "sha256:7"}) {
            auto sealed = loop.run(root->seal(a_secret(), to_pcrs(pcrs)));
            REQUIRE(sealed);
            CHECK(loop.run(root->unseal(*sealed)).value().equals(a_secret().view()));
        }
        auto random = loop.run(root->random(64)).value();
        auto counter = make_counter(loop, *root).value();
        (void)loop.run(root->counter_increment(counter)).value();
        loop.run(root->close());
        CHECK(bus.count(0x153) == 2); // TPM2_Create
        CHECK(bus.count(0x15E) == 4); // TPM2_Unseal: each seal is tried once
        for (ByteView secret :
             {a_secret().view(), a_secret().view().first(16), ByteView(counter.auth), ByteView(random)}) {
            CHECK_FALSE(bus.contains(secret.first(16)));
        }
        // What is not secret is there to be found: this search can find things.
        CHECK(bus.contains(Bytes(16, std::byte{0})));
    }

    TEST_CASE("two hundred seals and unseals, refused ones among them, leave no handle behind") {
        fakes::SwtpmProcess swtpm;
        extend(swtpm.socket(), 7);
        fakes::SwtpmProcess other;
        {
            Loop loop;
            auto root = open(loop, swtpm.driver());
            auto stranger = open(loop, other.driver());
            auto sealed = loop.run(root->seal(a_secret(), to_pcrs("sha256:7"))).value();
            SealedSecret altered = sealed;
            altered.selection = parse_pcr_selection("sha256:4").value();
            auto foreign = loop.run(stranger->seal(a_secret(), to_pcrs("none"))).value();
            loop.run(stranger->close());
            for (int i = 0; i < 200; ++i) {
                REQUIRE(loop.run(root->unseal(sealed)));
                REQUIRE(loop.run(root->seal(a_secret(), to_pcrs(i % 2 == 0 ? "none" : "sha256:7"))));
                if (i % 10 == 0) {
                    REQUIRE(!loop.run(root->unseal(altered)));
                    REQUIRE(!loop.run(root->unseal(foreign)));
                }
            }
            loop.run(root->close());
        }
        CHECK(handles_of(swtpm.socket(), transient_first).empty());
        CHECK(handles_of(swtpm.socket(), loaded_sessions).empty());
        CHECK(handles_of(swtpm.socket(), 0x81000000) == std::vector<std::uint32_t>{0x81000001});
    }

    TEST_CASE("a TPM that is power-cut and comes back is started anew; callers notice nothing, or an error") {
        fakes::SwtpmProcess swtpm;
        Loop loop;
        auto root = open(loop, swtpm.driver());
        auto sealed = loop.run(root->seal(a_secret(), to_pcrs("none"))).value();
        auto counter = make_counter(loop, *root).value();
        const auto before = loop.run(root->counter_increment(counter)).value();
        swtpm.stop();
        auto gone = loop.run(root->random(8));
        REQUIRE(!gone);
        CHECK(gone.error().code == Errc::unavailable);
        CHECK(loop.run(root->counter_increment(counter)).error().code == Errc::unavailable);
        swtpm.start();
        CHECK(loop.run(root->unseal(sealed)).value().equals(a_secret().view()));
        CHECK(loop.run(root->counter_increment(counter)).value() == before + 1);
        swtpm.stop();
        swtpm.start(); // unnoticed in between: sessions and transient objects are gone
        CHECK(loop.run(root->counter_increment(counter)).value() == before + 2);
        loop.run(root->close());
    }

    TEST_CASE("a TPM exchanged behind our back is refused") {
        fakes::SwtpmProcess swtpm;
        Loop loop;
        auto root = open(loop, swtpm.driver());
        swtpm.stop();
        std::filesystem::remove_all(swtpm.state_dir());
        std::filesystem::create_directory(swtpm.state_dir());
        swtpm.start();
        auto r = loop.run(root->random(8));
        REQUIRE(!r);
        CHECK(r.error().code == Errc::mismatch);
        loop.run(root->close());
    }

    TEST_CASE("a counter step whose answer is lost is not made again by itself") {
        fakes::SwtpmProcess swtpm;
        Loop loop;
        fakes::BusRecord bus;
        auto root = open_recorded(loop, swtpm.socket(), bus);
        auto counter = make_counter(loop, *root).value();
        const auto before = loop.run(root->counter_read(counter)).value();
        {
            std::lock_guard lock(bus.mutex);
            bus.fault = [](ByteView command) -> Result<void> {
                if (tpm::peek_header(command).code == 0x134) {
                    return make_error(Errc::closed, "lost");
                }
                return {};
            };
        }
        const std::size_t steps = bus.count(0x134);
        CHECK(loop.run(root->counter_increment(counter)).error().code == Errc::closed);
        {
            std::lock_guard lock(bus.mutex);
            bus.fault = nullptr;
        }
        CHECK(bus.count(0x134) == steps);
        CHECK(loop.run(root->counter_read(counter)).value() == before);
        CHECK(loop.run(root->counter_increment(counter)).value() == before + 1);
        loop.run(root->close());
    }

    TEST_CASE("what a killed process left in the TPM is flushed at start") {
        fakes::SwtpmProcess swtpm;
        WireWriter session; // TPM2_StartAuthSession, unbound, unsalted HMAC
        session.be16(0x8001).be32(0).be32(0x176).be32(0x40000007).be32(0x40000007).be16(16).zeros(16).be16(0);
        session.u8(0).be16(0x10).be16(0x0B);
        session.patch_be32(2, static_cast<std::uint32_t>(session.size()));
        for (int i = 0; i < 3; ++i) {
            (void)raw(swtpm.socket(), session.view());
        }
        CHECK(handles_of(swtpm.socket(), loaded_sessions).size() == 3);
        Loop loop;
        auto root = open(loop, swtpm.driver());
        CHECK(loop.logged("flushed 3"));
        CHECK(loop.run(root->random(8)));
        loop.run(root->close());
    }

    TEST_CASE("the owner's authorisation: right, wrong, missing; its value is in no message") {
        fakes::SwtpmProcess swtpm;
        set_owner_auth(swtpm.socket(), "open-sesame");
        Loop loop;
        OpenOptions options{.driver = swtpm.driver(), .owner_auth = "text:wrong-word"};
        for (const char* auth : {"text:wrong-word", "well-known"}) {
            options.owner_auth = auth;
            auto refused = open_root(options, loop.io.get_executor(), loop.log, true);
            REQUIRE(!refused);
            CHECK(refused.error().code == Errc::permission);
            CHECK(refused.error().message.find("--owner-auth") != std::string::npos);
        }
        options.owner_auth = "text:open-sesame";
        auto root = open_root(options, loop.io.get_executor(), loop.log, true);
        REQUIRE(root);
        CHECK(make_counter(loop, **root));
        loop.run((*root)->close());
        root = make_error(Errc::closed, "");
        // The storage key is persistent now: sealing needs no owner.
        options.owner_auth = "well-known";
        root = open_root(options, loop.io.get_executor(), loop.log, true);
        REQUIRE(root);
        CHECK(loop.run((*root)->seal(a_secret(), to_pcrs("none"))));
        CHECK(make_counter(loop, **root).error().code == Errc::permission);
        loop.run((*root)->close());
        CHECK_FALSE(loop.logged("sesame"));
        CHECK_FALSE(loop.logged("wrong-word"));
    }

    TEST_CASE("swtpm that is not powered on is, through its control channel; the locality is set there") {
        fakes::SwtpmProcess swtpm({.powered = false});
        Loop loop;
        OpenOptions options{.driver = swtpm.driver(), .locality = 2};
        auto root = open_root(options, loop.io.get_executor(), loop.log, true);
        REQUIRE(root);
        CHECK(loop.run((*root)->random(8)));
        loop.run((*root)->close());
    }

    TEST_CASE("nobody at the socket: one line that says where") {
        Loop loop;
        for (const char* driver : {"swtpm:unix:/nonexistent/tpm.sock", "swtpm:tcp:127.0.0.1:1"}) {
            auto r = open_root(OpenOptions{.driver = driver}, loop.io.get_executor(), loop.log, true);
            REQUIRE(!r);
            CHECK(r.error().code == Errc::unavailable);
            CHECK(r.error().message.find(driver) != std::string::npos);
            CHECK(r.error().message.find('\n') == std::string::npos);
        }
    }
}

} // namespace root20_test
