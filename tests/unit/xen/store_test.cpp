#include "loop_fixture.hpp"
#include "xen/sim.hpp"

#include "check.hpp"

#include <algorithm>
#include <array>
#include <set>
#include <string>
#include <sys/socket.h>
#include <vector>

namespace xen_store_test {

using namespace vtpmd;
using namespace vtpmd::xen;

namespace {

Task<> first_fire(Watch& watch) {
    auto ec = co_await watch.wait();
    CHECK_FALSE(ec);
    (void)watch.take_changes();
}

Task<> ready(Fabric& fabric) {
    auto watch = fabric.store().watch("domid");
    co_await first_fire(*watch);
}

Task<> nodes(SimHost& host) {
    auto fabric = host.fabric(0);
    fabric->start();
    co_await ready(*fabric);
    Store& store = fabric->store();
    auto absent = co_await store.read("/nowhere");
    REQUIRE_FALSE(absent.has_value());
    CHECK(absent.error().code == Errc::not_found);
    auto r8 = co_await store.write("/a/b/c", "7");
    CHECK(r8.has_value());
    auto r9 = co_await store.read("/a/b/c");
    CHECK(r9.value() == "7");
    auto r10 = co_await store.read_number("/a/b/c", 10);
    CHECK(r10.value() == 7);
    auto r11 = co_await store.read_number("/a/b/c", 6);
    CHECK(r11.error().code == Errc::protocol);
    auto r12 = co_await store.mkdir("/a/b/d");
    CHECK(r12.has_value());
    auto r13 = co_await store.directory("/a/b");
    CHECK(r13.value() == std::vector<std::string>{"c", "d"});
    auto r14 = co_await store.directory("/a/b/d");
    CHECK(r14.value().empty());
    auto r15 = co_await store.remove("/a/b");
    CHECK(r15.has_value());
    auto r16 = co_await store.read("/a/b/c");
    CHECK(r16.error().code == Errc::not_found);
    auto r17 = co_await store.remove("/a/b");
    CHECK(r17.error().code == Errc::not_found);
    auto r18 = co_await store.write("relative", "x");
    CHECK(r18.has_value());
    CHECK(host.store().get("/local/domain/0/relative") == "x");
    std::string huge(store_payload_max, 'x');
    auto r19 = co_await store.write("/huge", std::move(huge));
    CHECK(r19.error().code == Errc::too_large);
    co_await fabric->stop();
    auto r20 = co_await store.read("/a");
    CHECK(r20.error().code == Errc::canceled);
    co_await host.stop();
}

Task<> long_directory(SimHost& host) {
    std::vector<std::string> expected;
    for (int i = 0; i < 2000; ++i) { // 2000 names of 5 bytes do not fit into one reply
        expected.push_back(fmt::format("{}", 10000 + i));
        host.store().set("/many/" + expected.back() + "/x", "");
    }
    auto fabric = host.fabric(0);
    fabric->start();
    co_await ready(*fabric);
    auto r21 = co_await fabric->store().directory("/many");
    CHECK(r21.value() == expected);
    co_await fabric->stop();
    co_await host.stop();
}

Task<> permissions(SimHost& host) {
    host.store().make_dir("/local/domain/0/secret", 0);
    auto dom0 = host.fabric(0);
    auto dom3 = host.fabric(3);
    auto dom4 = host.fabric(4);
    host.add_vtpm(0, 3, 0, Uuid{});
    dom0->start();
    dom3->start();
    dom4->start();
    co_await ready(*dom0);
    co_await ready(*dom3);
    co_await ready(*dom4);
    auto r22 = co_await dom3->store().read("/local/domain/0/secret");
    CHECK(r22.error().code == Errc::permission);
    auto r23 = co_await dom3->store().write("device/vtpm/0/ring-ref", "9");
    CHECK(r23.has_value());
    auto r24 = co_await dom3->store().read(SimHost::back_dir(0, 3, 0) + "/state");
    CHECK(r24.value() == "1");
    auto r25 = co_await dom3->store().write(SimHost::back_dir(0, 3, 0) + "/uuid", "x");
    CHECK(r25.error().code == Errc::permission);
    auto r26 = co_await dom4->store().read("/local/domain/3/device/vtpm/0/ring-ref");
    CHECK(r26.error().code == Errc::permission);
    auto r27 = co_await dom0->store().read("/local/domain/3/device/vtpm/0/ring-ref");
    CHECK(r27.value() == "9");
    co_await dom0->stop();
    co_await dom3->stop();
    co_await dom4->stop();
    co_await host.stop();
}

Task<> watches(SimHost& host) {
    auto fabric = host.fabric(0);
    fabric->start();
    auto watch = fabric->store().watch("dir");
    co_await first_fire(*watch); // at once, though there is no such node
    host.store().set("/local/domain/0/dir/a", "1");
    auto r28 = co_await watch->wait();
    CHECK_FALSE(r28);
    CHECK(watch->take_changes() == std::vector<std::string>{"dir/a"});
    host.store().set("/local/domain/0/elsewhere", "1");
    host.store().remove("/local/domain/0/dir");
    auto r29 = co_await watch->wait();
    CHECK_FALSE(r29);
    CHECK(watch->take_changes() == std::vector<std::string>{"dir"});
    watch.reset();
    co_await ready(*fabric);
    co_await fabric->stop();
    co_await host.stop();
}

Task<> transactions(SimHost& host) {
    auto fabric = host.fabric(0);
    fabric->start();
    co_await ready(*fabric);
    Store& store = fabric->store();
    StoreEdit edit;
    edit.must_exist = {"/there"};
    edit.writes = {{"/there/a", "1"}, {"/there/b", "2"}};
    auto refused = co_await store.apply(edit);
    CHECK(refused.error().code == Errc::not_found);
    CHECK_FALSE(host.store().get("/there")); // nothing of it happened
    host.store().set("/there", "");
    auto r30 = co_await store.apply(edit);
    CHECK(r30.has_value());
    CHECK(host.store().get("/there/b") == "2");
    edit.writes.clear();
    edit.removes = {"/there/a", "/not-there"};
    auto r31 = co_await store.apply(edit);
    CHECK(r31.has_value());
    CHECK_FALSE(host.store().get("/there/a"));
    co_await fabric->stop();
    co_await host.stop();
}

Task<> restart(SimHost& host, test::Loop& loop) {
    auto fabric = host.fabric(0);
    fabric->start();
    auto watch = fabric->store().watch("dir");
    co_await first_fire(*watch);
    co_await host.stop(); // xenstored is dead
    while (fabric->store().is_connected()) {
        (void)co_await loop.clock.sleep_for(std::chrono::milliseconds(1));
    }
    auto r32 = co_await fabric->store().read("/x");
    CHECK(r32.error().code == Errc::unavailable);
    host.store().set("/local/domain/0/dir/missed", "1");
    host.store().up();
    auto r33 = co_await watch->wait();
    CHECK_FALSE(r33);                     // fires anew after the reconnection
    CHECK(watch->take_changes().empty()); // and says that anything may have changed
    auto r34 = co_await fabric->store().read("dir/missed");
    CHECK(r34.value() == "1");
    CHECK(fabric->store().connections() == 2);
    watch.reset();
    co_await fabric->stop();
    co_await host.stop();
}

Task<> cancelled_reader(Store& store, bool& ended) {
    auto r = co_await store.read("/x");
    CHECK(r.error().code == Errc::canceled);
    ended = true;
}

Task<> cancelled(SimHost& host, test::Loop& loop) {
    auto fabric = host.fabric(0);
    fabric->start();
    co_await ready(*fabric);
    bool ended = false;
    TaskGroup group(loop.io.get_executor(), loop.log);
    group.spawn("reader", cancelled_reader(fabric->store(), ended));
    co_await asio::post(loop.io, asio::use_awaitable); // the request is out
    group.cancel();
    co_await group.join();
    CHECK(ended);
    auto r35 = co_await fabric->store().read("domid");
    CHECK(r35.value() == "0"); // the late answer hurts nobody
    co_await fabric->stop();
    co_await host.stop();
}

/// What stands behind /dev/xen/xenbus: takes one message a write and forgets the rest of it; here a packet is a write.
struct Xenbus {
    struct Message {
        StoreHeader header;
        std::string path;
    };
    Xenbus(const asio::any_io_executor& executor, int fd)
        : link(executor, fd) {}
    Task<Message> take() {
        auto [ec] = co_await link.async_wait(asio::posix::stream_descriptor::wait_read, use_tuple);
        REQUIRE_FALSE(ec);
        std::array<char, 2 * store_payload_max> packet{};
        const ssize_t n = ::recv(link.native_handle(), packet.data(), packet.size(), 0);
        REQUIRE(n >= static_cast<ssize_t>(store_header_size));
        std::array<char, store_header_size> raw{};
        std::copy_n(packet.begin(), raw.size(), raw.begin());
        Message out{parse_header(raw), packet.data() + store_header_size};
        CHECK(out.header.length + store_header_size == static_cast<std::size_t>(n));
        co_return out;
    }
    bool has_more() {
        char byte = 0;
        return ::recv(link.native_handle(), &byte, 1, MSG_PEEK | MSG_DONTWAIT) > 0;
    }
    void answer(const Message& m, std::string_view payload) {
        std::string out;
        append_header(
            out, {m.header.op, m.header.request, m.header.transaction, static_cast<std::uint32_t>(payload.size())});
        out += payload;
        REQUIRE(::send(link.native_handle(), out.data(), out.size(), MSG_NOSIGNAL) == static_cast<ssize_t>(out.size()));
    }
    asio::posix::stream_descriptor link;
};

Task<> read_into(Store& store, std::string path, std::string& out) {
    auto text = co_await store.read(std::move(path));
    out = text ? *text : "?";
}

/// The kernel's file has one buffer: the body of a request that is not sent yet is overwritten by the next one.
Task<> one_at_a_time(test::Loop& loop) {
    std::array<int, 2> fds{-1, -1};
    REQUIRE(::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, fds.data()) == 0);
    auto executor = co_await asio::this_coro::executor;
    Xenbus kernel(executor, fds[1]);
    Store store(executor, loop.clock, loop.log, [&fds] { return Result<UniqueFd>(UniqueFd(fds[0])); });
    auto backend = store.watch("backend/vtpm/2/0"); // queued together once there is a connection
    auto frontend = store.watch("/local/domain/0/backend/vtpm/1/0/state");
    TaskGroup tasks(executor, loop.log);
    tasks.spawn("xenstore", store.run());
    auto next = [&](StoreOp op) -> Task<std::string> {
        const Xenbus::Message m = co_await kernel.take();
        CHECK(m.header.op == op);
        for (int turns = 0; turns < 20; ++turns) {
            co_await asio::post(executor, asio::use_awaitable);
        }
        CHECK_FALSE(kernel.has_more()); // what else there is waits for the answer
        kernel.answer(m, op == StoreOp::read ? m.path : "OK");
        co_return m.path;
    };
    std::set<std::string> paths;
    for (int i = 0; i < 2; ++i) {
        paths.insert(co_await next(StoreOp::watch));
    }
    CHECK(paths == std::set<std::string>{"/local/domain/0/backend/vtpm/1/0/state", "backend/vtpm/2/0"});

