#include "check.hpp"
#include "manager/command_line.hpp"

namespace manager_command_line_test {

using namespace vtpmd;
using namespace vtpmd::manager;

namespace {
Result<ManagerOptions> parse(std::vector<std::string> arguments) {
    auto line = CommandLine::parse({option_specs(), std::move(arguments), ""});
    if (!line) {
        return line.error();
    }
    return parse_options(*line);
}
} // namespace

TEST_SUITE("manager") {
    TEST_CASE("command line: nothing at all is an installed host") {
        auto o = parse({});
        REQUIRE(o);
        CHECK(o->store_path == "/var/lib/vtpmd/manager.img");
        CHECK(o->listen_path == "/run/vtpmd/manager.sock");
        CHECK(o->tpm.driver == "auto");
        CHECK_FALSE(o->create);
        CHECK_FALSE(o->spawn.enabled);
        CHECK(o->freshness == FreshnessPolicy{});
    }
    TEST_CASE("command line: the word for a counter that is not there, and a look") {
        auto o = parse({"--accept-counter=none"});
        REQUIRE(o);
        CHECK(o->accept_no_counter);
        CHECK_FALSE(o->accept_counter);
        CHECK_FALSE(parse({"--accept-counter=0"})->accept_no_counter);
        CHECK(parse({"--accept-counter=nothing"}).error().code == Errc::usage);
        CHECK(parse({"--check"})->check);
        CHECK_FALSE(parse({})->check);
        CHECK(parse({"--check", "--create"}).error().code == Errc::usage);
    }
    TEST_CASE("command line: everything, and the old spellings") {
        auto o = parse({"--store=/s", "--create", "--store-size=33554432", "--tpm=swtpm:unix:/t", "tpmlocality=2",
                        "owner_auth=text:x", "srk_auth=hash:00", "--srk-handle=0x81000002", "--seal-pcrs=sha256:0,7",
                        "--freshness=strict", "--accept-counter=17", "--listen=unix:/l", "--auto-create",
                        "--spawn=01234567-89ab-cdef-0123-456789abcdef", "--state-dir=/d", "loglevel=debug"});
        REQUIRE(o);
        CHECK(o->create);
        CHECK(o->store_size == 33554432);
        CHECK(o->tpm.driver == "swtpm:unix:/t");
        CHECK(o->tpm.locality == 2);
        CHECK(o->tpm.owner_auth == "text:x");
        CHECK(o->tpm.srk_handle == 0x81000002);
        CHECK(o->seal_pcrs->pcrs == std::vector<unsigned>{0, 7});
        CHECK(o->freshness.mode == FreshnessPolicy::Mode::strict);
        CHECK(o->accept_counter == 17);
        CHECK(o->listen_path == "/l");
        CHECK(o->auto_create);
        CHECK(o->spawn.enabled);
        CHECK(o->spawn.only.size() == 1);
        CHECK(o->spawn.state_dir == "/d");
    }
    TEST_CASE("command line: --spawn alone means every registered vTPM") {
        auto o = parse({"--spawn"});
        REQUIRE(o);
        CHECK(o->spawn.enabled);
        CHECK(o->spawn.only.empty());
    }
    TEST_CASE("command line: Xen") {
        CHECK(parse({})->xen == XenOptions{});
        auto o = parse({"--xen=guests", "--spawn", "--tpm-version=1.2", "--locality-policy=*=0,2"});
        REQUIRE(o);
        CHECK(o->xen.guests);
        CHECK(o->spawn.tpm_version == TpmVersion::tpm12);
        CHECK(o->spawn.extra_arguments == std::vector<std::string>{"--locality-policy=*=0,2"});
        CHECK(parse({"--xen=vtpms"})->xen == XenOptions{.vtpms = true});
        CHECK(parse({"--xen=guests", "--xen=vtpms"}).error().code == Errc::usage);
        CHECK(parse({"--xen=dom0"}).error().code == Errc::usage);
        CHECK(parse({"--tpm-version=2"}).error().code == Errc::usage);
    }
    TEST_CASE("command line: what is wrong is named") {
        for (const char* bad :
             {"--tpm=soft", "--tpm-locality=5", "--srk-handle=1", "--seal-pcrs=sha256:24", "--freshness=window:0",
              "--listen=/l", "--spawn=x", "--store-size=big", "--accept-counter=-1", "--nonsense"}) {
            CAPTURE(bad);
            auto o = parse({bad});
            REQUIRE_FALSE(o);
            CHECK(o.error().code == Errc::usage);
        }
    }
}

} // namespace manager_command_line_test
