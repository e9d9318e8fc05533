// A front end that breaks every rule, on simulated Xen, beside one that keeps them: both are served by one loop. After each
// attack both have a command carried out, the attacker through the same ring where that is still one.
#include "check.hpp"
#include "loop_fixture.hpp"
#include "ring/back_device.hpp"
#include "ring/front_device.hpp"
#include "xen/sim.hpp"

#include <algorithm>
#include <array>
#include <atomic>
#include <cstring>
#include <random>
#include <thread>

namespace xen_hostile_test {

using namespace vtpmd;
using ring::BackDevice;
using namespace std::chrono_literals;

namespace {

const Uuid uuid = parse_uuid("6f1b1f0e-0000-4000-8000-0000000000aa").value();
constexpr xen::DomId hostile = 5;
constexpr xen::DomId honest = 6;
constexpr std::size_t header_size = 10;
/// Lines of all devices: 5 warnings and 20 times "attached" of the attacker's in a minute; and should one pass meanwhile.
constexpr std::size_t line_limit = 60;

/// A TPM that answers with what it was sent, and holds the answer back when told to.
class Echo final : public ring::CommandSink {
  public:
    explicit Echo(const asio::any_io_executor& executor)
        : wake_(executor) {}
    Task<Bytes> execute(Bytes request, std::uint8_t /*locality*/) override {
        ++commands;
        running = true;
        largest = std::max(largest, request.size());
        const Bytes at_first = request;
        while (hold) {
            if (auto ec = co_await wake_.wait(); ec) {
                break;
            }
        }
        torn = torn || request != at_first;
        running = false;
        if (request.size() < header_size) {
            request.resize(header_size); // as a TPM's error is
        }
        co_return request;
    }
    void cancel() override { ++cancels; }
    void release() {
        hold = false;
        wake_.set();
    }
    bool hold = false;
    bool running = false;
    bool torn = false; ///< a request changed after it was handed over
    unsigned commands = 0;
    unsigned cancels = 0;
    std::size_t largest = 0;

  private:
    Wake wake_;
};

/// Writes what it likes where it likes.
struct Attacker {
    explicit Attacker(xen::Fabric& f)
        : fabric(f) {}
    void make(std::size_t pages_count = 1) {
        pages.reset();
        channel.reset();
        pages = fabric.share(0, pages_count).value();
        channel = fabric.bind_unbound(0).value();
    }
    void poke(std::size_t at, std::uint8_t value) const {
        *reinterpret_cast<volatile std::uint8_t*>(pages->bytes().data() + at) = value;
    }
    void poke32(std::size_t at, std::uint32_t value) const {
        *reinterpret_cast<volatile std::uint32_t*>(pages->bytes().data() + at) = value;
    }
    [[nodiscard]] std::uint8_t state() const { return ring::Page(pages->bytes().first(xen::page_size)).state(); }
    void set(std::uint8_t state) const {
        ring::Page(pages->bytes().first(xen::page_size)).set_state(state);
        (void)channel->notify();
    }
    void submit(std::uint32_t length, std::uint8_t extra_pages = 0) const {
        poke32(0, length);
        poke(5, 0);
        poke(7, extra_pages);
        set(ring::state_submit);
    }
    Task<Result<void>> offer(std::uint32_t ref, std::uint32_t port, unsigned handle = 0,
                             const char* state = "4") const {
        const std::string dir = fmt::format("device/vtpm/{}/", handle);
        xen::StoreEdit edit;
        edit.writes = {{dir + "feature-protocol-v2", "1"},
                       {dir + "ring-ref", std::to_string(ref)},
                       {dir + "event-channel", std::to_string(port)},
                       {dir + "state", state}};
        co_return co_await fabric.store().apply(std::move(edit));
    }
    Task<Result<void>> offer() const { co_return co_await offer(pages->refs()[0], channel->port()); }

