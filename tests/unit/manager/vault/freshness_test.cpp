// The rules of rollback protection, with a fake counter, a fake clock and a journal in memory that crashes on demand.
#include "manager/vault/freshness.hpp"

#include "check.hpp"
#include "fake_root_of_trust.hpp"
#include "loop.hpp"
#include "util/task_group.hpp"

#include <algorithm>

namespace manager_freshness_test {

using namespace vtpmd;
using namespace vtpmd::manager;
using namespace std::chrono_literals;
using Mode = FreshnessPolicy::Mode;

namespace {

struct Crash {};

/// A journal with one batch a call, and what of it is on disk. Rebooting replays the disk.
struct World {
    explicit World(FreshnessPolicy p = {})
        : policy(p) {
        tpm.counters[1] = 100;
        disk.push_back(encode(FreshnessRecord{.counter = 100}));
        boot();
    }
    void boot() {
        freshness.reset();
        root.emplace(tpm);
        registry = {};
        for (const Bytes& r : disk) {
            REQUIRE(registry.apply(decode(r).value()));
        }
        freshness.emplace(policy, Freshness::Counter{.ref = {.handle = 1, .auth = {}}},
                          Freshness::Parts{.executor = loop.io.get_executor(),
                                           .root = *root,
                                           .registry = registry,
                                           .clock = loop.clock,
                                           .log = loop.log,
                                           .append = [this](std::vector<Bytes> r) { return append(std::move(r)); }});
    }
    Task<Result<void>> append(std::vector<Bytes> records) {
        ++appends;
        std::vector<Bytes> all = freshness->prologue();
        all.insert(all.end(), records.begin(), records.end());
        co_await asio::post(use_tuple);
        tick();
        if (journal_fails) {
            co_return make_error(Errc::io, "disk");
        }
        for (Bytes& r : all) {
            REQUIRE(registry.apply(decode(r).value()));
            disk.push_back(std::move(r));
        }
        tick();
        co_return co_await freshness->before_acknowledge();
    }
    void tick() {
        if (crash_in && (*crash_in)-- == 0) {
            crash_in.reset();
            throw Crash{};
        }
    }
    Result<void> commit() {
        freshness->committing();
        std::vector<Bytes> records{encode(TombstoneRecord{.uuid = random_uuid()})};
        return loop.run(append(std::move(records)));
    }
    Result<void> check(std::optional<std::uint64_t> accept = {}) { return loop.run(freshness->check(accept)); }
    std::uint64_t hardware() { return tpm.counters.at(1); }
    std::size_t steps() { return static_cast<std::size_t>(std::ranges::count(tpm.calls, "counter_increment")); }

