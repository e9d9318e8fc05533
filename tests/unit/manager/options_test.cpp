#include "manager/options.hpp"

#include <doctest/doctest.h>

namespace manager_options_test {

using namespace vtpmd;
using namespace vtpmd::manager;

TEST_SUITE("manager") {
    TEST_CASE("freshness option: every form, there and back") {
        for (const char* text : {"off", "strict", "window:1", "window:900", "window:86400"}) {
            auto policy = parse_freshness(text);
            REQUIRE(policy.has_value());
            CHECK(to_string(*policy) == text);
        }
        CHECK(to_string(parse_freshness("window").value()) == "window:900");
    }
    TEST_CASE("freshness option: anything else is refused") {
        for (const char* text :
             {"", "on", "window:", "window:0", "window:-1", "window:1s", "window:31536001", "Strict", "off "}) {
            auto policy = parse_freshness(text);
            INFO(text);
            REQUIRE(policy.has_error());
            CHECK(policy.error().code == Errc::usage);
        }
    }
}

} // namespace manager_options_test
