#include "manager/options.hpp"

#include <doctest/doctest.h>

namespace manager_options_test {

using namespace vtpmd;
using namespace vtpmd::manager;

TEST_SUITE("manager") {
    TEST_CASE("freshness option: every form, there and back") {
        for (const char* text :
             {"off", "strict", "strict:0", "strict:1", "strict:100000000", "window:1", "window:900", "window:86400"}) {
            auto policy = parse_freshness(text);
            REQUIRE(policy.has_value());
            CHECK(to_string(*policy) == text);
        }
        CHECK(to_string(parse_freshness("window").value()) == "window:900");
        CHECK(to_string(parse_freshness("strict:10000").value()) == "strict");
        CHECK(parse_freshness("strict:7")->changes_a_day == 7);
    }
    TEST_CASE("freshness option: anything else is refused") {
        for (const char* text : {"", "on", "window:", "window:0", "window:-1", "window:1s", "window:31536001",
                                 "strict:", "strict:-1", "strict:100000001", "Strict", "off "}) {
            auto policy = parse_freshness(text);
            INFO(text);
            REQUIRE(policy.has_error());
            CHECK(policy.error().code == Errc::usage);
        }
    }
}

} // namespace manager_options_test