    FreshnessPolicy policy;
    fakes::Loop loop;
    fakes::FakeTpm tpm;
    std::optional<fakes::FakeRootOfTrust> root;
    Registry registry;
    std::vector<Bytes> disk;
    std::optional<Freshness> freshness;
    std::optional<int> crash_in;
    bool journal_fails = false;
    int appends = 0;
};

/// Runs Freshness::run() beside the test.
struct Running {
    explicit Running(World& world)
        : w(world)
        , task(w.loop.start(w.freshness->run())) {
        w.loop.settle();
    }
    ~Running() {
        task->cancel();
        w.loop.settle();
    }
    void pass(Clock::duration d) {
        w.loop.clock.advance(d);
        w.loop.settle();
    }
    World& w;
    std::shared_ptr<fakes::Started<bool>> task;
};

} // namespace

TEST_SUITE("manager") {
    TEST_CASE("freshness: what the two values say at start") {
        CHECK(judge_start(5, 5) == StartVerdict::level);
        CHECK(judge_start(6, 5) == StartVerdict::finish_step);
        CHECK(judge_start(7, 5) == StartVerdict::lost_counter);
        CHECK(judge_start(4, 5) == StartVerdict::old_copy);
        CHECK(judge_start(0, ~0ULL) == StartVerdict::old_copy);
        CHECK(judge_start(~0ULL, 0) == StartVerdict::lost_counter);
    }
    TEST_CASE("freshness: what a start does about its counter, every cell") {
        using enum CounterFound;
        using Verdict = StartVerdict;
        struct Cell {
            bool off;
            CounterFound found;
            Verdict verdict;
            bool word;
            CounterPlan plan;
        };
        std::vector<Cell> cells;
        for (CounterFound found : {none_named, there, not_there, unknown}) {
            for (Verdict v : {Verdict::level, Verdict::finish_step, Verdict::old_copy, Verdict::lost_counter}) {
                for (bool word : {false, true}) {
                    cells.push_back({true, found, v, word, CounterPlan::unprotected});
                    CounterPlan plan = word ? CounterPlan::make_new : CounterPlan::refuse;
                    if (found == unknown) {
                        plan = CounterPlan::fail;
                    } else if (found == there && v != Verdict::lost_counter) {
                        plan = word ? CounterPlan::refuse_word : CounterPlan::compare;
                    }
                    cells.push_back({false, found, v, word, plan});
                }
            }
        }
        for (const Cell& c : cells) {
            INFO(static_cast<int>(c.found), " ", static_cast<int>(c.verdict), " ", c.word, " ", c.off);
            CHECK(plan_counter({.off = c.off, .found = c.found, .verdict = c.verdict, .accept_none = c.word}) ==
                  c.plan);
        }
    }
    TEST_CASE("freshness: lazy steps are due once a window, and only if there is something to cover") {
        LazySteps lazy(900s);
        Clock::time_point t{1000h};
        lazy.stepped(t);
        CHECK_FALSE(lazy.due());
        lazy.committed();
        CHECK(lazy.due() == t + 900s);
        lazy.covering();
        CHECK_FALSE(lazy.due());
        lazy.committed(); // while the step is on its way: not covered by it
        lazy.stepped(t + 900s);
        CHECK(lazy.due() == t + 1800s);
    }
    TEST_CASE("freshness: an unfinished step is finished at start, once") {
        World w;
        w.disk.push_back(encode(FreshnessRecord{.counter = 101}));
        w.boot();
        REQUIRE(w.check());
        CHECK(w.hardware() == 101);
        w.boot();
        REQUIRE(w.check());
        CHECK(w.hardware() == 101);
    }
    TEST_CASE("freshness: two ahead is another counter, behind is an old copy, both refused with both values") {
        World w;
        w.disk.push_back(encode(FreshnessRecord{.counter = 102}));
        w.boot();
        auto ahead = w.check();
        REQUIRE(ahead.has_error());
        CHECK(ahead.error().code == Errc::rollback);
        CHECK(ahead.error().message.find("102") != std::string::npos);
        CHECK(ahead.error().message.find("100") != std::string::npos);

        w.tpm.counters[1] = 103;
        auto behind = w.check();
        REQUIRE(behind.has_error());
        CHECK(behind.error().code == Errc::rollback);
        CHECK(behind.error().message.find("102") != std::string::npos);
        CHECK(behind.error().message.find("--accept-counter=103") != std::string::npos);
        CHECK(w.steps() == 0);
    }
    TEST_CASE("freshness: an old copy is taken when the operator names the counter's value, and only that one") {
        World w;
        w.tpm.counters[1] = 107;
        CHECK(w.check(106).has_error());
        CHECK(w.check(108).has_error());
        REQUIRE(w.check(107));
        CHECK(w.loop.logged("accepting an old copy"));
        CHECK(w.registry.freshness() == 107);
        REQUIRE(w.loop.run(w.freshness->step()));
        w.boot();
        CHECK(w.check(107)); // level again: the option left in a file does nothing
        auto old = w.disk;
        REQUIRE(w.loop.run(w.freshness->step()));
        w.disk = old;
        w.boot();
        CHECK(w.check(107).has_error()); // and accepts nothing later
    }
    TEST_CASE("freshness: a crash between any two parts of a step is one the next start finishes") {
        for (Mode mode : {Mode::window, Mode::strict}) {
            for (int at = 0; at < 4; ++at) {
                World w({.mode = mode});
                REQUIRE(w.check());
                std::size_t disk_before = w.disk.size();
                w.tpm.before = w.tpm.after = [&w](std::string_view op) -> std::optional<Error> {
                    if (op == "counter_increment") {
                        w.tick();
                    }
                    return std::nullopt;
                };
                w.crash_in = at;
                bool crashed = false;
                try {
                    (void)w.loop.run(w.freshness->step());
                } catch (const Crash&) {
                    crashed = true;
                }
                REQUIRE(crashed);
                CHECK((w.disk.size() > disk_before) == (at > 0));
                w.boot();
                INFO("mode ", to_string(w.policy), " crash ", at);
                REQUIRE(w.check());
                CHECK(w.hardware() == (at == 0 ? 100 : 101));
                REQUIRE(w.loop.run(w.freshness->step()));
                w.boot();
                REQUIRE(w.check());
                CHECK(w.hardware() == (at == 0 ? 101 : 102));
            }
        }
    }
    TEST_CASE("freshness: an old copy put back after a step is refused, one from before any step since is not") {
        World w;
        REQUIRE(w.check());
        auto copy = w.disk;
        REQUIRE(w.commit());
        auto within = w.disk;
        REQUIRE(w.loop.run(w.freshness->step()));
        w.disk = copy;
        w.boot();
        CHECK(w.check().error().code == Errc::rollback);
        w.disk = within;
        w.boot();
        CHECK(w.check().error().code == Errc::rollback);
    }
    TEST_CASE("freshness: records given to a step are covered by it") {
        for (Mode mode : {Mode::window, Mode::strict}) {
            World w({.mode = mode});
            REQUIRE(w.check());
            auto before = w.disk;
            Uuid gone = random_uuid();
            std::vector<Bytes> records{encode(TombstoneRecord{.uuid = gone})};
            REQUIRE(w.loop.run(w.freshness->step(std::move(records))));
            CHECK(w.registry.tombstone(gone) != nullptr);
            CHECK(w.hardware() == 101);
            w.disk = before;
            w.boot();
            CHECK(w.check().error().code == Errc::rollback);
        }
    }
    TEST_CASE("freshness window: no step without commits, one a window with them") {
        World w;
        REQUIRE(w.check());
        REQUIRE(w.loop.run(w.freshness->step())); // as at start
        REQUIRE(w.steps() == 1);
        Running running(w);
        running.pass(10h);
        CHECK(w.steps() == 1);

        REQUIRE(w.commit()); // long since the last: at once
        w.loop.settle();
        CHECK(w.steps() == 2);
        for (int i = 0; i < 100; ++i) {
            REQUIRE(w.commit());
            running.pass(1s);
        }
        CHECK(w.steps() == 2);
        running.pass(800s);
        CHECK(w.steps() == 3); // those 100 commits
        running.pass(10h);
        CHECK(w.steps() == 3);
        CHECK(w.loop.clock.sleeping() == 0); // nothing polls
    }
    TEST_CASE("freshness window: a commit that comes while a step is on its way is covered by the next") {
        World w;
        REQUIRE(w.check());
        bool once = true;
        w.tpm.before = [&](std::string_view op) -> std::optional<Error> {
            if (op == "counter_increment" && std::exchange(once, false)) {
                w.freshness->committing();
            }
            return std::nullopt;
        };
        Running running(w);
        REQUIRE(w.commit());
        w.loop.settle();
        CHECK(w.steps() == 1);
        running.pass(900s);
        CHECK(w.steps() == 2);
        running.pass(10h);
        CHECK(w.steps() == 2);
    }
    TEST_CASE("freshness window: a TPM that does not answer holds up nobody and is tried again, slower") {
        World w;
        REQUIRE(w.check());
        int failures = 0;
        w.tpm.before = [&](std::string_view op) -> std::optional<Error> {
            if (op == "counter_increment" || op == "counter_read") {
                ++failures;
                return make_error(Errc::timed_out, "no answer");
            }
            return std::nullopt;
        };
        {
            Running running(w);
            REQUIRE(w.commit());
            w.loop.settle();
            CHECK(failures == 1);
            CHECK(w.freshness->owed());
            REQUIRE(w.commit());
            for (int i = 0; i < 600; ++i) {
                running.pass(1s);
            }
            CHECK(failures > 8);
            CHECK(failures < 25);
            CHECK(w.loop.logged("the vTPMs are served meanwhile"));
            CHECK(w.freshness->counters().failures == static_cast<std::uint64_t>(failures));
            w.tpm.before = nullptr;
            running.pass(60s);
            CHECK_FALSE(w.freshness->owed());
            CHECK(w.hardware() == 101);
        }
        w.boot();
        CHECK(w.check());
    }
    TEST_CASE("freshness: a step whose answer was lost is not made twice") {
        World w;
        REQUIRE(w.check());
        bool lose = true;
        w.tpm.after = [&](std::string_view op) -> std::optional<Error> {
            if (op == "counter_increment" && std::exchange(lose, false)) {
                return make_error(Errc::timed_out, "no answer");
            }
            return std::nullopt;
        };
        auto lost = w.loop.run(w.freshness->step());
        REQUIRE(lost.has_error());
        CHECK(lost.error().code == Errc::unavailable);
        CHECK(w.hardware() == 101);
        REQUIRE(w.loop.run(w.freshness->step()));
        CHECK(w.hardware() == 102);
        w.boot();
        CHECK(w.check());
    }
    TEST_CASE("freshness: a counter that somebody else steps ends it") {
        World w;
        REQUIRE(w.check());
        std::optional<Error> told;
        w.freshness->on_fatal([&](const Error& e) { told = e; });
        ++w.tpm.counters[1];
        auto refused = w.loop.run(w.freshness->step());
        REQUIRE(refused.has_error());
        CHECK(refused.error().code == Errc::rollback);
        REQUIRE(told);
        CHECK(w.loop.run(w.freshness->step()).has_error());
    }
    TEST_CASE("freshness strict: more steps than a day should have are counted, and said once an hour") {
        World w({.mode = Mode::strict});
        REQUIRE(w.check());
        for (unsigned i = 0; i < steps_a_day.burst; ++i) {
            REQUIRE(w.loop.run(w.freshness->step()));
        }
        CHECK(w.freshness->counters().beyond == 0);
        CHECK_FALSE(w.loop.logged("within a day, and more"));
        REQUIRE(w.commit());
        REQUIRE(w.commit()); // what is acknowledged is protected all the same
        CHECK(w.freshness->counters().beyond == 2);
        CHECK(w.loop.logged("within a day, and more"));
        w.loop.clock.advance(24h);
        REQUIRE(w.commit());
        CHECK(w.freshness->counters().beyond == 2);
    }
    TEST_CASE("freshness strict: one step a batch, before it is acknowledged") {
        World w({.mode = Mode::strict});
        REQUIRE(w.check());
        for (std::uint64_t i = 1; i <= 5; ++i) {
            auto before = w.disk;
            REQUIRE(w.commit());
            CHECK(w.hardware() == 100 + i);
            CHECK(w.registry.freshness() == 100 + i);
            World old({.mode = Mode::strict}); // the disk from before, and the counter as it is now
            old.disk = before;
            old.tpm.counters[1] = w.hardware();
            old.boot();
            CHECK(old.check().error().code == Errc::rollback);
        }
    }
    TEST_CASE("freshness strict: who was told has a sixteenth of the step to come back before the next batch") {
        World w({.mode = Mode::strict});
        REQUIRE(w.check());
        Clock::duration takes = 320ms;
        bool fails = false;
        w.tpm.before = [&](std::string_view op) -> std::optional<Error> {
            if (op == "counter_increment") {
                w.loop.clock.advance(takes);
                return fails ? std::optional(make_error(Errc::timed_out, "no answer")) : std::nullopt;
            }
            return std::nullopt;
        };
        asio::steady_timer all_back(w.loop.io, asio::steady_timer::time_point::max());
        auto gather = [&] {
            auto everyone = [](asio::steady_timer& t) -> Task<Result<void>> {
                (void)co_await t.async_wait(use_tuple);
                co_return Result<void>{};
            };
            auto task = w.loop.start(w.freshness->gather(everyone(all_back)));
            w.loop.settle();
            return task;
        };
        CHECK(gather()->done); // nothing was stepped yet
        REQUIRE(w.commit());

        SUBCASE("that long at most") {
            auto task = gather();
            CHECK(w.loop.clock.next_due() - w.loop.clock.now() == 20ms);
            w.loop.clock.advance(19ms);
            w.loop.settle();
            CHECK_FALSE(task->done);
            w.loop.clock.advance(1ms);
            w.loop.settle();
            CHECK(task->done);
            CHECK(gather()->done); // the time runs from when they were told
        }
        SUBCASE("only until all are there") {
            auto task = gather();
            CHECK_FALSE(task->done);
            all_back.cancel();
            w.loop.settle();
            CHECK(task->done);
            CHECK(w.loop.clock.sleeping() == 0);
        }
        SUBCASE("not for one who comes later") {
            w.loop.clock.advance(20ms);
            CHECK(gather()->done);
        }
        SUBCASE("bounded, however slow the TPM") {
            takes = 5s;
            REQUIRE(w.commit());
            auto task = gather();
            CHECK(w.loop.clock.next_due() - w.loop.clock.now() == 250ms);
            w.loop.clock.advance(250ms);
            w.loop.settle();
            CHECK(task->done);
        }
        SUBCASE("not after a step that failed") {
            w.loop.clock.advance(20ms);
            fails = true;
            REQUIRE(w.commit().has_error());
            CHECK(gather()->done);
        }
        SUBCASE("and a step that was asked for waits for nobody") {
            w.journal_fails = true; // so that nothing but the asking happens
            REQUIRE(w.loop.run(w.freshness->step()).has_error());
            CHECK(gather()->done);
        }
        all_back.cancel();
        w.loop.settle();
    }
    TEST_CASE("freshness: no batch waits in the other modes") {
        for (Mode mode : {Mode::window, Mode::off}) {
            World w({.mode = mode});
            REQUIRE(w.check());
            w.tpm.before = [&](std::string_view) -> std::optional<Error> {
                w.loop.clock.advance(1s);
                return std::nullopt;
            };
            REQUIRE(w.commit());
            REQUIRE(w.loop.run(w.freshness->step()));
            auto never = []() -> Task<Result<void>> { co_return make_error(Errc::usage, "was awaited"); };
            auto task = w.loop.start(w.freshness->gather(never()));
            w.loop.settle();
            CHECK(task->done);
            CHECK(w.loop.clock.sleeping() == 0);
        }
    }
    TEST_CASE("freshness strict: while the counter is away nobody is told yes, and it comes back by itself") {
        World w({.mode = Mode::strict});
        REQUIRE(w.check());
        w.tpm.before = [&](std::string_view op) -> std::optional<Error> {
            return op.starts_with("counter_") ? std::optional(make_error(Errc::timed_out, "no answer")) : std::nullopt;
        };
        for (int i = 0; i < 3; ++i) {
            auto refused = w.commit();
            REQUIRE(refused.has_error());
            CHECK(refused.error().code == Errc::unavailable);
        }
        CHECK(w.registry.freshness() == 101); // never more than one ahead
        w.tpm.before = nullptr;
        SUBCASE("with the next batch, which has no value of its own, and so is told to try again") {
            auto uncovered = w.commit();
            REQUIRE(uncovered.has_error());
            CHECK(uncovered.error().code == Errc::unavailable);
            CHECK(w.hardware() == 101);
            REQUIRE(w.commit());
            CHECK(w.hardware() == 102);
        }
        SUBCASE("or by the retry") {
            Running running(w);
            running.pass(120s);
            CHECK(w.hardware() == 101);
            REQUIRE(w.commit());
            CHECK(w.hardware() == 102);
        }
        w.boot();
        CHECK(w.check());
    }
    TEST_CASE("freshness off: never touches the counter, and says so") {
        World w({.mode = Mode::off});
        w.tpm.counters.clear();
        REQUIRE(w.check());
        CHECK(w.loop.logged("freshness is off"));
        REQUIRE(w.loop.run(w.freshness->step()));
        REQUIRE(w.commit());
        CHECK(w.tpm.calls.empty());
    }
    TEST_CASE("freshness: a journal that fails leaves nothing owed, and the commits are still to be covered") {
        World w;
        REQUIRE(w.check());
        REQUIRE(w.commit());
        w.journal_fails = true;
        CHECK(w.loop.run(w.freshness->step()).error().code == Errc::io);
        CHECK_FALSE(w.freshness->owed());
        w.journal_fails = false;
        Running running(w);
        w.loop.settle();
        CHECK(w.hardware() == 101);
    }
}

} // namespace manager_freshness_test
