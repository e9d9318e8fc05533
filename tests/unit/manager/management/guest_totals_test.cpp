#include "check.hpp"
#include "manager/management/guest_totals.hpp"

#include "check.hpp"
#include "fakes/fake_clock.hpp"

#include <functional>

namespace guest_totals_test {

using namespace vtpmd;
using namespace vtpmd::manager;
using namespace std::chrono_literals;

namespace {

constexpr std::uint32_t get_random = 0x17b;
constexpr std::uint32_t startup = 0x144;
const Uuid a{{std::byte{1}}};
const Uuid b{{std::byte{2}}};

proto::Report report(std::uint64_t incarnation, std::uint32_t code, std::uint64_t success, std::uint64_t refused = 0) {
    proto::Report r{.incarnation = incarnation, .commits = success, .latency_ns = success * 1000};
    r.latency[0] = success + refused;
    r.commands.push_back({.code = code, .totals = {.success = success, .refused = refused}});
    return r;
}

struct Fixture {
    asio::io_context io;
    fakes::FakeClock clock{io.get_executor()};
    GuestTotals totals{clock};

    Result<void> take(const Uuid& vtpm, const proto::Report& r) { return totals.take(vtpm, TpmVersion::tpm20, r); }
    std::uint64_t random() { return totals.sums().commands.at("TPM2_GetRandom").success; }
};

} // namespace

TEST_SUITE("manager") {
    TEST_CASE_FIXTURE(Fixture, "guests' totals: summed over vTPMs, nothing twice, kept when an instance ends") {
        REQUIRE(take(a, report(1, get_random, 5)));
        REQUIRE(take(b, report(2, get_random, 7, 1)));
        CHECK(random() == 12);
        REQUIRE(take(a, report(1, get_random, 6))); // also over another connection
        CHECK(random() == 13);
        CHECK(take(a, report(1, startup, 1)).has_error()); // its commits went back
        proto::Report more = report(1, startup, 1);
        more.commits = 6;
        more.latency_ns = 9000;
        more.latency[0] = 7;
        REQUIRE(take(a, more)); // what is not named is as it was
        CHECK(random() == 13);
        CHECK(totals.sums().commands.at("TPM2_Startup").success == 1);
        CHECK(totals.sums().commits == 13);
        CHECK(totals.sums().latency[0] == 15);
        CHECK(totals.sums().latency_ns == 16000);
        CHECK(totals.activity(b)->failures == 1);
        REQUIRE(take(a, report(3, get_random, 2))); // another instance
        CHECK(random() == 15);
        CHECK(totals.activity(a)->commands == 2);
        proto::Report end = report(3, get_random, 4);
        end.last = true;
        REQUIRE(take(a, end));
        CHECK(random() == 17);
        CHECK_FALSE(totals.activity(a));
    }

    TEST_CASE_FIXTURE(Fixture, "guests' totals: a vTPM that is gone is forgotten, what it did is not") {
        REQUIRE(take(a, report(1, get_random, 5)));
        REQUIRE(take(b, report(2, get_random, 7)));
        totals.forget(a);
        totals.forget(a);
        CHECK_FALSE(totals.activity(a));
        CHECK(totals.activity(b));
        CHECK(random() == 12);
        CHECK(totals.sums().commits == 12);
    }

    TEST_CASE_FIXTURE(Fixture, "guests' totals: names of one family, and one for all that have none") {
        REQUIRE(take(a, report(1, 0, 1)));
        REQUIRE(totals.take(b, TpmVersion::tpm12, report(2, get_random, 1))); // no command of a TPM 1.2
        proto::Report hostile{.incarnation = 3};
        for (std::uint32_t i = 0; i < proto::report_command_limit; ++i) {
            hostile.commands.push_back({.code = 0x90000000 + i, .totals = {.success = 1}});
        }
        REQUIRE(take(Uuid{{std::byte{3}}}, hostile));
        CHECK(totals.sums().commands.size() == 1);
        CHECK(totals.sums().commands.at("other").success == 1); // of code 0: what has no name is kept of nobody
    }

    TEST_CASE_FIXTURE(Fixture,
                      "guests' totals: who reports without a pause is let go, and not let in by beginning anew") {
        unsigned taken = 0;
        for (unsigned i = 0; i < 1000; ++i) {
            proto::Report r = report(1 + i % 3, get_random, 1 + i);
            r.last = i % 2 == 0;
            taken += take(a, r) ? 1 : 0;
        }
        CHECK(taken == 100);
        CHECK(take(b, report(2, get_random, 7))); // the others go on
    }

    TEST_CASE_FIXTURE(Fixture, "guests' totals: an instance that goes back is refused, by each of its figures") {
        REQUIRE(take(a, report(1, get_random, 5, 5)));
        const auto refused = [this](const std::function<void(proto::Report&)>& change) {
            proto::Report r = report(1, get_random, 5, 5);
            change(r);
            auto taken = take(a, r);
            return !taken && taken.error().code == Errc::protocol;
        };
        CHECK(refused([](proto::Report& r) { --r.commits; }));
        CHECK(refused([](proto::Report& r) { --r.latency_ns; }));
        CHECK(refused([](proto::Report& r) { --r.latency[0]; }));
        CHECK(refused([](proto::Report& r) { --r.commands[0].totals.success; }));
        CHECK(refused([](proto::Report& r) { --r.commands[0].totals.refused; }));
        CHECK_FALSE(refused([](proto::Report&) {}));
        CHECK(random() == 5);
    }

    TEST_CASE_FIXTURE(Fixture, "guests' totals: what an instance counted for an earlier manager is not counted here") {
        proto::Report before = report(1, get_random, 1000);
        before.continued = true;
        REQUIRE(take(a, before));
        CHECK(random() == 0);
        CHECK(totals.sums().commits == 0);
        CHECK(totals.sums().latency[0] == 0);
        REQUIRE(take(a, report(1, get_random, 1003)));
        CHECK(random() == 3);
        proto::Report fresh = report(1, startup, 1);
        fresh.commits = 1003;
        fresh.latency_ns = 1004000;
        fresh.latency[0] = 1004;
        REQUIRE(take(a, fresh)); // the first of its kind
        CHECK(totals.sums().commands.at("TPM2_Startup").success == 1);
    }

    TEST_CASE_FIXTURE(Fixture, "guests' totals: commands a second are of the last report, and an idle guest has none") {
        REQUIRE(take(a, report(1, get_random, 5)));
        clock.advance(2s);
        REQUIRE(take(a, report(1, get_random, 25)));
        CHECK(totals.activity(a)->commands_per_second == doctest::Approx(10));
        clock.advance(GuestTotals::idle_after);
        CHECK(totals.activity(a)->commands_per_second == doctest::Approx(10));
        clock.advance(1s);
        CHECK(totals.activity(a)->commands_per_second == doctest::Approx(0));
        clock.advance(1h);
        REQUIRE(take(a, report(1, get_random, 37)));
        CHECK(totals.activity(a)->commands_per_second == doctest::Approx(2));
    }
}

} // namespace guest_totals_test
