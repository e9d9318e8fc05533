#include "loop_fixture.hpp"
#include "xen/sim.hpp"

#include "check.hpp"
#include <cstring>

namespace xen_ports_test {

using namespace vtpmd;
using namespace vtpmd::xen;

namespace {

Task<> ping_pong(SimHost& host) {
    auto front = host.fabric(3);
    auto back = host.fabric(0);
    front->start();
    back->start();
    {
        auto a = front->bind_unbound(0).value();
        CHECK_FALSE(host.fabric(5)->bind_interdomain(3, a->port()).has_value()); // meant for domain 0
        auto b = back->bind_interdomain(3, a->port()).value();
        CHECK_FALSE(back->bind_interdomain(3, a->port()).has_value()); // once only
        for (int i = 0; i < 100; ++i) {
            CHECK(a->notify().has_value());
            auto r1 = co_await b->wait();
            CHECK_FALSE(r1);
            CHECK(b->notify().has_value());
            auto r2 = co_await a->wait();
            CHECK_FALSE(r2);
        }
        b.reset();
        CHECK(a->notify().has_value()); // nobody there: dropped, as in Xen
        auto again = back->bind_interdomain(3, a->port()).value();
        CHECK(again->notify().has_value());
        auto r3 = co_await a->wait();
        CHECK_FALSE(r3);
    }
    co_await front->stop();
    co_await back->stop();
    co_await host.stop();
}

Task<> storm(SimHost& host, test::Loop& loop) {
    auto front = host.fabric(3);
    auto back = host.fabric(0);
    back->start();
    {
        auto noisy = front->bind_unbound(0).value();
        auto quiet = front->bind_unbound(0).value();
        auto from_noisy = back->bind_interdomain(3, noisy->port()).value();
        auto from_quiet = back->bind_interdomain(3, quiet->port()).value();
        for (int i = 0; i < 10'000; ++i) {
            CHECK(noisy->notify().has_value());
        }
        CHECK(quiet->notify().has_value());
        auto r4 = co_await from_quiet->wait();
        CHECK_FALSE(r4);
        // Ten thousand notifications are one wake while nobody waits, and one more that came after it was taken.
        auto r5 = co_await from_noisy->wait();
        CHECK_FALSE(r5);
        CHECK(noisy->notify().has_value());
        auto r6 = co_await from_noisy->wait();
        CHECK_FALSE(r6);
        (void)loop;
    }
    co_await back->stop();
    co_await host.stop();
}

Task<> waits_end(SimHost& host, test::Loop& loop) {
    auto front = host.fabric(3);
    front->start();
    {
        auto a = front->bind_unbound(0).value();
        TaskGroup group(loop.io.get_executor(), loop.log);
        error_code seen;
        auto waiter = [](EventChannel& channel, error_code& out) -> Task<> { out = co_await channel.wait(); };
        group.spawn("waiter", waiter(*a, seen));
        co_await asio::post(loop.io, asio::use_awaitable);
        group.cancel();
        co_await group.join();
        CHECK(seen == asio::error::operation_aborted);
        group.spawn("waiter", waiter(*a, seen));
        co_await asio::post(loop.io, asio::use_awaitable);
        co_await front->stop();
        co_await group.join();
        CHECK(seen == asio::error::eof);
        auto r7 = co_await a->wait();
        CHECK(r7 == asio::error::eof);
    }
    co_await host.stop();
}

} // namespace

TEST_SUITE("xen") {
    TEST_CASE("event channels: two domains wake one another") {
        test::Loop loop;
        SimHost host(loop.io.get_executor(), loop.clock, loop.log);
        loop.run(ping_pong(host));
    }
    TEST_CASE("event channels: a storm on one port is one wake and delays no other") {
        test::Loop loop;
        SimHost host(loop.io.get_executor(), loop.clock, loop.log);
        loop.run(storm(host, loop));
    }
    TEST_CASE("event channels: waits end when cancelled and when the fabric stops") {
        test::Loop loop;
        SimHost host(loop.io.get_executor(), loop.clock, loop.log);
        loop.run(waits_end(host, loop));
    }
    TEST_CASE("grants: two mappings of one page, for the domain it was granted to") {
        test::Loop loop;
        SimHost host(loop.io.get_executor(), loop.clock, loop.log);
        auto front = host.fabric(3);
        auto back = host.fabric(0);
        auto other = host.fabric(5);
        auto page = front->share(0, 2).value();
        REQUIRE(page->refs().size() == 2);
        CHECK_FALSE(other->map(3, page->refs()).has_value());
        std::array<GrantRef, 1> wrong{4711};
        CHECK_FALSE(back->map(3, wrong).has_value());
        auto mapped = back->map(3, page->refs()).value();
        CHECK(mapped->bytes().data() != page->bytes().data());
        CHECK(mapped->bytes().size() == 2 * page_size);
        page->bytes()[page_size + 5] = std::byte{42};
        CHECK(mapped->bytes()[page_size + 5] == std::byte{42});
        std::array<GrantRef, 1> ref{page->refs()[0]};
        page.reset();
        CHECK_FALSE(back->map(3, ref).has_value()); // no longer granted
        mapped->bytes()[0] = std::byte{1};          // a mapping that exists goes on
    }
}

} // namespace xen_ports_test
