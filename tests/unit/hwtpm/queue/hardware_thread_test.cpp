#include "check.hpp"
#include "loop.hpp"

#include "hwtpm/queue/hardware_thread.hpp"

#include <atomic>
#include <future>

namespace hwtpm_hardware_thread_test {

using namespace vtpmd;
using namespace vtpmd::hwtpm;

namespace {

/// Holds the hardware thread until told to go on.
struct Gate {
    std::promise<void> opened;
    std::shared_future<void> open = opened.get_future().share();
    std::atomic<bool> reached = false;
    auto job() {
        return [this]() -> Result<int> {
            reached = true;
            open.wait();
            return 0;
        };
    }
};

} // namespace

TEST_SUITE("hwtpm") {
    TEST_CASE("a job runs on the hardware thread, its result comes on the loop") {
        fakes::Loop loop;
        HardwareThread hw(loop.io.get_executor(), {}, {});
        const auto here = std::this_thread::get_id();
        auto r = loop.run(
            hw.run(Urgency::routine, [here]() -> Result<int> { return std::this_thread::get_id() == here ? 1 : 2; }));
        CHECK(r.value() == 2);
        auto failed = loop.run(hw.run(Urgency::routine, []() -> Result<int> { return make_error(Errc::tpm, "no"); }));
        CHECK(failed.error().code == Errc::tpm);
        auto thrown =
            loop.run(hw.run(Urgency::routine, []() -> Result<int> { throw std::runtime_error("unforeseen"); }));
        CHECK(thrown.error().message.find("unforeseen") != std::string::npos);
        loop.run(hw.close());
    }
    TEST_CASE("urgent jobs go first, each kind in its order, one batch under one claim") {
        fakes::Loop loop;
        std::vector<int> order;
        std::atomic<int> begins = 0;
        std::atomic<int> ends = 0;
        HardwareThread hw(loop.io.get_executor(), {}, {.begin_batch = [&] { ++begins; }, .end_batch = [&] { ++ends; }});
        Gate gate;
        auto held = loop.start(hw.run(Urgency::routine, gate.job()));
        REQUIRE(loop.until([&] { return gate.reached.load(); }));
        std::vector<std::shared_ptr<fakes::Started<Result<int>>>> jobs;
        for (int i = 0; i < 6; ++i) {
            jobs.push_back(
                loop.start(hw.run(i % 2 == 0 ? Urgency::routine : Urgency::urgent, [&order, i]() -> Result<int> {
                    order.push_back(i);
                    return i;
                })));
            loop.settle();
        }
        gate.opened.set_value();
        for (auto& j : jobs) {
            REQUIRE(loop.wait(*j));
        }
        CHECK(order == std::vector<int>{1, 3, 5, 0, 2, 4});
        loop.run(hw.close());
        CHECK(begins == ends);
        CHECK(begins == 1);
    }
    TEST_CASE("a batch ends at its limit") {
        fakes::Loop loop;
        std::atomic<int> begins = 0;
        HardwareThread hw(loop.io.get_executor(), {.batch_limit = 4}, {.begin_batch = [&] { ++begins; }});
        Gate gate;
        auto held = loop.start(hw.run(Urgency::routine, gate.job()));
        REQUIRE(loop.until([&] { return gate.reached.load(); }));
        std::vector<std::shared_ptr<fakes::Started<Result<int>>>> jobs;
        for (int i = 0; i < 11; ++i) {
            jobs.push_back(loop.start(hw.run(Urgency::routine, []() -> Result<int> { return 0; })));
        }
        loop.settle();
        gate.opened.set_value();
        loop.run(hw.close());
        CHECK(begins == 3);
    }
    TEST_CASE("a full queue makes the next caller wait, not fail; the order holds") {
        fakes::Loop loop;
        HardwareThread hw(loop.io.get_executor(), {.queue_limit = 2}, {});
        Gate gate;
        std::vector<int> order;
        std::vector<std::shared_ptr<fakes::Started<Result<int>>>> jobs;
        jobs.push_back(loop.start(hw.run(Urgency::routine, gate.job())));
        for (int i = 1; i < 6; ++i) {
            jobs.push_back(loop.start(hw.run(Urgency::routine, [&order, i]() -> Result<int> {
                order.push_back(i);
                return i;
            })));
        }
        loop.settle();
        CHECK(hw.in_flight() == 2);
        CHECK(hw.metrics().routine_waiting == 6); // with those that wait for room
        CHECK(hw.metrics().urgent_waiting == 0);
        jobs[3]->cancel(); // one of those that wait for room
        REQUIRE(loop.wait(*jobs[3]));
        CHECK(jobs[3]->value->error().code == Errc::canceled);
        // Urgent ones have room of their own.
        auto urgent = loop.start(hw.run(Urgency::urgent, []() -> Result<int> { return 9; }));
        gate.opened.set_value();
        REQUIRE(loop.wait(*urgent));
        for (auto& j : jobs) {
            REQUIRE(loop.wait(*j));
        }
        CHECK(order == std::vector<int>{1, 2, 4, 5});
        CHECK(hw.in_flight() == 0);
        CHECK(hw.metrics().routine_waiting == 0);
        loop.run(hw.close());
    }
    TEST_CASE("a cancelled caller goes at once; its job is done all the same, before close returns") {
        fakes::Loop loop;
        HardwareThread hw(loop.io.get_executor(), {}, {});
        Gate gate;
        std::atomic<bool> done = false;
        auto held = loop.start(hw.run(Urgency::routine, gate.job()));
        auto second = loop.start(hw.run(Urgency::routine, [&done]() -> Result<int> {
            done = true;
            return 0;
        }));
        REQUIRE(loop.until([&] { return gate.reached.load(); }));
        held->cancel();
        second->cancel();
        REQUIRE(loop.wait(*held));
        REQUIRE(loop.wait(*second));
        CHECK(held->value->error().code == Errc::canceled);
        CHECK(second->value->error().code == Errc::canceled);
        CHECK_FALSE(done.load());
        auto closing = loop.start(hw.close());
        loop.settle();
        CHECK_FALSE(closing->done);
        auto late = loop.run(hw.run(Urgency::urgent, []() -> Result<int> { return 0; }));
        CHECK(late.error().code == Errc::closed);
        gate.opened.set_value();
        REQUIRE(loop.wait(*closing));
        CHECK(done.load());
        CHECK(hw.in_flight() == 0);
    }
}

} // namespace hwtpm_hardware_thread_test
