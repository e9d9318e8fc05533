#include "hex.hpp"
#include "tpm/header.hpp"

#include <doctest/doctest.h>

namespace tpm_header_test {

using namespace vtpmd;
using namespace vtpmd::tpm;
using test::hex;

TEST_SUITE("tpm") {
    TEST_CASE("header: a command of each family is read") {
        auto v12 = parse_header(hex("00c1 0000000e 00000046 00000010")).value();
        CHECK(v12 == Header{.tag = tag_rqu_command, .size = 14, .code = ord::get_random});
        auto v20 = parse_header(hex("8001 0000000c 0000017b 0010")).value();
        CHECK(v20 == Header{.tag = st_no_sessions, .size = 12, .code = cc::get_random});
    }
    TEST_CASE("header: truncation at every length, a trailing byte and too much are refused") {
        const Bytes whole = hex("8001 0000000c 0000017b 0010");
        for (std::size_t n = 0; n < whole.size(); ++n) {
            auto h = parse_header(ByteView(whole).first(n));
            REQUIRE_FALSE(h.has_value());
            CHECK(h.error().code == Errc::protocol);
        }
        CHECK(parse_header(hex("8001 0000000c 0000017b 0010 00")).error().code == Errc::protocol);
        CHECK(parse_header(Bytes(packet_limit + 1)).error().code == Errc::too_large);
    }
    TEST_CASE("header: a peek gives zeros for what is not there") {
        CHECK(peek_header({}) == Header{});
        CHECK(peek_header(hex("8001 0000")) == Header{.tag = 0x8001});
    }
    TEST_CASE("header: command tags belong to one family") {
        for (unsigned tag = 0; tag <= 0xffff; ++tag) {
            const auto t = static_cast<std::uint16_t>(tag);
            CHECK(is_command_tag(TpmVersion::tpm12, t) == (t >= 0xc1 && t <= 0xc3));
            CHECK(is_command_tag(TpmVersion::tpm20, t) == (t == 0x8001 || t == 0x8002));
        }
    }
    TEST_CASE("header: error responses have their family's tag and code") {
        CHECK(error_response(TpmVersion::tpm12, Refusal::bad_size) == hex("00c4 0000000a 00000019"));
        CHECK(error_response(TpmVersion::tpm20, Refusal::bad_size) == hex("8001 0000000a 00000142"));
        CHECK(error_response(TpmVersion::tpm12, Refusal::disabled) == hex("00c4 0000000a 00000008"));
        CHECK(error_response(TpmVersion::tpm20, Refusal::canceled) == hex("8001 0000000a 00000909"));
        CHECK(error_response(TpmVersion::tpm20, Refusal::bad_tag) == hex("00c4 0000000a 0000001e"));
    }
    TEST_CASE("header: every refusal gives a well-formed response with an error in it") {
        for (auto v : {TpmVersion::tpm12, TpmVersion::tpm20}) {
            for (auto r :
                 {Refusal::failure, Refusal::bad_size, Refusal::bad_tag, Refusal::bad_ordinal, Refusal::disabled,
                  Refusal::bad_locality, Refusal::not_started, Refusal::retry, Refusal::canceled}) {
                const Bytes response = error_response(v, r);
                CHECK(is_well_formed_response(v, response));
                CHECK(peek_header(response).code != 0);
            }
        }
    }
    TEST_CASE("header: what is no response of the family is told") {
        CHECK(is_well_formed_response(TpmVersion::tpm20, hex("8002 0000000a 00000000")));
        CHECK_FALSE(is_well_formed_response(TpmVersion::tpm20, hex("8002 0000000b 00000000")));
        CHECK_FALSE(is_well_formed_response(TpmVersion::tpm20, hex("8002 0000000a 000000")));
        CHECK_FALSE(is_well_formed_response(TpmVersion::tpm20, hex("00c4 0000000a 00000009")));
        CHECK_FALSE(is_well_formed_response(TpmVersion::tpm12, hex("00c1 0000000a 00000000")));
        CHECK_FALSE(is_well_formed_response(TpmVersion::tpm12, hex("8001 0000000a 00000000")));
        CHECK_FALSE(is_well_formed_response(TpmVersion::tpm12, {}));
    }
}

} // namespace tpm_header_test
