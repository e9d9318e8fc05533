#include "check.hpp"
#include "util/text.hpp"
#include "util/uuid.hpp"

namespace util_text_test {

using namespace vtpmd;

TEST_SUITE("util") {
    TEST_CASE("text: hexadecimal both ways") {
        auto bytes = from_hex("00ff7fA0");
        REQUIRE(bytes);
        CHECK(to_hex(*bytes) == "00ff7fa0");
        CHECK(from_hex("")->empty());
        CHECK(from_hex("abc").error().code == Errc::usage);
        CHECK(from_hex("0g").error().code == Errc::usage);
    }
    TEST_CASE("text: numbers are whole, and within their limit") {
        CHECK(parse_number("900", 1000).value() == 900);
        CHECK(parse_number("0xfed40000", UINT32_MAX).value() == 0xfed40000);
        CHECK(parse_number("18446744073709551615", UINT64_MAX).value() == UINT64_MAX);
        for (const char* bad : {"", "0x", "-1", "1 ", " 1", "1x", "1001", "18446744073709551616"}) {
            CAPTURE(bad);
            CHECK(parse_number(bad, 1000).error().code == Errc::usage);
        }
    }
    TEST_CASE("text: a peer's text cannot break a log line") {
        CHECK(printable("a\nb\x7f") == "a\\x0ab\\x7f");
        CHECK(printable("abcdef", 3) == "abc...");
        CHECK(printable("abc", 3) == "abc");
        CHECK(printable("Zürich \xc3") == "Zürich \\xc3");
        CHECK(printable("Zürich", 2) == "Z..."); // no half character
        CHECK(printable("\x9b\x1b", 4) == "\\x9b...");
    }
    TEST_CASE("text: split keeps empty parts") {
        CHECK(split("a,,b", ',') == std::vector<std::string_view>{"a", "", "b"});
        CHECK(split("", ',').size() == 1);
    }
    TEST_CASE("uuid: text form, either case, nothing else") {
        auto u = parse_uuid("01234567-89AB-cdef-0123-456789abcdef");
        REQUIRE(u);
        CHECK(to_string(*u) == "01234567-89ab-cdef-0123-456789abcdef");
        CHECK(to_string(Uuid{}) == "00000000-0000-0000-0000-000000000000");
        CHECK(to_string(*parse_uuid("FEDCBA98-7654-3210-0f1e-2D3C4B5A6978")) == "fedcba98-7654-3210-0f1e-2d3c4b5a6978");
        for (const char* bad : {"", "0123456789abcdef0123456789abcdef", "{01234567-89ab-cdef-0123-456789abcdef}",
                                "01234567-89ab-cdef-0123-456789abcdeg", "01234567-89ab-cdef-0123-456789abcde",
                                "01234567-89ab-cdef-0123-456789abcdef0", "0123456789-ab-cdef-0123-456789abcde"}) {
            CAPTURE(bad);
            CHECK(parse_uuid(bad).error().code == Errc::usage);
        }
    }
    TEST_CASE("uuid: random ones are version 4 and differ") {
        Uuid a = random_uuid();
        CHECK(a != random_uuid());
        CHECK(to_string(a)[14] == '4');
    }
}

} // namespace util_text_test
