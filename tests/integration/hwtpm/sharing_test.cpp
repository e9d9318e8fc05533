// Many callers on one TPM, a TPM behind registers, and a disk that fails under the embedded one.
#include "check.hpp"
#include "manager_machine.hpp"
#include "support.hpp"
#include "swtpm_process.hpp"
#include "tis_model.hpp"

#include "engine/engine.hpp"
#include "hwtpm/drivers/tis_device.hpp"
#include "hwtpm/queue/hardware_root.hpp"
#include "manager/vault/vault.hpp"
#include "util/task_group.hpp"
#include "util/text.hpp"

#include <boost/asio/detached.hpp>
#include <mutex>
#include <set>

namespace sharing_test {

using namespace vtpmd;
using namespace vtpmd::hwtpm;
using vtpmd::test::Loop;
using vtpmd::test::make_counter;

namespace {

std::unique_ptr<RootOfTrust> open(Loop& loop, const std::string& driver) {
    auto root = open_root(OpenOptions{.driver = driver}, loop.io.get_executor(), loop.log, true);
    if (!root) {
        FAIL(root.error().message);
    }
    return std::move(*root);
}

Task<> ask_random(RootOfTrust& root, std::vector<Bytes>& out) {
    auto bytes = co_await root.random(16);
    if (bytes) {
        out.push_back(std::move(*bytes));
    }
}

Task<> ask_pcrs(RootOfTrust& root, unsigned first, unsigned& right) {
    std::vector<PcrSelection> selections;
    selections.push_back({HashAlg::sha256, {first, first + 1, 23}});
    auto values = co_await root.pcr_read(std::move(selections));
    if (values && values->size() == 3 && values->front().index == first && values->back().index == 23) {
        ++right;
    }
}

/// The model is the hardware thread's; the test turns its faults between two calls.
class LockedBus final : public TisBus {
  public:
    LockedBus(fakes::TisModel& model, std::mutex& mutex)
        : model_(model)
        , mutex_(mutex) {}
    std::uint8_t read8(std::uint32_t o) override {
        std::lock_guard lock(mutex_);
        return model_.read8(o);
    }
    std::uint32_t read32(std::uint32_t o) override {
        std::lock_guard lock(mutex_);
        return model_.read32(o);
    }
    void write8(std::uint32_t o, std::uint8_t v) override {
        std::lock_guard lock(mutex_);
        model_.write8(o, v);
    }
    void write32(std::uint32_t o, std::uint32_t v) override {
        std::lock_guard lock(mutex_);
        model_.write32(o, v);
    }
    [[nodiscard]] Time now() override {
        std::lock_guard lock(mutex_);
        return model_.now();
    }
    void pause(std::chrono::microseconds d) override {
        std::lock_guard lock(mutex_);
        model_.pause(d);
    }

