#include "hex.hpp"
#include "tpm/commands.hpp"

#include <doctest/doctest.h>

namespace tpm_commands_test {

using namespace vtpmd;
using namespace vtpmd::tpm;
using test::hex;

namespace {

constexpr auto v12 = TpmVersion::tpm12;
constexpr auto v20 = TpmVersion::tpm20;

/// Cuts a good answer short at every length (the size field stays true to what is left) and adds a byte to it: every
/// time the parser must refuse.
template <typename Parse>
void check_refuses_damage(const Bytes& good, Parse parse) {
    REQUIRE(parse(good).has_value());
    const auto resized = [&](std::size_t n) {
        Bytes b = good;
        b.resize(n);
        if (n >= 6) {
            b[4] = static_cast<std::byte>(n >> 8);
            b[5] = static_cast<std::byte>(n);
        }
        return b;
    };
    for (std::size_t n = 0; n < good.size(); ++n) {
        CAPTURE(n);
        auto r = parse(resized(n));
        REQUIRE_FALSE(r.has_value());
        CHECK(r.error().code == Errc::protocol);
    }
    CHECK(parse(resized(good.size() + 1)).error().code == Errc::protocol);
}

} // namespace

TEST_SUITE("tpm") {
    TEST_CASE("commands: start-up, golden") {
        CHECK(startup_command(v12, StartupMode::clear) == hex("00c1 0000000c 00000099 0001"));
        CHECK(startup_command(v12, StartupMode::state) == hex("00c1 0000000c 00000099 0002"));
        CHECK(startup_command(v12, StartupMode::deactivated) == hex("00c1 0000000c 00000099 0003"));
        CHECK(startup_command(v20, StartupMode::clear) == hex("8001 0000000c 00000144 0000"));
        CHECK(startup_command(v20, StartupMode::state) == hex("8001 0000000c 00000144 0001"));
    }
    TEST_CASE("commands: saving state, golden") {
        CHECK(save_state_command() == hex("00c1 0000000a 00000098"));
        CHECK(shutdown_command(StartupMode::clear) == hex("8001 0000000c 00000145 0000"));
        CHECK(shutdown_command(StartupMode::state) == hex("8001 0000000c 00000145 0001"));
    }
    TEST_CASE("commands: randomness, golden and back") {
        CHECK(get_random_command(v12, 16) == hex("00c1 0000000e 00000046 00000010"));
        CHECK(get_random_command(v20, 16) == hex("8001 0000000c 0000017b 0010"));
        const Bytes r12 = hex("00c4 00000012 00000000 00000004 01020304");
        const Bytes r20 = hex("8001 00000010 00000000 0004 01020304");
        CHECK(parse_get_random(v12, r12).value() == hex("01020304"));
        CHECK(parse_get_random(v20, r20).value() == hex("01020304"));
        check_refuses_damage(r12, [](ByteView b) { return parse_get_random(v12, b); });
        check_refuses_damage(r20, [](ByteView b) { return parse_get_random(v20, b); });
    }
    TEST_CASE("commands: TPM 1.2 PCRs, golden and back") {
        Sha1Digest d{};
        d[19] = std::byte{0x77};
        const std::string zeros(38, '0');
        CHECK(extend_command(7, d) == hex("00c1 00000022 00000014 00000007" + zeros + "77"));
        CHECK(pcr_read_command(7) == hex("00c1 0000000e 00000015 00000007"));
        const Bytes r = hex("00c4 0000001e 00000000" + zeros + "77");
        CHECK(parse_pcr_value(r).value() == d);
        check_refuses_damage(r, [](ByteView b) { return parse_pcr_value(b); });
    }
    TEST_CASE("commands: one that is put together by hand, golden") {
        WireWriter w = begin_command(st_sessions, cc::create_primary);
        w.be32(rh::platform);
        put_empty_password(w);
        CHECK(finish_command(w) == hex("8002 0000001b 00000131 4000000c 00000009 40000009 0000 00 0000"));
    }
    TEST_CASE("commands: TPM 2.0 extend, golden") {
        const std::vector<HashValue> values{{alg::sha1, Bytes(20)}, {alg::sha256, Bytes(32)}};
        CHECK(pcr_extend_command(16, values) == hex("8002 00000057 00000182 00000010"
                                                    "00000009 40000009 0000 00 0000"
                                                    "00000002 0004" +
                                                    std::string(40, '0') + "000b" + std::string(64, '0')));
    }
    TEST_CASE("commands: TPM 2.0 PCR allocation, golden and back") {
        const std::vector<PcrBank> banks{{alg::sha1, 0}, {alg::sha256, 0xFFFFFF}};
        CHECK(pcr_allocate_command(banks) == hex("8002 0000002b 0000012b 4000000c 00000009 40000009 0000 00 0000"
                                                 "00000002 0004 03 000000 000b 03 ffffff"));
        const Bytes r = hex("8002 00000020 00000000 0000000d 01 00000018 00000380 00000780 0000 01 0000");
        CHECK(parse_pcr_allocate(r).value());
        Bytes refused = r;
        refused[14] = std::byte{0};
        CHECK_FALSE(parse_pcr_allocate(refused).value());
        for (std::size_t n = 0; n < r.size(); ++n) {
            CAPTURE(n);
            CHECK_FALSE(parse_pcr_allocate(ByteView(r).first(n)).has_value());
        }
    }
    TEST_CASE("commands: TPM 2.0 PCR read, golden and back") {
        const std::vector<PcrBank> banks{{alg::sha1, 1}, {alg::sha256, 0x810001}};
        CHECK(pcr_read_command(banks) == hex("8001 0000001a 0000017e 00000002 0004 03 010000 000b 03 010081"));
        const Bytes r = hex("8001 0000002d 00000000 00000015"
                            "00000001 000b 03 010080 00000002 0004 aabbccdd 0009 112233445566778899");
        const PcrReadReply reply = parse_pcr_read(r).value();
        CHECK(reply.update_counter == 0x15);
        CHECK(reply.banks == std::vector<PcrBank>{{alg::sha256, 0x800001}});
        CHECK(reply.digests == std::vector<Bytes>{hex("aabbccdd"), hex("112233445566778899")});
        check_refuses_damage(r, [](ByteView b) { return parse_pcr_read(b); });
    }
    TEST_CASE("commands: a PCR read whose digests do not match its selection is refused") {
        CHECK(
            parse_pcr_read(hex("8001 0000001e 00000000 00000015 00000001 000b 03 010080 00000001 0000")).error().code ==
            Errc::protocol);
        // sizeofSelect of 5, and more banks than anybody has
        CHECK(
            parse_pcr_read(hex("8001 0000001e 00000000 00000015 00000001 000b 05 0000000000 00000000")).error().code ==
            Errc::protocol);
        CHECK(parse_pcr_read(hex("8001 00000016 00000000 00000015 ffffffff 00000000")).error().code == Errc::protocol);
    }
    TEST_CASE("commands: PCR banks, golden and back") {
        CHECK(get_capability_pcrs_command() == hex("8001 00000016 0000017a 00000005 00000000 00000001"));
        const Bytes r = hex("8001 0000001f 00000000 00 00000005 00000002 0004 03 000000 000b 03 ffffff");
        CHECK(parse_capability_pcrs(r).value() == std::vector<PcrBank>{{alg::sha1, 0}, {alg::sha256, 0xffffff}});
        check_refuses_damage(r, [](ByteView b) { return parse_capability_pcrs(b); });
    }
    TEST_CASE("commands: a TPM's error code comes with the error") {
        auto e = check_response(hex("8001 0000000a 00000922"), "trying").error();
        CHECK(e.code == Errc::tpm);
        CHECK(e.detail == 0x922);
        CHECK(e.message.starts_with("trying"));
        CHECK(parse_pcr_value(hex("00c4 0000000a 00000026")).error().detail == rc12::invalid_postinit);
    }
    TEST_CASE("commands: digest sizes") {
        CHECK(digest_size(alg::sha1) == 20);
        CHECK(digest_size(alg::sha256) == 32);
        CHECK(digest_size(alg::sha384) == 48);
        CHECK(digest_size(alg::sha512) == 64);
        CHECK(digest_size(0x10) == 0);
    }
}

} // namespace tpm_commands_test
