#include "check.hpp"
#include "instance/manufacture.hpp"
#include "run_task.hpp"
#include "tpm/commands.hpp"

namespace instance_manufacture_test {

using namespace vtpmd;
using namespace vtpmd::instance;
using namespace vtpmd::test;

TEST_SUITE("instance") {
    TEST_CASE("manufacture: PCR banks that libtpms has, and one that it has not") {
        auto engine = Engine::create(TpmVersion::tpm20).value();
        asio::io_context loop;
        Worker worker;
        // SM3 is none of libtpms' banks. Nothing is left half made: the engine can be started again.
        auto refused = run_task(loop, manufacture(*engine, worker, {tpm::alg::sha256, 0x0012}));
        REQUIRE_FALSE(refused);
        CHECK(refused.error().code == Errc::unsupported);
        CHECK(refused.error().message.find("0x0012 (--pcr-banks)") != std::string::npos);
        auto made = run_task(loop, manufacture(*engine, worker, {tpm::alg::sha1}));
        REQUIRE(made);
        REQUIRE(engine->power_on(std::move(*made)));
        (void)engine->execute(tpm::startup_command(TpmVersion::tpm20, tpm::StartupMode::clear), 0);
        auto banks = tpm::parse_capability_pcrs(engine->execute(tpm::get_capability_pcrs_command(), 0));
        REQUIRE(banks);
        for (const tpm::PcrBank& bank : *banks) {
            CAPTURE(bank.alg);
            CHECK(bank.pcrs == (bank.alg == tpm::alg::sha1 ? 0xFFFFFFU : 0U));
        }
        engine->power_off();
    }
}

} // namespace instance_manufacture_test
