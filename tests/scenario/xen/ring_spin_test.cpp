// The back end's watch of the page after an answer: it finds a quick guest's request without a notification, is not there
// for a slow one, and ends.
#include "check.hpp"
#include "loop_fixture.hpp"
#include "ring/back_end.hpp"
#include "xen/sim.hpp"

#include <thread>

namespace ring_spin_test {

using namespace vtpmd;
using namespace std::chrono_literals;

namespace {

constexpr xen::DomId guest_domain = 5;

struct Echo final : ring::CommandSink {
    Task<Bytes> execute(Bytes request, std::uint8_t) override {
        ++served;
        co_return request;
    }
    void cancel() override {}
    std::atomic<unsigned> served = 0;
};

struct Stage {
    explicit Stage(Clock::duration spin) {
        back->start();
        front->start();
        pages = front->share(0, 1).value();
        channel = front->bind_unbound(0).value();
        ring::BackEnd::Link link{back->map(guest_domain, pages->refs()).value(),
                                 back->bind_interdomain(guest_domain, channel->port()).value()};
        back_end.emplace(ring::BackEndOptions{.name = "test", .spin = spin},
                         ring::BackEnd::Parts{*back, sink, loop.log, counters, limit}, std::move(link));
        back_end->start();
    }
    ~Stage() { loop.run(end()); }
    Task<> end() {
        co_await back_end->stop(Clock::duration::zero());
        back_end.reset();
        channel.reset();
        pages.reset();
        co_await front->stop();
        co_await back->stop();
        co_await host.stop();
    }
    [[nodiscard]] ring::Page page() const { return ring::Page(pages->bytes()); }
    void submit(bool notify) const {
        page().write({}, Bytes(12), {});
        page().set_state(ring::state_submit);
        if (notify) {
            channel->notify().value();
        }
    }
    /// For the guest's own thread: at most 20 s.
    [[nodiscard]] bool wait_answer() const {
        const auto give_up = std::chrono::steady_clock::now() + 20s;
        while (page().state() != ring::state_finish && std::chrono::steady_clock::now() < give_up) {
            std::this_thread::yield();
        }
        return page().state() == ring::state_finish;
    }
    bool served(unsigned n) {
        return loop.run_until([&] { return page().state() == ring::state_finish && sink.served == n; });
    }

    test::Loop loop;
    xen::SimHost host{loop.io.get_executor(), loop.clock, loop.log};
    std::unique_ptr<xen::Fabric> back = host.fabric(0);
    std::unique_ptr<xen::Fabric> front = host.fabric(guest_domain);
    std::unique_ptr<xen::Pages> pages;
    std::unique_ptr<xen::EventChannel> channel;
    Echo sink;
    ring::RingCounters counters;
    RateLimit limit;
    std::optional<ring::BackEnd> back_end;
};

} // namespace

TEST_SUITE("ring spin") {

    TEST_CASE("a quick guest's next request is found without a notification") {
        Stage s(10s); // what is not found would take so long that the test fails
        std::atomic<bool> answered = false;
        std::thread guest([&] {
            bool good = true;
            for (int i = 0; i < 6 && good; ++i) {
                s.submit(i < 2); // a guest is known as quick by its second request
                good = s.wait_answer();
            }
            answered = good;
            s.page().set_state(ring::state_cancel); // ends the watch
        });
        CHECK(s.loop.run_until([&] { return s.sink.served == 6 && answered; }));
        guest.join();
        CHECK(s.counters.spun >= 4);
        CHECK(s.counters.spins >= s.counters.spun);
    }

    TEST_CASE("a guest that is not quick is not watched for") {
        Stage s(1ns);
        for (unsigned i = 1; i <= 5; ++i) {
            s.submit(true);
            REQUIRE(s.served(i));
        }
        CHECK(s.counters.spins == 0);
    }

    TEST_CASE("the watch ends when the guest goes quiet, and a notification is heard after it") {
        Stage s(20ms);
        for (unsigned i = 1; i <= 4; ++i) {
            s.submit(true);
            REQUIRE(s.served(i));
        }
        CHECK(s.counters.spun == 0); // one thread: while the back end watches, this guest does nothing
        CHECK(s.counters.requests == 4);
    }

} // TEST_SUITE

} // namespace ring_spin_test
