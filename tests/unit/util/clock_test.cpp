#include "util/clock.hpp"

#include "loop.hpp"

#include <doctest/doctest.h>

namespace clock_test {

using namespace vtpmd;
using namespace std::chrono_literals;

TEST_SUITE("util") {
    TEST_CASE("alarm: rings once, from the loop, when its time has come") {
        fakes::Loop loop;
        int rung = 0;
        Alarm alarm(loop.clock, [&] { ++rung; });
        alarm.set(loop.clock.now() + 5s);
        CHECK(loop.clock.sleeping() == 1);
        loop.clock.advance(4s);
        loop.settle();
        CHECK(rung == 0);
        loop.clock.advance(1s);
        CHECK(rung == 0); // not from here
        loop.settle();
        CHECK(rung == 1);
        loop.clock.advance(10s);
        loop.settle();
        CHECK(rung == 1);
        CHECK(loop.clock.sleeping() == 0);
    }

    TEST_CASE("alarm: set again it is moved, cleared it stays silent") {
        fakes::Loop loop;
        int rung = 0;
        Alarm alarm(loop.clock, [&] { ++rung; });
        alarm.set(loop.clock.now() + 5s);
        alarm.set(loop.clock.now() + 10s);
        CHECK(loop.clock.sleeping() == 1);
        loop.clock.advance(9s);
        loop.settle();
        CHECK(rung == 0);
        alarm.set(loop.clock.now());
        loop.settle();
        CHECK(rung == 1);
        alarm.set(loop.clock.now() + 1s);
        loop.clock.advance(1s); // due, and cleared before the loop came to it
        alarm.clear();
        loop.settle();
        CHECK(rung == 1);
        {
            Alarm gone(loop.clock, [&] { ++rung; });
            gone.set(loop.clock.now() + 1s);
        }
        loop.clock.advance(1s);
        loop.settle();
        CHECK(rung == 1);
    }

    TEST_CASE("alarm: what rings may set it again, destroy it, or clear another that is due") {
        fakes::Loop loop;
        std::vector<int> rung;
        std::optional<Alarm> other;
        Alarm again(loop.clock, [&] {
            rung.push_back(1);
            other.reset();
            if (rung.size() < 3) {
                again.set(loop.clock.now() + 1s);
            }
        });
        other.emplace(loop.clock, [&] { rung.push_back(2); });
        std::optional<Alarm> itself;
        itself.emplace(loop.clock, [&rung, &itself] {
            itself.reset();
            rung.push_back(3);
        });
        again.set(loop.clock.now() + 1s);
        other->set(loop.clock.now() + 1s);
        itself->set(loop.clock.now() + 2s);
        for (int second = 0; second < 5; ++second) {
            loop.clock.advance(1s);
            loop.settle();
        }
        CHECK(rung == std::vector<int>{1, 3, 1});
    }

    TEST_CASE("alarm: outlives its clock in the frame of a task that was never finished") {
        asio::io_context io(1);
        std::optional<Alarm> alarm;
        {
            SystemClock clock(io.get_executor());
            alarm.emplace(clock, [] { FAIL("its clock is gone"); });
            alarm->set(clock.now() + 1ms);
        }
        io.run_for(20s);
        CHECK(io.stopped());
        alarm.reset();
    }

    TEST_CASE("alarm on the loop's timer: the earliest first, whatever the order of setting") {
        asio::io_context io(1);
        SystemClock clock(io.get_executor());
        std::vector<int> rung;
        Alarm late(clock, [&] { rung.push_back(3); });
        Alarm middle(clock, [&] { rung.push_back(2); });
        Alarm early(clock, [&] { rung.push_back(1); });
        const auto now = clock.now();
        late.set(now + 30ms);
        early.set(now + 1ms);
        middle.set(now + 10ms);
        io.run_for(20s);
        CHECK(io.stopped()); // nothing else kept it running
        CHECK(rung == std::vector<int>{1, 2, 3});
    }

    TEST_CASE("alarm on the loop's timer: one that is cleared keeps the loop only where that is wanted") {
        asio::io_context io(1);
        SystemClock clock(io.get_executor());
        Alarm alarm(clock, [] { FAIL("it was cleared"); });
        alarm.set(clock.now() + 1h);
        alarm.clear();
        io.run_for(20s);
        CHECK(io.stopped());

        clock.keep_timer(true);
        alarm.set(clock.now() + 1h);
        alarm.clear();
        io.restart();
        io.poll();
        CHECK_FALSE(io.stopped());
        int rung = 0;
        Alarm earlier(clock, [&] { ++rung; });
        earlier.set(clock.now() + 1ms); // the timer that was kept is set to a later time
        while (rung == 0 && io.run_one_for(20s) > 0) {
        }
        CHECK(rung == 1);
        alarm.set(clock.now() + 1h);
        alarm.clear();
        clock.keep_timer(false);
        io.run_for(20s);
        CHECK(io.stopped());
    }
}

} // namespace clock_test
