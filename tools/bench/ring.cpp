#include "ring.hpp"

#include "engine/engine.hpp"
#include "ring/back_end.hpp"
#include "tpm/commands.hpp"
#include "tpm/header.hpp"
#include "xen/sim.hpp"

#include <algorithm>
#include <atomic>
#include <future>
#include <stdexcept>
#include <thread>

namespace bench {

using namespace vtpmd;
using Steady = std::chrono::steady_clock;

namespace {

constexpr xen::DomId guest_domain = 5;
constexpr std::chrono::microseconds spin_limit{50};

class EngineSink final : public ring::CommandSink {
  public:
    explicit EngineSink(Engine& engine)
        : engine_(engine) {}
    Task<Bytes> execute(Bytes request, std::uint8_t locality) override { co_return engine_.execute(request, locality); }
    void cancel() override {}

  private:
    Engine& engine_;
};

/// A loop on a thread of its own while it lives.
class LoopThread {
  public:
    LoopThread()
        : work_(asio::make_work_guard(io_))
        , thread_([this] { io_.run(); }) {}
    LoopThread(const LoopThread&) = delete;
    LoopThread& operator=(const LoopThread&) = delete;
    ~LoopThread() {
        work_.reset();
        thread_.join();
    }
    [[nodiscard]] asio::any_io_executor executor() { return io_.get_executor(); }
    void run(Task<> task) {
        std::promise<void> done;
        asio::co_spawn(io_, std::move(task),
                       [&](const std::exception_ptr& e) { e ? done.set_exception(e) : done.set_value(); });
        done.get_future().get();
    }

  private:
    asio::io_context io_{1};
    asio::executor_work_guard<asio::io_context::executor_type> work_;
    std::thread thread_;
};

/// Back ends of `rings` rings on a thread, their pages and ports in the guest's hands.
class Machine {
  public:
    struct GuestRing {
        std::unique_ptr<xen::Pages> pages;
        std::unique_ptr<xen::EventChannel> channel;
        [[nodiscard]] ring::Page page() const { return ring::Page(pages->bytes()); }
    };
    Machine(std::size_t rings, Clock::duration spin)
        : engine_(Engine::create(TpmVersion::tpm20).value())
        , sink_(*engine_) {
        engine_->power_on({}).value();
        (void)engine_->execute(tpm::startup_command(TpmVersion::tpm20, tpm::StartupMode::clear), 0);
        front_->start();
        for (std::size_t i = 0; i < rings; ++i) {
            guest_rings.push_back({front_->share(0, 1).value(), front_->bind_unbound(0).value()});
        }
        back_loop_.run(begin(spin));
    }
    Machine(const Machine&) = delete;
    Machine& operator=(const Machine&) = delete;
    ~Machine() {
        back_loop_.run(end());
        guest_rings.clear();
        asio::co_spawn(guest_io, front_->stop(), [](const std::exception_ptr& /*nobody to tell*/) {});
        guest_io.restart();
        guest_io.run();
        back_loop_.run(host_.stop());
    }

    asio::io_context guest_io{1};
    std::vector<GuestRing> guest_rings;

  private:
    Task<> begin(Clock::duration spin) {
        back_->start();
        for (GuestRing& g : guest_rings) {
            ring::BackEnd::Link link{back_->map(guest_domain, g.pages->refs()).value(),
                                     back_->bind_interdomain(guest_domain, g.channel->port()).value()};
            back_ends_.push_back(std::make_unique<ring::BackEnd>(
                ring::BackEndOptions{.name = "bench", .spin = spin},
                ring::BackEnd::Parts{*back_, sink_, log_, counters_, limit_}, std::move(link)));
            back_ends_.back()->start();
        }
        co_return;
    }
    Task<> end() {
        for (auto& back_end : back_ends_) {
            co_await back_end->stop(Clock::duration::zero());
        }
        back_ends_.clear();
        co_await back_->stop();
    }