  private:
    fakes::TisModel& model_;
    std::mutex& mutex_;
};

} // namespace

TEST_SUITE("hwtpm-2.0") {
    TEST_CASE("many callers, few commands: random bytes come from a pool, PCR reads are shared") {
        fakes::SwtpmProcess swtpm;
        Loop loop;
        auto root = open(loop, swtpm.driver());
        const HardwareMetrics before = root->metrics();
        std::vector<Bytes> random;
        unsigned right = 0;
        for (unsigned i = 0; i < 64; ++i) {
            asio::co_spawn(loop.io, ask_random(*root, random), asio::detached);
            if (i % 4 == 0) {
                asio::co_spawn(loop.io, ask_pcrs(*root, i / 4, right), asio::detached);
            }
        }
        asio::cancellation_signal cancel;
        std::vector<Bytes> nothing;
        asio::co_spawn(loop.io, ask_random(*root, nothing),
                       asio::bind_cancellation_slot(cancel.slot(), asio::detached));
        loop.io.restart();
        loop.io.poll();
        cancel.emit(asio::cancellation_type::terminal);
        loop.io.restart();
        loop.io.run();
        CHECK(random.size() == 64);
        CHECK(std::set<Bytes>(random.begin(), random.end()).size() == 64);
        CHECK(right == 16);
        CHECK(nothing.empty());
        const HardwareMetrics after = root->metrics();
        CHECK(after.random_requests - before.random_requests == 65);
        CHECK(after.random_trips - before.random_trips <= 20); // (65 * 16 + 128 spare) / 64
        CHECK(after.pcr_requests - before.pcr_requests == 16);
        CHECK(after.pcr_trips - before.pcr_trips <= 3);
        std::uint64_t counted = 0;
        for (auto n : after.latency) {
            counted += n;
        }
        CHECK(counted == after.urgent_jobs + after.routine_jobs);
        loop.run(root->close());
    }

    TEST_CASE("a root behind TIS registers: works, lives through a TPM that vanishes and hangs") {
        auto engine = Engine::create(TpmVersion::tpm20).value();
        REQUIRE(engine->power_on(EngineState{}));
        std::mutex mutex;
        fakes::TisModel model(
            [&](ByteView command, std::uint8_t locality) { return engine->execute(command, locality); });
        model.holder = 0; // the firmware's
        model.burst = 64;
        Loop loop;
        auto device = make_tis_device(std::make_unique<LockedBus>(model, mutex), {.locality = 0}, "tis:model", true);
        REQUIRE(device);
        auto root = make_root20(std::move(*device), {}, loop.io.get_executor(), loop.log);
        REQUIRE(root);
        auto set = [&](auto change) {
            std::lock_guard lock(mutex);
            change(model.faults);
        };
        const SecretBytes secret(as_bytes("a secret behind registers"));
        RootOfTrust::SealOptions options;
        auto sealed = loop.run((*root)->seal(secret.clone(), options));
        REQUIRE(sealed);
        auto counter = make_counter(loop, **root).value();
        const auto value = loop.run((*root)->counter_increment(counter)).value();
        set([](auto& f) { f.vanished = true; });
        CHECK(!loop.run((*root)->counter_increment(counter)));
        CHECK(!loop.run((*root)->unseal(*sealed)));
        set([](auto& f) { f.vanished = false; });
        CHECK(loop.run((*root)->unseal(*sealed)).value().equals(secret.view()));
        set([](auto& f) {
            f.hangs = true;
            f.ignores_cancel = true;
        });
        auto hung = loop.run((*root)->counter_increment(counter));
        REQUIRE(!hung);
        CHECK(hung.error().code == Errc::timed_out);
        set([](auto& f) { f = {}; });
        set([](auto& f) {
            f.short_answer = 2;
            f.lost_byte = 1;
            f.lost_expect = 1;
            f.stuck_burst_zero = 5;
        });
        CHECK(loop.run((*root)->counter_increment(counter)).value() == value + 1);
        loop.run((*root)->close());
        std::lock_guard lock(mutex);
        CHECK(model.holder == -1);
    }

    TEST_CASE("a locality that another keeps ends a start; later the vTPMs save on, the step is tried again, and it "
              "says so") {
        auto engine = Engine::create(TpmVersion::tpm20).value();
        REQUIRE(engine->power_on(EngineState{}));
        std::mutex mutex;
        fakes::TisModel model(
            [&](ByteView command, std::uint8_t locality) { return engine->execute(command, locality); });
        fakes::Loop loop;
        auto take = [&](int locality) { // between two batches: when nobody has it
            return loop.until([&] {
                std::lock_guard lock(mutex);
                model.holder = model.holder < 0 ? locality : model.holder;
                return model.holder == locality;
            });
        };
        auto give_back = [&] {
            std::lock_guard lock(mutex);
            model.holder = -1;
        };
        Loop lines; // only its log: the hardware thread's lines come there, too
        // Not exclusive: the other is a driver of the kernel's, from which nothing is taken away.
        auto open_root = [&] {
            return make_root20(
                make_tis_device(std::make_unique<LockedBus>(model, mutex), {.locality = 0}, "tis:model", false).value(),
                {}, loop.io.get_executor(), lines.log);
        };
        REQUIRE(take(4));
        auto refused = open_root(); // the first claim
        REQUIRE(!refused);
        CHECK(refused.error().code == Errc::unavailable);
        CHECK(refused.error().message.find("locality 4 holds") != std::string::npos);
        give_back();
        auto root = open_root();
        REQUIRE(root);
        test::FaultDisk disk;
        fakes::FaultPlace place(disk, lines.log);
        auto vault = loop.run(manager::Vault::create({.size = store::ManagerImage::min_size,
                                                      .recovery_file = {},
                                                      .seal_pcrs = parse_pcr_selection("sha256:0,7").value(),
                                                      .allow_zero_pcrs = true,
                                                      .freshness = {},
                                                      .accept_counter = {}},
                                                     {.executor = loop.io.get_executor(),
                                                      .place = place,
                                                      .root = **root,
                                                      .clock = loop.clock,
                                                      .log = lines.log,
                                                      .unix_time = [] { return std::uint64_t{0}; }}));
        if (!vault) {
            FAIL(vault.error().message);
        }
        const auto steps = (*vault)->freshness().counters().steps;
        const Uuid uuid = parse_uuid("11111111-2222-3333-4444-555555555555").value();
        REQUIRE(loop.run((*vault)->register_vtpm(uuid, TpmVersion::tpm20)));

        REQUIRE(take(4));
        loop.clock.advance(std::chrono::hours(1)); // a step is due
        TaskGroup tasks(loop.io.get_executor(), lines.log);
        tasks.spawn("freshness", (*vault)->freshness().run());
        std::vector<Clock::duration> pauses;
        for (std::uint64_t failures = 1; failures <= 4; ++failures) {
            const bool tried = loop.until([&] {
                return (*vault)->freshness().counters().failures == failures &&
                       loop.clock.next_due() > loop.clock.now();
            });
            REQUIRE(tried);
            SecretBytes key{ByteView(Bytes(manager::hash_key_long, static_cast<std::byte>(failures)))};
            CHECK(loop.run((*vault)->save_key(uuid, std::move(key)), false));
            pauses.push_back(loop.clock.next_due() - loop.clock.now());
            loop.clock.advance(pauses.back());
        }
        CHECK(std::is_sorted(pauses.begin(), pauses.end()));
        CHECK(pauses.back() >= 4 * pauses.front());
        CHECK(lines.logged("locality 4 holds"));
        CHECK(lines.logged("the vTPMs are served meanwhile, next try in"));
        CHECK((*vault)->freshness().owed());
        CHECK((*vault)->freshness().counters().steps == steps);

        give_back();
        const bool stepped = loop.until([&] {
            loop.clock.advance(std::chrono::seconds(1));
            return (*vault)->freshness().counters().steps == steps + 1;
        });
        CHECK(stepped);
        CHECK_FALSE((*vault)->freshness().owed());
        tasks.cancel();
        loop.run(tasks.join());
        CHECK(loop.run((*vault)->close()));
        loop.run((*root)->close());
    }

    TEST_CASE("an embedded TPM whose disk fails gives no answer, and goes on from what the disk has") {
        fakes::TempDir dir;
        const auto tpm = dir.path() / "tpm";
        Loop loop;
        auto root = open(loop, "embedded:" + tpm.string());
        auto counter = make_counter(loop, *root).value();
        const auto value = loop.run(root->counter_increment(counter)).value();
        std::filesystem::create_directory(tpm / "tpm20.state.new"); // in the way of the next state
        auto failed = loop.run(root->counter_increment(counter));
        REQUIRE(!failed);
        CHECK(failed.error().message.find("tpm20.state.new") != std::string::npos);
        CHECK(!loop.run(root->counter_increment(counter)));
        std::filesystem::remove(tpm / "tpm20.state.new");
        const auto next = loop.run(root->counter_increment(counter)).value();
        CHECK(next == value + 1); // what failed was never there
        loop.run(root->close());
        root.reset();
        auto again = open(loop, "embedded:" + tpm.string());
        CHECK(loop.run(again->counter_read(counter)).value() == next);
        loop.run(again->close());
    }
}

} // namespace sharing_test
