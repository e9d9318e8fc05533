// An instance that nobody needs any more.
#include "instance/orphan.hpp"

#include <doctest/doctest.h>

namespace instance_orphan_test {

using namespace vtpmd;
using namespace vtpmd::instance;
using namespace std::chrono_literals;
using V = Orphan::Verdict;

TEST_SUITE("instance") {
    TEST_CASE("orphan: any one of manager, guest and image keeps it") {
        const Clock::time_point begun{};
        for (unsigned who = 1; who < 8; ++who) {
            Orphan orphan;
            const Orphan::Facts facts{.manager = (who & 1) != 0, .guest = (who & 2) != 0, .image = (who & 4) != 0};
            CHECK(orphan.look(facts, begun) == V::nothing);
            CHECK(orphan.look(facts, begun + 24h) == V::nothing);
        }
    }
    TEST_CASE("orphan: it says so, and ends after the stated time, not before") {
        const Clock::time_point begun{};
        Orphan orphan;
        CHECK(orphan.look({}, begun) == V::begins);
        CHECK(orphan.look({}, begun + 1s) == V::nothing);
        CHECK(orphan.look({}, begun + Orphan::patience - 1ns) == V::nothing);
        CHECK(orphan.look({}, begun + Orphan::patience) == V::ends);
    }
    TEST_CASE("orphan: somebody who comes begins it anew") {
        const Clock::time_point begun{};
        for (const Orphan::Facts comes :
             {Orphan::Facts{.manager = true}, Orphan::Facts{.guest = true}, Orphan::Facts{.image = true}}) {
            Orphan orphan;
            CHECK(orphan.look({}, begun) == V::begins);
            CHECK(orphan.look(comes, begun + Orphan::patience) == V::nothing);
            CHECK(orphan.look({}, begun + 2 * Orphan::patience) == V::begins);
            CHECK(orphan.look({}, begun + 3 * Orphan::patience) == V::ends);
        }
    }
}

} // namespace instance_orphan_test
