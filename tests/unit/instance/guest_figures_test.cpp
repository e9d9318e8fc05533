#include "instance/guest_figures.hpp"

#include "tpm/command_names.hpp"

#include <doctest/doctest.h>

namespace guest_figures_test {

using namespace vtpmd;
using namespace vtpmd::instance;
using namespace std::chrono_literals;

TEST_SUITE("instance") {
    TEST_CASE("a guest's figures: by command and outcome, totals, only what is new, unknown commands as one") {
        asio::io_context io;
        InstanceCounters counters;
        GuestFigures figures(io.get_executor(), TpmVersion::tpm20, counters);
        CHECK_FALSE(figures.next_report());
        figures.note(0x17b, Outcome::success, 5us);
        figures.note(0x17b, Outcome::tpm_error, 10us);
        figures.note(0x99999, Outcome::refused, 2ms);
        figures.note(0xffffffff, Outcome::refused, 5s);
        counters.commits = 3;
        auto first = figures.next_report();
        REQUIRE(first);
        CHECK_FALSE(first->continued);
        CHECK(first->commits == 3);
        REQUIRE(first->commands.size() == 2);
        CHECK(first->commands[0] == proto::CommandReport{.code = 0, .totals = {.refused = 2}});
        CHECK(first->commands[1] == proto::CommandReport{.code = 0x17b, .totals = {.success = 1, .tpm_error = 1}});
        CHECK(first->latency == std::array<std::uint64_t, 7>{2, 0, 0, 1, 0, 0, 1});
        CHECK(first->latency_ns == 5'002'015'000);
        CHECK_FALSE(figures.next_report());

        figures.note(0x144, Outcome::not_durable, 1us);
        auto second = figures.next_report();
        REQUIRE(second);
        CHECK(second->incarnation == first->incarnation);
        REQUIRE(second->commands.size() == 1);
        CHECK(second->commands[0].totals.not_durable == 1);

        figures.report_anew(); // another connection
        auto again = figures.next_report();
        REQUIRE(again);
        CHECK(again->continued);
        CHECK(again->commands.size() == 3);
    }

    TEST_CASE("a guest's figures: every command there is comes through, in as many reports as it takes") {
        asio::io_context io;
        InstanceCounters counters;
        for (TpmVersion version : {TpmVersion::tpm12, TpmVersion::tpm20}) {
            GuestFigures figures(io.get_executor(), version, counters);
            figures.report_anew();
            std::size_t named = 0;
            for (std::uint32_t code = 0; code < 0x1000; ++code) {
                named += tpm::command_name(version, code).empty() ? 0 : 1;
                figures.note(code, Outcome::success, 1us);
            }
            CHECK(named > 100);
            std::size_t told = 0;
            std::uint64_t commands = 0;
            while (auto report = figures.next_report()) {
                CHECK(report->commands.size() <= proto::report_command_limit);
                told += report->commands.size();
                for (const auto& c : report->commands) {
                    commands += c.totals.success;
                }
            }
            CHECK(told == named + 1);
            CHECK(commands == 0x1000);
        }
    }

    TEST_CASE("names of commands: of their own family only") {
        CHECK(tpm::command_name(TpmVersion::tpm20, 0x17b) == "TPM2_GetRandom");
        CHECK(tpm::command_name(TpmVersion::tpm20, 0x11f) == "TPM2_NV_UndefineSpaceSpecial");
        CHECK(tpm::command_name(TpmVersion::tpm12, 0x46) == "TPM_GetRandom");
        CHECK(tpm::command_name(TpmVersion::tpm12, 0x4000000a) == "TSC_PhysicalPresence");
        CHECK(tpm::command_name(TpmVersion::tpm12, 0x17b).empty());
        CHECK(tpm::command_name(TpmVersion::tpm20, 0x46).empty());
        CHECK(tpm::command_name(TpmVersion::tpm20, 0xffffffff).empty());
    }
}

} // namespace guest_figures_test