    std::string first;
    std::string second;
    tasks.spawn("reader", read_into(store, "domid", first));
    tasks.spawn("reader", read_into(store, "name", second));
    for (int turns = 0; turns < 20; ++turns) {
        co_await asio::post(executor, asio::use_awaitable);
    }
    auto state = store.watch("device/vtpm/0/state");
    CHECK(co_await next(StoreOp::read) == "domid");
    CHECK(co_await next(StoreOp::read) == "name");
    CHECK(co_await next(StoreOp::watch) == "device/vtpm/0/state");
    CHECK(first == "domid");
    CHECK(second == "name");
    state.reset();
    const Xenbus::Message ended = co_await kernel.take();
    CHECK(ended.header.op == StoreOp::unwatch);
    store.stop();
    tasks.cancel();
    co_await tasks.join();
    backend.reset();
    frontend.reset();
}

} // namespace

TEST_SUITE("xen") {
    TEST_CASE("xenstore: read, write, list, remove") {
        test::Loop loop;
        SimHost host(loop.io.get_executor(), loop.clock, loop.log);
        loop.run(nodes(host));
    }
    TEST_CASE("xenstore: a directory longer than a message") {
        test::Loop loop;
        SimHost host(loop.io.get_executor(), loop.clock, loop.log);
        loop.run(long_directory(host));
    }
    TEST_CASE("xenstore: domains see and write what they may") {
        test::Loop loop;
        SimHost host(loop.io.get_executor(), loop.clock, loop.log);
        loop.run(permissions(host));
    }
    TEST_CASE("xenstore: one request at a time, as /dev/xen/xenbus needs (a driver domain hung, and wrote one device's "
              "state into another's)") {
        test::Loop loop;
        loop.run(one_at_a_time(loop));
    }
    TEST_CASE("xenstore: watches fire at once and for changes below") {
        test::Loop loop;
        SimHost host(loop.io.get_executor(), loop.clock, loop.log);
        loop.run(watches(host));
    }
    TEST_CASE("xenstore: an edit happens wholly or not at all") {
        test::Loop loop;
        SimHost host(loop.io.get_executor(), loop.clock, loop.log);
        loop.run(transactions(host));
    }
    TEST_CASE("xenstore: a daemon that dies is dialled again and watches fire anew") {
        test::Loop loop;
        SimHost host(loop.io.get_executor(), loop.clock, loop.log);
        loop.run(restart(host, loop));
    }
    TEST_CASE("xenstore: a cancelled request leaves the connection in order") {
        test::Loop loop;
        SimHost host(loop.io.get_executor(), loop.clock, loop.log);
        loop.run(cancelled(host, loop));
    }
}

} // namespace xen_store_test