    Log log_{LogLevel::error, [](LogLevel, std::string_view) {}};
    LoopThread back_loop_;
    SystemClock back_clock_{back_loop_.executor()};
    SystemClock guest_clock_{guest_io.get_executor()};
    xen::SimHost host_{back_loop_.executor(), back_clock_, log_};
    std::unique_ptr<xen::Fabric> back_ = host_.fabric(0);
    std::unique_ptr<xen::Fabric> front_ = host_.fabric(guest_domain, guest_io.get_executor(), guest_clock_);
    std::unique_ptr<Engine> engine_;
    EngineSink sink_;
    ring::RingCounters counters_;
    RateLimit limit_;
    std::vector<std::unique_ptr<ring::BackEnd>> back_ends_;
};

void submit(const Machine::GuestRing& ring, ByteView command) {
    ring.page().write({}, command, {});
    ring.page().set_state(ring::state_submit);
    ring.channel->notify().value();
}

bool answered(const Machine::GuestRing& ring) { return ring.page().state() == ring::state_finish; }

/// The answer, copied and looked at, as a guest does.
void take(const Machine::GuestRing& ring) {
    const auto header = ring.page().header();
    const Bytes answer = ring.page().read({}, std::min<std::size_t>(header.length, ring::data_capacity(0)), {});
    if (tpm::peek_header(answer).code != 0) {
        throw std::runtime_error("the TPM behind the ring refuses the command");
    }
}

/// Takes the guest's events, so that there can be another.
Task<> guest_interrupts(xen::EventChannel& channel) {
    for (;;) {
        if (auto ec = co_await channel.wait(); ec) {
            co_return;
        }
    }
}

std::vector<double> trips(Clock::duration back_spin, Clock::duration guest_spin, ByteView command, std::size_t count) {
    Machine machine(1, back_spin);
    Machine::GuestRing& ring = machine.guest_rings[0];
    Log log(LogLevel::error, [](LogLevel, std::string_view) {});
    TaskGroup tasks(machine.guest_io.get_executor(), log);
    tasks.spawn("interrupts", guest_interrupts(*ring.channel));
    std::vector<double> samples;
    for (std::size_t i = 0; i < count + count / 10; ++i) {
        const auto begin = Steady::now();
        submit(ring, command);
        while (!answered(ring) && Steady::now() - begin < guest_spin) {
        }
        while (!answered(ring)) {
            if (machine.guest_io.run_one_for(std::chrono::seconds(10)) == 0) {
                throw std::runtime_error("the ring does not answer");
            }
        }
        take(ring);
        if (i >= count / 10) {
            samples.push_back(std::chrono::duration<double, std::micro>(Steady::now() - begin).count());
        }
    }
    tasks.cancel();
    asio::co_spawn(machine.guest_io, tasks.join(), [](const std::exception_ptr& /*nobody to tell*/) {});
    while (!tasks.empty() && machine.guest_io.run_one_for(std::chrono::seconds(10)) != 0) {
    }
    machine.guest_io.poll();
    return samples;
}

Latency latency_of(std::vector<double> samples) {
    std::sort(samples.begin(), samples.end());
    const auto at = [&](double q) {
        return samples[static_cast<std::size_t>(q * static_cast<double>(samples.size() - 1))];
    };
    return {.p50_us = at(0.5), .p99_us = at(0.99)};
}

Task<> one_guest(const Machine::GuestRing& ring, ByteView command, Steady::time_point until, std::size_t& served) {
    while (Steady::now() < until) {
        submit(ring, command);
        while (!answered(ring)) {
            if (auto ec = co_await ring.channel->wait(); ec) {
                co_return;
            }
        }
        take(ring);
        ++served;
    }
}

} // namespace

RingTrips ring_round_trips(ByteView command, const Extent& extent) {
    const std::size_t count = extent.blocks * extent.trips_per_block / 2;
    return {.polled = latency_of(trips(spin_limit, spin_limit, command, count)),
            .slept = latency_of(trips(spin_limit, Clock::duration::zero(), command, count)),
            .no_spin = latency_of(trips(Clock::duration::zero(), Clock::duration::zero(), command, count))};
}

double rings_per_second(std::size_t rings, ByteView command, std::chrono::milliseconds time) {
    Machine machine(rings, Clock::duration::zero());
    Log log(LogLevel::error, [](LogLevel, std::string_view) {});
    TaskGroup tasks(machine.guest_io.get_executor(), log);
    std::size_t served = 0;
    const auto begin = Steady::now();
    for (const auto& ring : machine.guest_rings) {
        tasks.spawn("guest", one_guest(ring, command, begin + time, served));
    }
    while (!tasks.empty()) {
        if (machine.guest_io.run_one_for(std::chrono::seconds(10)) == 0) {
            throw std::runtime_error("a ring does not answer");
        }
    }
    return static_cast<double>(served) / std::chrono::duration<double>(Steady::now() - begin).count();
}

} // namespace bench