    xen::Fabric& fabric;
    std::unique_ptr<xen::Pages> pages;
    std::unique_ptr<xen::EventChannel> channel;
};

struct Device {
    Device(xen::Fabric& back, xen::DomId domain, unsigned handle, Clock& clock, const Log& log)
        : sink(back.executor())
        , device({.id = {domain, handle}, .uuid = uuid}, {back, clock, log}) {}
    Task<> run() { (void)co_await device.run(); }
    Echo sink;
    BackDevice device;
};

struct Stage {
    explicit Stage(test::Loop& l)
        : loop(l) {}
    Task<> start() {
        back->start();
        hostile_domain->start();
        honest_domain->start();
        for (Device* d : {&bad, &second, &good}) {
            host.add_vtpm(0, d->device.id().domain, d->device.id().handle, uuid);
            d->device.open(d->sink);
            tasks.spawn("device", d->run());
        }
        auto connected = co_await neighbour.connect();
        REQUIRE(connected);
        attacker.make();
        auto offered = co_await attacker.offer();
        REQUIRE(offered);
        auto attached = [this] { return bad.device.connected(); };
        bool there = co_await until(attached);
        REQUIRE(there);
    }
    Task<> finish() {
        for (Device* d : {&bad, &second, &good}) {
            d->sink.release();
        }
        tasks.cancel();
        co_await tasks.join();
        (void)co_await neighbour.disconnect();
        attacker.channel.reset();
        attacker.pages.reset();
        for (xen::Fabric* f : {honest_domain.get(), hostile_domain.get(), back.get()}) {
            co_await f->stop();
        }
        co_await host.stop();
    }
    /// At most 30 s.
    Task<bool> until(std::function<bool()> condition) {
        for (int i = 0; i < 15000 && !condition(); ++i) {
            (void)co_await loop.clock.sleep_for(2ms);
        }
        co_return condition();
    }
    /// The attacker's request has come to its end: the state it left, or 99.
    Task<unsigned> end_of_request() {
        auto over = [this] { return attacker.state() == ring::state_idle || attacker.state() == ring::state_finish; };
        bool ended = co_await until(over);
        co_return ended ? attacker.state() : 99U;
    }
    /// One command of the attacker's that is as it should be.
    Task<bool> attacker_behaves() {
        attacker.poke(16, 0x5A);
        attacker.submit(12);
        const unsigned state = co_await end_of_request();
        co_return state == ring::state_finish&& std::to_integer<unsigned>(attacker.pages->bytes()[16]) == 0x5A;
    }
    Task<bool> neighbour_is_served(unsigned commands = 1) {
        for (unsigned i = 0; i < commands; ++i) {
            Bytes request(header_size + 2, static_cast<std::byte>(i));
            auto sent = neighbour.ring()->submit(request, 0);
            if (!sent) {
                co_return false;
            }
            auto answer = co_await neighbour.ring()->answer();
            if (!answer || *answer != request) {
                co_return false;
            }
        }
        co_return true;
    }
    Task<> both_are_served() {
        bool attacker_served = co_await attacker_behaves();
        CHECK(attacker_served);
        bool neighbour_served = co_await neighbour_is_served();
        CHECK(neighbour_served);
        CHECK(lines.size() <= line_limit);
    }

