#include "util/deadline.hpp"

#include "check.hpp"
#include "loop.hpp"
#include "util/shielded.hpp"

#include <stdexcept>

namespace deadline_test {

using namespace vtpmd;
using namespace std::chrono_literals;
using Outcome = Result<int>;

namespace {

/// Sleeps for `time`; `joined` once it has ended, however that came.
Task<Outcome> work(Clock& clock, Clock::duration time, bool& joined, std::optional<int> when_cancelled = {}) {
    struct End {
        bool& joined;
        ~End() { joined = true; }
    } end{joined};
    co_await asio::this_coro::throw_if_cancelled(false);
    const auto cancelled = co_await clock.sleep_for(time);
    if (!cancelled) {
        co_return 1;
    }
    if (when_cancelled) {
        co_return *when_cancelled;
    }
    co_return make_error(Errc::canceled, "cancelled");
}

Task<Outcome> thrower(Clock& clock, Clock::duration time) {
    (void)co_await clock.sleep_for(time);
    throw std::runtime_error("of the operation");
    co_return 0;
}

/// As a coroutine that lets the cancellation throw.
Task<Outcome> thrown_out(Clock& clock, Clock::duration time) {
    (void)co_await clock.sleep_for(time);
    (void)co_await clock.sleep_for(time);
    co_return 0;
}

} // namespace

TEST_SUITE("util") {
    TEST_CASE("deadline: in time, and nothing is left of it") {
        fakes::Loop loop;
        bool joined = false;
        auto run = loop.start(with_deadline(loop.clock, 5s, "it", work(loop.clock, 1s, joined)));
        loop.settle();
        CHECK(loop.clock.sleeping() == 2);
        loop.clock.advance(1s);
        loop.settle();
        REQUIRE(run->done);
        CHECK(run->value->value() == 1);
        CHECK(loop.clock.sleeping() == 0);
    }

    TEST_CASE("deadline: the time is up: cancelled, joined, and told so") {
        fakes::Loop loop;
        bool joined = false;
        auto run = loop.start(with_deadline(loop.clock, 5s, "it", work(loop.clock, 10s, joined)));
        loop.settle();
        loop.clock.advance(5s);
        loop.settle();
        REQUIRE(run->done);
        CHECK(joined);
        REQUIRE_FALSE(*run->value);
        CHECK(run->value->error().code == Errc::timed_out);
        CHECK(run->value->error().message == "it: no answer within 5000 ms");
        CHECK(loop.clock.sleeping() == 0);
    }

    TEST_CASE("deadline: what succeeds in spite of it has succeeded") {
        fakes::Loop loop;
        bool joined = false;
        auto run = loop.start(with_deadline(loop.clock, 5s, "it", work(loop.clock, 10s, joined, 2)));
        loop.settle();
        loop.clock.advance(5s);
        loop.settle();
        REQUIRE(run->done);
        CHECK(run->value->value() == 2);
    }

    TEST_CASE("deadline: who waits is cancelled, and so is the operation") {
        for (const bool inner : {false, true}) {
            CAPTURE(inner);
            fakes::Loop loop;
            bool joined = false;
            auto waiting = [](fakes::Loop& l, bool& j, bool twice) -> Task<Outcome> {
                co_await asio::this_coro::throw_if_cancelled(false);
                Task<Outcome> task = with_deadline(l.clock, 5s, "it", work(l.clock, 10s, j));
                if (twice) {
                    co_return co_await with_deadline(l.clock, 7s, "both", std::move(task));
                }
                co_return co_await std::move(task);
            };
            auto run = loop.start(waiting(loop, joined, inner));
            loop.settle();
            CHECK_FALSE(run->done);
            run->cancel();
            loop.settle();
            REQUIRE(run->done);
            CHECK(joined);
            REQUIRE_FALSE(*run->value);
            CHECK(run->value->error().code == Errc::canceled);
            CHECK(loop.clock.sleeping() == 0);
        }
    }

    TEST_CASE("deadline: one within another, the earlier one ends it") {
        for (const auto outer : {3s, 8s}) {
            fakes::Loop loop;
            bool joined = false;
            Task<Outcome> inner = with_deadline(loop.clock, 5s, "inner", work(loop.clock, 10s, joined));
            auto run = loop.start(with_deadline(loop.clock, outer, "outer", std::move(inner)));
            loop.settle();
            loop.clock.advance(std::min<Clock::duration>(outer, 5s));
            loop.settle();
            REQUIRE(run->done);
            CHECK(joined);
            REQUIRE_FALSE(*run->value);
            CHECK(run->value->error().code == Errc::timed_out);
            CHECK(run->value->error().message ==
                  (outer < 5s ? "outer: no answer within 3000 ms" : "inner: no answer within 5000 ms"));
        }
    }

    TEST_CASE("deadline: exceptions pass, but for that of our own cancellation") {
        fakes::Loop loop;
        auto run = loop.start(with_deadline(loop.clock, 5s, "it", thrower(loop.clock, 1s)));
        loop.settle();
        loop.clock.advance(1s);
        loop.settle();
        REQUIRE(run->done);
        REQUIRE(run->thrown);
        CHECK_THROWS_WITH(std::rethrow_exception(run->thrown), "of the operation");

        auto late = loop.start(with_deadline(loop.clock, 5s, "it", thrown_out(loop.clock, 10s)));
        loop.settle();
        loop.clock.advance(5s);
        loop.settle();
        REQUIRE(late->done);
        CHECK_FALSE(late->thrown);
        CHECK(late->value->error().code == Errc::timed_out);
    }

    TEST_CASE("interruption: while the operation runs, and before it began") {
        fakes::Loop loop;
        Interruption by;
        bool joined = false;
        auto run = loop.start(interruptible(by, "it", work(loop.clock, 10s, joined)));
        loop.settle();
        CHECK_FALSE(run->done);
        by.request();
        loop.settle();
        REQUIRE(run->done);
        CHECK(joined);
        CHECK(run->value->error().code == Errc::timed_out);

        joined = false;
        auto again = loop.start(interruptible(by, "it", work(loop.clock, 10s, joined)));
        loop.settle();
        REQUIRE(again->done);
        CHECK(again->value->error().code == Errc::timed_out);
        CHECK_FALSE(joined); // never begun
        CHECK(loop.clock.sleeping() == 0);
    }

    TEST_CASE("shielded for a time: the operation goes on") {
        fakes::Loop loop;
        const Log log;
        TaskGroup group(loop.io.get_executor(), log);
        bool joined = false;
        auto run = loop.start(shielded_for(loop.clock, 5s, group, "it", work(loop.clock, 10s, joined)));
        loop.settle();
        loop.clock.advance(5s);
        loop.settle();
        REQUIRE(run->done);
        REQUIRE_FALSE(*run->value);
        CHECK(run->value->error().code == Errc::timed_out);
        CHECK(run->value->error().message == "it: no answer within 5000 ms");
        CHECK_FALSE(joined);
        CHECK(group.size() == 1);
        loop.clock.advance(5s);
        loop.settle();
        CHECK(joined);
        CHECK(group.empty());

        joined = false;
        auto soon = loop.start(shielded_for(loop.clock, 5s, group, "it", work(loop.clock, 1s, joined)));
        loop.settle();
        loop.clock.advance(1s);
        loop.settle();
        REQUIRE(soon->done);
        CHECK(soon->value->value() == 1);
        CHECK(loop.clock.sleeping() == 0);

        joined = false;
        auto left = loop.start(shielded_for(loop.clock, 5s, group, "it", work(loop.clock, 10s, joined)));
        loop.settle();
        left->cancel();
        loop.settle();
        REQUIRE(left->done);
        CHECK(left->value->error().code == Errc::canceled);
        CHECK_FALSE(joined);
        loop.clock.advance(10s);
        loop.settle();
        CHECK(group.empty());
    }
}

} // namespace deadline_test
