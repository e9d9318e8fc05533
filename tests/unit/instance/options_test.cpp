#include "check.hpp"
#include "instance/options.hpp"

namespace instance_options_test {

using namespace vtpmd;
using namespace vtpmd::instance;

TEST_SUITE("instance") {
    TEST_CASE("PCR lists") {
        CHECK(parse_pcr_list("none")->empty());
        CHECK(parse_pcr_list("all")->size() == 24);
        CHECK(*parse_pcr_list("5,12-16") == std::vector<unsigned>{5, 12, 13, 14, 15, 16});
        CHECK(*parse_pcr_list("7,3,7,2-4") == std::vector<unsigned>{2, 3, 4, 7});
        CHECK(*parse_pcr_list("16-12") == std::vector<unsigned>{12, 13, 14, 15, 16});
        CHECK(*parse_pcr_list("none,5") == std::vector<unsigned>{5});
        CHECK(parse_pcr_list("5,none")->empty());
        CHECK(parse_pcr_list("5,all")->size() == 24);
        CHECK(*parse_pcr_list("all,none,7") == std::vector<unsigned>{7});
        for (const char* bad : {"", ",", "24", "5-", "-5", "5,,6", "a", "0-24", "5 ,6", "nil,3"}) {
            CAPTURE(bad);
            REQUIRE_FALSE(parse_pcr_list(bad));
            CHECK(parse_pcr_list(bad).error().code == Errc::usage);
        }
    }

    TEST_CASE("PCR banks") {
        CHECK(*parse_pcr_banks("sha256") == std::vector<std::uint16_t>{0x0B});
        CHECK(*parse_pcr_banks("sha512,sha1,sha384,sha256") == std::vector<std::uint16_t>{0x0D, 0x04, 0x0C, 0x0B});
        for (const char* bad : {"", ",", "sha256,", "SHA256", "sha256 ,sha1", "sm3", "sha256,sha256", "0x0b", "none"}) {
            CAPTURE(bad);
            REQUIRE_FALSE(parse_pcr_banks(bad));
            CHECK(parse_pcr_banks(bad).error().code == Errc::usage);
            CHECK(parse_pcr_banks(bad).error().message.find("--pcr-banks") != std::string::npos);
        }
    }

    TEST_CASE("manager addresses") {
        CHECK(*parse_manager_address("unix:/run/m.sock") == ManagerAddress{std::nullopt, "/run/m.sock"});
        CHECK(*parse_manager_address("fd:5") == ManagerAddress{5, ""});
        CHECK(*parse_manager_address("fd:5,unix:/run/m.sock") == ManagerAddress{5, "/run/m.sock"});
        for (const char* bad :
             {"", "unix:", "unix:relative", "fd:", "fd:2", "fd:x", "fd:5,fd:6", "tcp:1", "unix:/a,unix:/b"}) {
            CAPTURE(bad);
            REQUIRE_FALSE(parse_manager_address(bad));
            CHECK(parse_manager_address(bad).error().code == Errc::usage);
        }
        CHECK(parse_manager_address("xen")->xen_handle == 0U);
        CHECK(parse_manager_address("xen:3")->xen_handle == 3U);
        CHECK(parse_manager_address("xen:").error().code == Errc::usage);
        CHECK(parse_manager_address("xen:x").error().code == Errc::usage);
    }

    TEST_CASE("startup modes") {
        CHECK(*parse_startup("clear") == Startup::clear);
        CHECK(*parse_startup("save") == Startup::save);
        CHECK(*parse_startup("deactivated") == Startup::deactivated);
        CHECK(parse_startup("state").error().code == Errc::usage);
    }
}

} // namespace instance_options_test
