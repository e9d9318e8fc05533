#include "util/utf8.hpp"

#include "check.hpp"

#include <string>

namespace util_utf8_test {

using namespace vtpmd;

TEST_SUITE("util") {
    TEST_CASE("utf8: what prints") {
        for (const char* good : {"", "a", "web server 3", "Zürich", "日本語", "имя", "\xF0\x9F\x94\x92", "~",
                                 "\xC2\xA1", "\xED\x9F\xBF", "\xEE\x80\x80", "\xEF\xBF\xBD", "\xF4\x8F\xBF\xBD"}) {
            CAPTURE(good);
            CHECK(is_printable_utf8(good));
        }
    }
    TEST_CASE("utf8: control and format characters, other blanks, noncharacters") {
        for (const char* bad :
             {"\n", "a\tb", "\x1B[31m", "\x7F", "\xC2\x80", "\xC2\x9F", "\xC2\xA0", "\xC2\xAD", "\xE2\x80\x8B",
              "\xE2\x80\xAE", "\xE2\x81\xA6", "\xE2\x80\xA8", "\xE3\x80\x80", "\xEF\xBB\xBF", "\xEF\xBF\xBE",
              "\xEF\xB7\x90", "\xF3\xA0\x81\x81", "\xF4\x8F\xBF\xBF"}) {
            CAPTURE(bad);
            CHECK_FALSE(is_printable_utf8(bad));
            CHECK_FALSE(is_printable_utf8(std::string("x") + bad + "y"));
        }
        CHECK_FALSE(is_printable_utf8(std::string_view("a\0b", 3)));
    }
    TEST_CASE("utf8: what is malformed, overlong, a surrogate, beyond the last plane") {
        for (const char* bad : {"\x80", "\xBF", "\xC3", "\xC3(", "\xC0\xAF", "\xC1\xBF", "\xE0\x80\xAF", "\xE2\x82",
                                "\xE2(\xA1", "\xED\xA0\x80", "\xED\xBF\xBF", "\xF0\x80\x80\xAF", "\xF0\x9F\x94",
                                "\xF4\x90\x80\x80", "\xF5\x80\x80\x80", "\xF8\x88\x80\x80\x80", "\xFE", "\xFF"}) {
            CAPTURE(bad);
            CHECK_FALSE(is_printable_utf8(bad));
        }
    }
}

} // namespace util_utf8_test
