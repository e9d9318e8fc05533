#include "check.hpp"
#include "instance/command_line.hpp"

namespace instance_command_line_test {

using namespace vtpmd;
using namespace vtpmd::instance;

namespace {
constexpr const char* uuid = "01234567-89ab-cdef-0123-456789abcdef";

Result<InstanceOptions> parse(std::vector<std::string> arguments) {
    auto line = CommandLine::parse({option_specs(), std::move(arguments), ""});
    if (!line) {
        return line.error();
    }
    return parse_options(*line);
}
} // namespace

TEST_SUITE("instance") {
    TEST_CASE("command line: a UUID is enough") {
        auto o = parse({std::string("--uuid=") + uuid});
        REQUIRE(o);
        CHECK(o->state_path == std::string("/var/lib/vtpmd/") + uuid + ".img");
        CHECK(o->manager.path == "/run/vtpmd/manager.sock");
        REQUIRE(o->guests.size() == 1);
        CHECK(guest::to_string(o->guests[0]) == std::string("socket:unix:/run/vtpmd/") + uuid + ".sock");
        CHECK_FALSE(o->create);
        CHECK_FALSE(o->maintenance_commands);
        CHECK(o->startup == Startup::clear);
        CHECK(o->pcr_banks == std::vector<std::uint16_t>{0x0B, 0x0C});
    }
    TEST_CASE("command line: PCR banks are a TPM 2.0's") {
        const std::string name = std::string("--uuid=") + uuid;
        CHECK(parse({name, "--pcr-banks=sha1,sha256"})->pcr_banks == std::vector<std::uint16_t>{0x04, 0x0B});
        CHECK(parse({name, "--tpm-version=2.0", "--pcr-banks=sha1"})->pcr_banks == std::vector<std::uint16_t>{0x04});
        CHECK_FALSE(parse({name})->pcr_banks_of_this);
        CHECK(parse({name, "--pcr-banks=sha1"})->pcr_banks_of_this);
    }
    TEST_CASE("command line: everything, and the old spellings") {
        auto o = parse({std::string("--uuid=") + uuid, "--manager=unix:/m", "--state=/s", "--create",
                        "--tpm-version=1.2", "--guest=socket:tcp:7000", "--guest=socket:unix:/g", "--startup=save",
                        "hwinitpcrs=5,12-13", "maintcmds=1", "loglevel=debug"});
        REQUIRE(o);
        CHECK(o->manager.path == "/m");
        CHECK(o->state_path == "/s");
        CHECK(o->create);
        CHECK(o->tpm_version == TpmVersion::tpm12);
        CHECK(o->guests.size() == 2);
        CHECK(o->startup == Startup::save);
        CHECK(o->hwinitpcrs == std::vector<unsigned>{5, 12, 13});
        CHECK(o->maintenance_commands);
    }
    TEST_CASE("command line: who may connect by TCP") {
        const std::string name = std::string("--uuid=") + uuid;
        CHECK_FALSE(parse({name})->tcp_peers.anyone);
        CHECK(parse({name, "--tcp-anyone"})->tcp_peers.anyone);
        CHECK(parse({name, "--tcp-user=1234", "--tcp-user=root"})->tcp_peers.users == std::set<uid_t>{0, 1234});
        CHECK(parse({name, "--tcp-user=nobody-of-this-name"}).error().code == Errc::usage);
    }
    TEST_CASE("command line: where a guest has firmware, that starts the TPM") {
        const std::string name = std::string("--uuid=") + uuid;
        CHECK(parse({name, "--guest=qemu:/q"})->startup == Startup::wait);
        CHECK(parse({name, "--guest=qemu:/q", "--guest=socket:unix:/g"})->startup == Startup::wait);
        CHECK(parse({name, "--guest=socket:unix:/g", "--guest=qemu:/q"})->startup == Startup::wait);
        CHECK(parse({name, "--guest=socket:unix:/g"})->startup == Startup::clear);
        CHECK(parse({name, "--guest=qemu:/q", "--startup=clear"})->startup == Startup::clear);
    }
    TEST_CASE("command line: what is wrong is named") {
        CHECK(parse({}).error().message.find("--uuid") != std::string::npos);
        for (const char* bad :
             {"--uuid=x", "--tpm-version=3", "--guest=pigeon", "--guest=socket:tcp:0", "--startup=later",
              "--hwinitpcrs=24", "--pcr-banks=md5", "--maintcmds=2", "--manager=tcp:1", "--nonsense"}) {
            CAPTURE(bad);
            auto o =
                std::string(bad).starts_with("--uuid") ? parse({bad}) : parse({std::string("--uuid=") + uuid, bad});
            REQUIRE_FALSE(o);
            CHECK(exit_code(o.error().code) >= 64);
        }
    }
}

} // namespace instance_command_line_test