    test::Loop& loop;
    std::vector<std::string> lines;
    Log log{LogLevel::info, [this](LogLevel, std::string_view line) { lines.emplace_back(line); }};
    xen::SimHost host{loop.io.get_executor(), loop.clock, log};
    std::unique_ptr<xen::Fabric> back = host.fabric(0);
    std::unique_ptr<xen::Fabric> hostile_domain = host.fabric(hostile);
    std::unique_ptr<xen::Fabric> honest_domain = host.fabric(honest);
    Device bad{*back, hostile, 0, loop.clock, log};
    Device second{*back, hostile, 1, loop.clock, log};
    Device good{*back, honest, 0, loop.clock, log};
    Attacker attacker{*hostile_domain};
    ring::FrontDevice neighbour{{}, *honest_domain};
    TaskGroup tasks{loop.io.get_executor(), log};
};

Task<> lengths(Stage& s) {
    co_await s.start();
    for (int round = 0; round < 50; ++round) {
        for (std::uint32_t length : {0U, 1U, 9U, 4088U}) { // whole packets: the TPM's to judge
            s.attacker.submit(length);
            const unsigned state = co_await s.end_of_request();
            CHECK(state == ring::state_finish);
        }
        for (std::uint32_t length : {4089U, 4096U, 0x7FFFFFFFU, 0x80000000U, 0xFFFFFFFFU}) {
            const unsigned before = s.bad.sink.commands;
            s.attacker.submit(length);
            const unsigned state = co_await s.end_of_request();
            CHECK(state == ring::state_idle);
            CHECK(s.bad.sink.commands == before);
        }
    }
    CHECK(s.bad.sink.largest == 4088);
    CHECK(s.bad.device.counters().rejected == 250);
    co_await s.both_are_served();
    co_await s.finish();
}

Task<> extra_pages(Stage& s) {
    co_await s.start();
    for (unsigned count : {5U, 16U, 254U, 255U}) { // 255 references would fill a quarter of the page
        s.attacker.submit(12, static_cast<std::uint8_t>(count));
        const unsigned state = co_await s.end_of_request();
        CHECK(state == ring::state_idle);
    }
    // References to nothing, to a page granted to another domain, and to one of another domain's own.
    auto others = s.honest_domain->share(0, 1);
    auto elsewhere = s.hostile_domain->share(honest, 1);
    REQUIRE(others);
    REQUIRE(elsewhere);
    for (std::uint32_t ref : {0U, 0xFFFFFFFFU, 0x12345678U, (*others)->refs()[0] + 1000, (*elsewhere)->refs()[0]}) {
        for (std::uint8_t count = 1; count <= ring::extra_pages_limit; ++count) {
            for (std::size_t i = 0; i < count; ++i) {
                s.attacker.poke32(8 + 4 * i, ref);
            }
            s.attacker.submit(12, count);
            const unsigned state = co_await s.end_of_request();
            CHECK(state == ring::state_idle);
        }
    }
    CHECK(s.bad.sink.commands == 0);
    // The ring's own page again, four times: what is written there is the attacker's own trouble.
    for (std::size_t i = 0; i < ring::extra_pages_limit; ++i) {
        s.attacker.poke32(8 + 4 * i, s.attacker.pages->refs()[0]);
    }
    s.attacker.submit(static_cast<std::uint32_t>(ring::data_capacity(ring::extra_pages_limit)),
                      ring::extra_pages_limit);
    auto executed = [&s] { return s.bad.sink.commands == 1 && !s.bad.sink.running; };
    bool done = co_await s.until(executed);
    CHECK(done);
    (void)co_await s.loop.clock.sleep_for(5ms);
    (*others).reset();
    (*elsewhere).reset();
    co_await s.both_are_served();
    co_await s.finish();
}

/// What another CPU of the guest does while the back end reads. Ends by itself.
void scribble(const Attacker& attacker, const std::atomic<bool>& stop) {
    std::minstd_rand random(1); // NOLINT: the same every time
    constexpr std::array<std::uint32_t, 8> lengths{0, 9, 10, 12, 4088, 4089, 20000, 0xFFFFFFFF};
    constexpr std::array<std::uint8_t, 5> extra{0, 1, 4, 5, 255};
    constexpr std::array<std::uint8_t, 8> states{0, 1, 1, 1, 2, 3, 4, 255};
    while (!stop) {
        attacker.poke32(0, lengths[random() % lengths.size()]);
        attacker.poke(7, extra[random() % extra.size()]);
        attacker.poke(8 + random() % 4000, static_cast<std::uint8_t>(random()));
        attacker.set(states[random() % states.size()]);
    }
}

Task<> changing(Stage& s) {
    co_await s.start();
    std::atomic<bool> stop = false;
    std::thread other_cpu(scribble, std::cref(s.attacker), std::cref(stop));
    auto enough = [&s] { return s.bad.sink.commands >= 100; };
    bool taken = co_await s.until(enough);
    bool neighbour_served = co_await s.neighbour_is_served(100);
    stop = true;
    other_cpu.join();
    CHECK(taken);
    CHECK(neighbour_served);
    CHECK_FALSE(s.bad.sink.torn);
    CHECK(s.bad.sink.largest <= ring::data_capacity(ring::extra_pages_limit));
    (void)co_await s.loop.clock.sleep_for(5ms); // the last of its notifications
    s.attacker.set(ring::state_cancel);
    const unsigned state = co_await s.end_of_request();
    CHECK(state != 99);
    co_await s.both_are_served();
    co_await s.finish();
}

Task<> flipping(Stage& s) {
    co_await s.start();
    for (unsigned value : {0U, 1U, 2U, 3U, 4U, 128U, 255U}) {
        CAPTURE(value);
        const auto state = static_cast<std::uint8_t>(value);
        // Before anything was asked; while a command runs; and just after its answer.
        s.attacker.submit(12);
        s.attacker.set(state);
        (void)co_await s.loop.clock.sleep_for(2ms);
        auto at_rest = [&s] { return !s.bad.sink.running; };
        bool rested = co_await s.until(at_rest);
        CHECK(rested);
        s.attacker.set(ring::state_idle);

        const unsigned before = s.bad.sink.commands;
        const unsigned cancels = s.bad.sink.cancels;
        s.bad.sink.hold = true;
        s.attacker.submit(12);
        auto begun = [&s] { return s.bad.sink.running; };
        bool running = co_await s.until(begun);
        CHECK(running);
        for (int i = 0; i < 3; ++i) {
            s.attacker.set(state);
            (void)co_await s.loop.clock.sleep_for(2ms);
        }
        bool neighbour_served = co_await s.neighbour_is_served(3);
        CHECK(neighbour_served);
        CHECK(s.bad.sink.commands == before + 1); // one at a time, whatever the page says
        CHECK(s.bad.sink.cancels == cancels + (value == ring::state_cancel ? 1 : 0));
        s.bad.sink.release();
        auto finished = [&s] { return !s.bad.sink.running && s.attacker.state() == ring::state_finish; };
        bool answered = co_await s.until(finished);
        CHECK(answered);
        s.attacker.set(state);
        (void)co_await s.loop.clock.sleep_for(2ms);
        s.attacker.set(ring::state_idle);
        co_await s.both_are_served();
    }
    co_await s.finish();
}

Task<> cancel_storm(Stage& s) {
    co_await s.start();
    for (int i = 0; i < 200; ++i) { // with nothing to cancel
        s.attacker.set(ring::state_cancel);
        const unsigned state = co_await s.end_of_request();
        CHECK(state == ring::state_idle);
    }
    CHECK(s.bad.sink.cancels == 0);
    s.bad.sink.hold = true;
    s.attacker.submit(12);
    auto begun = [&s] { return s.bad.sink.running; };
    bool running = co_await s.until(begun);
    CHECK(running);
    for (int i = 0; i < 20; ++i) {
        for (int j = 0; j < 500; ++j) {
            s.attacker.set(ring::state_cancel);
        }
        bool neighbour_served = co_await s.neighbour_is_served();
        CHECK(neighbour_served);
    }
    CHECK(s.bad.sink.cancels == 1); // asked once a command, however often the guest says so
    s.bad.sink.release();
    const unsigned state = co_await s.end_of_request();
    CHECK(state == ring::state_finish);
    co_await s.both_are_served();
    co_await s.finish();
}

Task<> notifications(Stage& s) {
    co_await s.start();
    // On the loop's own thread, so that it can be counted: however many there are, the ring is looked at once for all that
    // came before, and a neighbour waits for one look.
    const std::size_t bad_states = s.bad.device.counters().bad_state;
    s.attacker.poke(4, 77);
    for (int i = 0; i < 100; ++i) {
        for (int j = 0; j < 1000; ++j) {
            (void)s.attacker.channel->notify();
        }
        bool neighbour_served = co_await s.neighbour_is_served();
        CHECK(neighbour_served);
    }
    CHECK(s.bad.device.counters().bad_state - bad_states <= 400); // of 100,000
    s.attacker.set(ring::state_idle);

    // And from another CPU, without a pause.
    std::atomic<bool> stop = false;
    auto hammer = [&] {
        while (!stop) {
            (void)s.attacker.channel->notify();
        }
    };
    std::thread other_cpu(hammer);
    bool neighbour_served = co_await s.neighbour_is_served(200);
    bool attacker_served = co_await s.attacker_behaves();
    stop = true;
    other_cpu.join();
    CHECK(neighbour_served);
    CHECK(attacker_served);
    co_await s.both_are_served();
    co_await s.finish();
}

/// Rings that cannot be connected, then one that can.
Task<> bad_offers(Stage& s) {
    co_await s.start();
    const std::uint32_t ref = s.attacker.pages->refs()[0];
    const std::uint32_t port = s.attacker.channel->port();
    auto elsewhere = s.hostile_domain->share(honest, 1);
    auto unbound = s.hostile_domain->bind_unbound(honest);
    REQUIRE(elsewhere);
    REQUIRE(unbound);
    const std::array<std::pair<std::uint32_t, std::uint32_t>, 6> offers{{
        {0, port},
        {0xFFFFFFFF, port},
        {(*elsewhere)->refs()[0], port}, // granted to somebody else
        {ref, 0},
        {ref, 0xFFFFFFFF},
        {ref, (*unbound)->port()}, // somebody else's
    }};
    auto detached = [&s] { return !s.bad.device.connected(); };
    for (const auto& [bad_ref, bad_port] : offers) {
        auto offered = co_await s.attacker.offer(bad_ref, bad_port);
        CHECK(offered);
        bool lost = co_await s.until(detached);
        CHECK(lost);
        bool neighbour_served = co_await s.neighbour_is_served();
        CHECK(neighbour_served);
    }
    xen::StoreEdit edit; // no numbers at all
    edit.writes = {{"device/vtpm/0/ring-ref", "../../7"}, {"device/vtpm/0/event-channel", std::string(1000, '9')}};
    auto written = co_await s.hostile_domain->store().apply(std::move(edit));
    CHECK(written);
    s.attacker.make();
    auto offered = co_await s.attacker.offer();
    CHECK(offered);
    auto attached = [&s] { return s.bad.device.connected(); };
    bool connected = co_await s.until(attached);
    CHECK(connected);
    (*elsewhere).reset();
    (*unbound).reset();
    co_await s.both_are_served();
    co_await s.finish();
}

Task<> closed_port(Stage& s) {
    co_await s.start();
    s.bad.sink.hold = true;
    s.attacker.submit(12);
    auto begun = [&s] { return s.bad.sink.running; };
    bool running = co_await s.until(begun);
    CHECK(running);
    s.attacker.channel.reset(); // the answer's notification goes nowhere
    s.bad.sink.release();
    const unsigned state = co_await s.end_of_request();
    CHECK(state == ring::state_finish);
    bool neighbour_served = co_await s.neighbour_is_served();
    CHECK(neighbour_served);
    // Page and port taken away under a connected ring, in the middle of a command; then a new one.
    s.attacker.channel = s.hostile_domain->bind_unbound(0).value();
    auto offered = co_await s.attacker.offer();
    CHECK(offered);
    (void)co_await s.loop.clock.sleep_for(20ms);
    s.bad.sink.hold = true;
    const unsigned before = s.bad.sink.commands;
    s.attacker.submit(12);
    auto again = [&s, before] { return s.bad.sink.commands > before; };
    running = co_await s.until(again);
    CHECK(running);
    s.attacker.make();
    offered = co_await s.attacker.offer();
    CHECK(offered);
    s.bad.sink.release();
    (void)co_await s.loop.clock.sleep_for(20ms);
    co_await s.both_are_served();
    co_await s.finish();
}

Task<> same_ring_twice(Stage& s) {
    co_await s.start();
    const std::uint32_t ref = s.attacker.pages->refs()[0];
    // The same page and port at the second device: the port is taken.
    auto offered = co_await s.attacker.offer(ref, s.attacker.channel->port(), 1);
    CHECK(offered);
    (void)co_await s.loop.clock.sleep_for(20ms);
    CHECK_FALSE(s.second.device.connected());
    co_await s.both_are_served();
    // The same page with a port of its own: two back ends on one page, which is nobody's trouble but the guest's.
    auto port = s.hostile_domain->bind_unbound(0).value();
    offered = co_await s.attacker.offer(ref, port->port(), 1);
    CHECK(offered);
    auto attached = [&s] { return s.second.device.connected(); };
    bool connected = co_await s.until(attached);
    CHECK(connected);
    for (int i = 0; i < 100; ++i) {
        s.attacker.submit(12);
        (void)port->notify();
        const unsigned state = co_await s.end_of_request();
        CHECK(state != 99);
    }
    CHECK(s.bad.sink.commands + s.second.sink.commands >= 50);
    (void)co_await s.loop.clock.sleep_for(20ms);
    co_await s.both_are_served();
    port.reset();
    co_await s.finish();
}

/// Each connection has its own back end; the log's patience is the device's.
Task<> reconnects(Stage& s) {
    co_await s.start();
    auto attached = [&s] { return s.bad.device.connected(); };
    auto detached = [&s] { return !s.bad.device.connected(); };
    for (int i = 0; i < 100; ++i) {
        for (int j = 0; j < 3; ++j) {
            s.attacker.submit(0xFFFFFFFF);
            const unsigned state = co_await s.end_of_request();
            CHECK(state == ring::state_idle);
        }
        auto said = co_await s.attacker.offer(0, 0, 0, "6");
        CHECK(said);
        bool lost = co_await s.until(detached);
        CHECK(lost);
        s.attacker.make();
        said = co_await s.attacker.offer();
        CHECK(said);
        bool connected = co_await s.until(attached);
        CHECK(connected);
    }
    co_await s.both_are_served();
    co_await s.finish();
}

void play(Task<> (*attack)(Stage&)) {
    test::Loop loop;
    Stage stage(loop);
    loop.run(attack(stage), 180s);
}

} // namespace

TEST_SUITE("xen hostile") {

    TEST_CASE("lengths from 0 to 2^32-1: taken or dropped, never read beyond the page") { play(lengths); }

    TEST_CASE("extra pages: more than there can be, references that cannot be mapped, the ring's own page") {
        play(extra_pages);
    }

    TEST_CASE("length, body and state changed by another CPU while the back end reads") { play(changing); }

    TEST_CASE("the state flipped before, during and after a command") { play(flipping); }

    TEST_CASE("CANCEL storms") { play(cancel_storm); }

    TEST_CASE("notifications without end: a neighbour is served in between") { play(notifications); }

    TEST_CASE("rings and ports that cannot be connected") { play(bad_offers); }

    TEST_CASE("a port that is closed, a ring that is exchanged, in the middle of a command") { play(closed_port); }

    TEST_CASE("the same ring twice") { play(same_ring_twice); }

    TEST_CASE("a front end that connects again and again fills no log") { play(reconnects); }

} // TEST_SUITE

} // namespace xen_hostile_test
