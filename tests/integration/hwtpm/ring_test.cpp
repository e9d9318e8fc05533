// --tpm=xen: the root of trust is a vTPM of another domain, over a simulated ring that a second thread serves.
#include "check.hpp"
#include "support.hpp"

#include "engine/engine.hpp"
#include "hwtpm/drivers/ring_device.hpp"
#include "hwtpm/queue/hardware_root.hpp"
#include "hwtpm/queue/probe.hpp"
#include "ring/back_device.hpp"
#include "tpm/commands.hpp"
#include "util/task_group.hpp"
#include "xen/sim.hpp"

#include <atomic>
#include <boost/asio/detached.hpp>
#include <future>
#include <thread>

namespace ring_test {

using namespace vtpmd;
using namespace vtpmd::hwtpm;
using namespace std::chrono_literals;
using vtpmd::test::Loop;
using vtpmd::test::make_counter;

namespace {

constexpr xen::DomId own_domain = 7;
constexpr unsigned handle = 2;

struct Sink final : ring::CommandSink {
    explicit Sink(Engine& e)
        : engine(e) {}
    Task<Bytes> execute(Bytes request, std::uint8_t at) override {
        locality = at;
        ++commands;
        if (deaf) {
            co_return Bytes(); // dropped
        }
        co_return engine.execute(request, at);
    }
    void cancel() override {}
    Engine& engine;
    std::atomic<unsigned> commands = 0;
    std::atomic<unsigned> locality = 99;
    std::atomic<bool> deaf = false;
};

/// Domain 0, on a thread of its own: the back end of domain 7's device 2.
class OtherDomain {
  public:
    explicit OtherDomain(TpmVersion version)
        : engine_(Engine::create(version).value())
        , sink(*engine_)
        , work_(asio::make_work_guard(io_))
        , clock_(io_.get_executor())
        , host_(io_.get_executor(), clock_, loop_.log)
        , back_(host_.fabric(0))
        , tasks_(io_.get_executor(), loop_.log) {
        REQUIRE(engine_->power_on(EngineState{}));
        (void)engine_->execute(tpm::startup_command(version, tpm::StartupMode::clear), 0); // as its instance does
        host_.add_vtpm(0, own_domain, handle, Uuid{});
        back_->start();
        serve();
        thread_ = std::thread([this] { io_.run(); });
    }
    OtherDomain(const OtherDomain&) = delete;
    OtherDomain& operator=(const OtherDomain&) = delete;
    ~OtherDomain() {
        on_thread([this]() -> Task<> { co_await stop_serving(); });
        on_thread([this]() -> Task<> { co_await back_->stop(); });
        on_thread([this]() -> Task<> { co_await host_.stop(); });
        work_.reset();
        thread_.join();
    }
    FabricMaker maker() {
        return [this](asio::any_io_executor executor, Clock& clock) -> Result<std::unique_ptr<xen::Fabric>> {
            return host_.fabric(own_domain, std::move(executor), clock);
        };
    }
    /// The back end ends, and another takes its place.
    void replace() {
        on_thread([this]() -> Task<> {
            co_await stop_serving();
            serve();
        });
    }

  private:
    void on_thread(std::function<Task<>()> what) {
        std::promise<void> done;
        asio::co_spawn(io_, std::move(what), [&](const std::exception_ptr&) { done.set_value(); });
        REQUIRE(done.get_future().wait_for(60s) == std::future_status::ready);
    }
    void serve() {
        device_.emplace(ring::BackDeviceOptions{.id = {own_domain, handle}, .uuid = Uuid{}},
                        ring::BackDevice::Parts{*back_, clock_, loop_.log});
        device_->open(sink);
        tasks_.spawn("device", run(*device_));
    }
    static Task<> run(ring::BackDevice& device) { (void)co_await device.run(); }
    Task<> stop_serving() {
        tasks_.cancel();
        co_await tasks_.join();
        device_.reset();
    }

    Loop loop_; // for its log
    std::unique_ptr<Engine> engine_;
    asio::io_context io_;

  public:
    Sink sink;

  private:
    asio::executor_work_guard<asio::io_context::executor_type> work_;
    SystemClock clock_;
    xen::SimHost host_;
    std::unique_ptr<xen::Fabric> back_;
    TaskGroup tasks_;
    std::optional<ring::BackDevice> device_;
    std::thread thread_;
};

} // namespace

TEST_SUITE("hwtpm-2.0") {
    TEST_CASE(
        "2.0: a root that is another domain's vTPM, over a ring; its back end drops a command, ends and comes back") {
        OtherDomain other(TpmVersion::tpm20);
        Loop loop;
        auto device = make_ring_device(other.maker(), handle, 1, loop.log);
        REQUIRE(device);
        CHECK((*device)->description() == "xen:2");
        CHECK(probe_family(**device).value() == TpmVersion::tpm20);
        auto root = make_root20(std::move(*device), {}, loop.io.get_executor(), loop.log);
        REQUIRE(root);
        CHECK(other.sink.locality == 1);
        const SecretBytes secret(as_bytes("a secret over a ring"));
        auto sealed = loop.run((*root)->seal(secret.clone(), {}));
        REQUIRE(sealed);
        auto counter = make_counter(loop, **root).value();
        const auto value = loop.run((*root)->counter_increment(counter)).value();

        other.sink.deaf = true;
        CHECK(!loop.run((*root)->counter_increment(counter)));
        other.sink.deaf = false;
        CHECK(loop.run((*root)->counter_increment(counter)).value() == value + 1);

        other.replace();
        CHECK(loop.run((*root)->unseal(*sealed)).value().equals(secret.view()));
        CHECK(loop.run((*root)->counter_increment(counter)).value() == value + 2);
        loop.run((*root)->close());
    }

    TEST_CASE("2.0: a ring that the toolstack did not make is named") {
        OtherDomain other(TpmVersion::tpm20);
        Loop loop;
        auto device = make_ring_device(other.maker(), handle + 1, 0, loop.log);
        REQUIRE(!device);
        CHECK(device.error().code == Errc::not_found);
        CHECK(device.error().message.find("--tpm=xen:3") != std::string::npos);
        CHECK(device.error().message.find("vtpm=[") != std::string::npos);
        CHECK(other.sink.commands == 0);
    }
}

TEST_SUITE("hwtpm-1.2") {
    TEST_CASE("1.2: a root that is another domain's vTPM is told by its family") {
        OtherDomain other(TpmVersion::tpm12);
        Loop loop;
        auto device = make_ring_device(other.maker(), handle, 0, loop.log);
        REQUIRE(device);
        CHECK(probe_family(**device).value() == TpmVersion::tpm12);
    }
}

} // namespace ring_test
