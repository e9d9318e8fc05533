// A ring's page that a guest may have written in any order, with the real back end behind it on simulated Xen. The input is a
// program of steps { u8 what, ... }: 0 poke (u16 offset, u8 value), 1 length (u32), 2 set the state (u8) and notify, 3 let the
// back end run, 4 the command that runs may end, 5 hold the next ones, 6 the extra page's right reference (u8 which).
#include "fuzz.hpp"
#include "ring/back_end.hpp"
#include "util/wire.hpp"
#include "xen/sim.hpp"

#include <algorithm>

namespace ring_page_fuzz {

using namespace vtpmd;

namespace {

constexpr xen::DomId guest = 5;
constexpr std::size_t header_size = 10;

class Echo final : public ring::CommandSink {
  public:
    explicit Echo(const asio::any_io_executor& executor)
        : wake_(executor) {}
    Task<Bytes> execute(Bytes request, std::uint8_t /*locality*/) override {
        fuzz::fuzz_check(!running, "one request at a time");
        fuzz::fuzz_check(request.size() <= ring::data_capacity(ring::extra_pages_limit), "a request fits into a ring");
        running = true;
        while (hold) {
            if (auto ec = co_await wake_.wait(); ec) {
                break;
            }
        }
        running = false;
        request.resize(std::max(request.size(), header_size));
        co_return request;
    }
    void cancel() override {}
    void release() {
        hold = false;
        wake_.set();
    }
    bool hold = false;
    bool running = false;

  private:
    Wake wake_;
};

/// Lives as long as the process: a run costs a back end, not a machine.
struct World {
    asio::io_context io{1};
    SystemClock clock{io.get_executor()};
    Log log{LogLevel::error, [](LogLevel, std::string_view) {}};
    xen::SimHost host{io.get_executor(), clock, log};
    std::unique_ptr<xen::Fabric> back = host.fabric(0);
    std::unique_ptr<xen::Fabric> front = host.fabric(guest);
    std::unique_ptr<xen::Pages> page = front->share(0, 2).value();

    World() { back->start(); }
    void settle() {
        io.restart();
        while (io.poll() != 0) {
        }
    }
};

World& world() {
    static auto* w = new World; // NOLINT: never destroyed
    return *w;
}

struct Run {
    explicit Run(World& w)
        : world(w)
        , sink(w.io.get_executor())
        , channel(w.front->bind_unbound(0).value()) {
        std::ranges::fill(world.page->bytes(), std::byte{0});
        ring::BackEnd::Link link{world.back->map(guest, world.page->refs().first(1)).value(),
                                 world.back->bind_interdomain(guest, channel->port()).value()};
        end.emplace(ring::BackEndOptions{.name = "fuzz"},
                    ring::BackEnd::Parts{*world.back, sink, world.log, counters, limit}, std::move(link));
        end->start();
    }
    Run(const Run&) = delete;
    Run& operator=(const Run&) = delete;
    ~Run() {
        bool done = false;
        asio::co_spawn(world.io, end->stop(Clock::duration::zero()), [&](const std::exception_ptr&) { done = true; });
        world.io.restart();
        while (!done && world.io.run_one() != 0) {
        }
        end.reset();
        channel.reset();
        world.settle();
    }
    void set_state(std::uint8_t state) {
        view().set_state(state);
        (void)channel->notify();
    }
    [[nodiscard]] ring::Page view() const { return ring::Page(world.page->bytes().first(xen::page_size)); }

    void step(WireReader& r) {
        const MutByteView bytes = world.page->bytes();
        switch (r.u8() % 7) {
        case 0: {
            const std::size_t at = r.be16() % xen::page_size;
            bytes[at] = static_cast<std::byte>(r.u8());
            break;
        }
        case 1:
            for (std::size_t i = 0; i < 4; ++i) {
                bytes[i] = static_cast<std::byte>(r.u8());
            }
            break;
        case 2:
            set_state(r.u8());
            break;
        case 3:
            world.settle();
            break;
        case 4:
            sink.release();
            break;
        case 5:
            sink.hold = true;
            break;
        default: {
            const xen::GrantRef ref = world.page->refs()[1];
            const std::size_t which = r.u8() % ring::extra_pages_limit;
            for (std::size_t i = 0; i < 4; ++i) {
                bytes[8 + 4 * which + i] = static_cast<std::byte>(ref >> (8 * i));
            }
            break;
        }
        }
    }
    /// Whatever was done before: a guest that begins to behave is served.
    void behave() {
        sink.release();
        world.settle();
        fuzz::fuzz_check(!sink.running, "a command that may end has ended");
        const Bytes packet(12, std::byte{0x5A});
        view().set_state(ring::state_idle);
        view().set_extra_refs({});
        view().write({}, packet, {});
        set_state(ring::state_submit);
        const auto give_up = std::chrono::steady_clock::now() + std::chrono::seconds(20);
        while (view().state() == ring::state_submit && std::chrono::steady_clock::now() < give_up) {
            world.io.restart();
            (void)world.io.run_one_for(std::chrono::milliseconds(10));
        }
        fuzz::fuzz_check(view().state() == ring::state_finish, "the ring works again");
        const auto header = view().header();
        fuzz::fuzz_check(header.length == packet.size() && view().read({}, packet.size(), {}) == packet,
                         "the answer is the last request's");
    }

    World& world;
    Echo sink;
    std::unique_ptr<xen::EventChannel> channel;
    ring::RingCounters counters;
    RateLimit limit;
    std::optional<ring::BackEnd> end;
};

std::vector<Bytes> seeds() {
    std::vector<Bytes> seeds;
    auto add = [&](std::initializer_list<unsigned> bytes) {
        Bytes& seed = seeds.emplace_back();
        for (unsigned b : bytes) {
            seed.push_back(static_cast<std::byte>(b));
        }
    };
    add({1, 12, 0, 0, 0, 2, 1, 3});                                                // a command
    add({5, 1, 12, 0, 0, 0, 2, 1, 3, 2, 3, 3, 2, 1, 3, 4, 3, 2, 2, 3});            // cancelled, submitted again, ended
    add({0, 0, 7, 1, 6, 0, 1, 0xF8, 0x0F, 0, 0, 2, 1, 3, 3, 2, 0, 3});             // with an extra page
    add({0, 0, 7, 4, 6, 0, 6, 1, 6, 2, 6, 3, 1, 0, 0x50, 0, 0, 2, 1, 3, 2, 3, 3}); // with four, all the same
    add({1, 0xFF, 0xFF, 0xFF, 0xFF, 2, 1, 3, 0, 0, 7, 255, 2, 1, 3, 2, 77, 3});    // too long, too many, no state
    return seeds;
}

void run(ByteView input) {
    Run run(world());
    WireReader r(input);
    while (r.ok() && r.remaining() > 0) {
        run.step(r);
    }
    run.behave();
}

const fuzz::Harness harness("ring_page", seeds, run);

} // namespace

} // namespace ring_page_fuzz
