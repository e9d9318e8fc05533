// One vTPM on fakes: every step of a commit failing, every await cancelled, and at every await the question what a restart
// would find at that moment.
#include "check.hpp"
#include "fake_vtpm.hpp"
#include "guest/control.hpp"
#include "instance/instance.hpp"
#include "instance/state/state_blob.hpp"
#include "loop.hpp"
#include "util/text.hpp"

#include <algorithm>

namespace instance_test {

using namespace vtpmd;
using namespace vtpmd::fakes;
using instance::Instance;

namespace {

struct Machine {
    explicit Machine(instance::Startup startup = instance::Startup::clear) {
        instance::InstanceConfig config;
        config.allow_rollback = true;
        config.startup = startup;
        instance::InstanceParts parts{loop.io.get_executor(), engine, image, manager, loop.clock, loop.log,
                                      [this] { ++shutdowns; }};
        vtpm = std::make_unique<Instance>(std::move(config), std::move(parts));
        points.at = [this](std::size_t n) {
            check_restart();
            if (at) {
                at(n);
            }
        };
    }
    ~Machine() {
        manager.fault = FakeManager::Fault::none;
        image.fail_prepare.reset();
        image.fail_accept.reset();
        at = nullptr;
        (void)loop.run(vtpm->close());
        check_restart();
    }
    void start() { REQUIRE(loop.run(vtpm->start(EngineState{}))); }

    /// The answer's code; the number acknowledged is remembered.
    std::uint32_t send(std::uint32_t code) { return note(loop.run(vtpm->execute(FakeEngine::command(code), 0))); }
    std::uint32_t note(const Bytes& answer) {
        const auto header = tpm::peek_header(answer);
        if (header.code == 0 && answer.size() == 18) {
            acknowledged = std::max(acknowledged, number_in(ByteView(answer).subspan(10)));
        }
        return header.code;
    }
    /// Until what the TPM holds is saved again.
    void let_heal() {
        REQUIRE(loop.until([&] {
            loop.settle();
            if (loop.clock.next_due() > loop.clock.now()) {
                loop.clock.advance(loop.clock.next_due() - loop.clock.now());
            }
            return loop.logged("service goes on");
        }));
    }
    /// From now on there is no manager for `d`.
    void manager_goes(Clock::duration d) {
        manager.linked = false;
        back_at = loop.clock.now() + d;
        manager.away = [this] { return wait_for_manager(); };
    }
    Task<> wait_for_manager() {
        (void)co_await loop.clock.sleep_until(back_at);
        manager.linked = loop.clock.now() >= back_at;
    }
    /// What a restart would load now.
    [[nodiscard]] std::optional<std::uint64_t> restart_value() const {
        const SecretBytes* blob = image.stored(manager.record);
        return blob != nullptr ? value_in(*blob) : std::nullopt;
    }
    [[nodiscard]] static std::optional<std::uint64_t> value_in(const SecretBytes& blob) {
        auto state = instance::decode_state(TpmVersion::tpm20, blob.view());
        return state ? std::optional(number_in(state->permanent.view())) : std::nullopt;
    }
    /// The invariant, at every await: the manager's record names a slot that is whole, and nothing acknowledged is missing.
    void check_restart() const {
        if (manager.record == 0) {
            CHECK(acknowledged == 0);
            return;
        }
        const auto value = restart_value();
        REQUIRE(value.has_value());
        CHECK(*value >= acknowledged);
        CHECK(*value <= engine.value);
    }

    Loop loop;
    Points points{loop.io.get_executor()};
    FakeEngine engine;
    FakeImage image{points};
    FakeManager manager{points};
    std::unique_ptr<Instance> vtpm;
    std::function<void(std::size_t)> at;
    Clock::time_point back_at;
    std::uint64_t acknowledged = 0;
    unsigned shutdowns = 0;
};

constexpr std::uint32_t rc_failure = 0x101;
const guest::ControlPeer device_model{.id = &rc_failure};
constexpr std::uint32_t rc_nv_unavailable = 0x923;

} // namespace

TEST_SUITE("instance") {
    TEST_CASE("a change is durable before its answer") {
        Machine m;
        m.start();
        CHECK(m.restart_value() == 1);
        CHECK(m.send(FakeEngine::add) == 0);
        CHECK(m.restart_value() == 2);
        const auto commits = m.vtpm->counters().commits;
        CHECK(m.send(FakeEngine::read) == 0);
        CHECK(m.vtpm->counters().commits == commits); // a read writes nothing
        CHECK(m.engine.executed.front() == FakeEngine::startup);
    }

    TEST_CASE("every step of a commit failing: it has not happened and never will, reads are served, service goes on") {
        using Fault = FakeManager::Fault;
        struct Case {
            const char* name;
            std::optional<Errc> prepare;
            Fault fault;
        };
        const Case cases[] = {
            {"slot: EIO", Errc::io, Fault::none},    {"slot: ENOSPC", Errc::no_space, Fault::none},
            {"manager refuses", {}, Fault::refuses}, {"request lost", {}, Fault::lost_request},
            {"answer lost", {}, Fault::lost_answer},
        };
        for (const Case& c : cases) {
            CAPTURE(c.name);
            Machine m;
            m.start();
            REQUIRE(m.send(FakeEngine::add) == 0);
            m.engine.registers = 7;
            m.image.fail_prepare = c.prepare;
            m.manager.fault = c.fault;
            CHECK(m.send(FakeEngine::add) == rc_nv_unavailable);
            CHECK(m.engine.value == 2);
            CHECK(m.engine.registers == 7);
            CHECK(m.restart_value() == 2); // also if the manager has the key of what was refused
            const auto executed = m.engine.executed.size();
            for (int i = 0; i < 3; ++i) {
                CHECK(m.send(FakeEngine::add) == rc_nv_unavailable); // refused before it runs
            }
            CHECK(m.engine.executed.size() == executed);
            CHECK(m.send(FakeEngine::read) == 0); // from durable state
            CHECK(m.acknowledged == 2);
            CHECK(m.vtpm->running());
            m.image.fail_prepare.reset();
            m.manager.fault = Fault::none;
            m.let_heal();
            CHECK(m.send(FakeEngine::add) == 0);
            CHECK(m.engine.value == 3); // what was refused never took effect
            CHECK(m.restart_value() == 3);
            CHECK(m.loop.logged("service goes on"));
        }
    }

    TEST_CASE("an error of the manager that tells nothing: what it has on record does") {
        using Fault = FakeManager::Fault;
        Machine m;
        m.start();
        REQUIRE(m.send(FakeEngine::add) == 0);
        m.manager.fault = Fault::fails_after; // on record, and the answer is an error
        CHECK(m.send(FakeEngine::add) == 0);
        CHECK(m.restart_value() == 3);
        CHECK(m.image.withdrawn.first == 0);
        m.manager.fault = Fault::refuses; // not on record
        CHECK(m.send(FakeEngine::add) == rc_nv_unavailable);
        CHECK(m.image.withdrawn.first == 0); // it is known: nothing has to be withdrawn
        CHECK(m.restart_value() == 3);
    }

    TEST_CASE("in doubt: withdrawn on the disk before the guest is told; if that fails too, nobody is told anything") {
        using Fault = FakeManager::Fault;
        for (auto fault : {Fault::lost_request, Fault::lost_answer}) {
            Machine m;
            m.start();
            REQUIRE(m.send(FakeEngine::add) == 0);
            m.manager.fault = fault;
            m.image.fail_withdraw = Errc::io;
            CHECK(m.send(FakeEngine::add) == rc_failure);
            CHECK(m.send(FakeEngine::read) == rc_failure);
            CHECK(m.shutdowns == 1); // this instance ends
            auto ended = m.loop.run(m.vtpm->close());
            CHECK_FALSE(ended);
        }
    }

    TEST_CASE("another instance has saved since: nothing is answered any more, and the end says so") {
        using Fault = FakeManager::Fault;
        Machine m;
        m.start();
        REQUIRE(m.send(FakeEngine::add) == 0);
        m.manager.fault = Fault::superseded;
        CHECK(m.send(FakeEngine::add) == rc_failure);
        CHECK(m.send(FakeEngine::read) == rc_failure);
        CHECK(m.shutdowns == 1);
        auto ended = m.loop.run(m.vtpm->close());
        REQUIRE_FALSE(ended);
        CHECK(ended.error().code == Errc::rollback);
    }

    TEST_CASE("a command that is not expected to change anything, and does: also that has not happened") {
        using Fault = FakeManager::Fault;
        Machine m;
        m.start();
        REQUIRE(m.send(FakeEngine::slow_add) == 0); // a TPM2_Create that stores, such as one whose use is counted
        m.manager.fault = Fault::refuses;
        CHECK(m.send(FakeEngine::slow_add) == rc_nv_unavailable);
        CHECK(m.engine.value == 2);
        m.engine.registers = 5;
        // The clock goes on while the worker thread is at it, so the attempt to save again may come in between: at most once a
        // pause, and with what is durable, never with what the command changed.
        const auto offered = m.manager.offered.size();
        const auto written = m.image.saves;
        const auto began = m.loop.clock.now();
        m.at = [&](std::size_t) {
            for (const auto& slot : m.image.slots) {
                CHECK((slot.save <= written || m.value_in(slot.blob) == 2U));
            }
        };
        // Unauthorised, successful: it can only have been the clock that was stored.
        const Bytes answer = m.loop.run(m.vtpm->execute(FakeEngine::command(FakeEngine::slow_add), 0));
        m.at = nullptr;
        CHECK(tpm::peek_header(answer).code == 0);
        CHECK(m.engine.value == 2);
        CHECK(m.engine.registers == 5);
        const auto pauses = (m.loop.clock.now() - began) / std::chrono::milliseconds(50);
        CHECK(m.manager.offered.size() - offered <= static_cast<std::size_t>(pauses));
    }

    TEST_CASE("while nothing can be saved the end is quick, and nothing is lost") {
        using Fault = FakeManager::Fault;
        for (auto fault : {Fault::refuses, Fault::lost_request, Fault::lost_answer}) {
            Machine m;
            m.start();
            REQUIRE(m.send(FakeEngine::add) == 0);
            m.manager.fault = fault;
            CHECK(m.send(FakeEngine::add) == rc_nv_unavailable);
            const auto offered = m.manager.offered.size();
            CHECK(m.loop.run(m.vtpm->close()));
            CHECK(m.manager.offered.size() == offered);
            CHECK(m.restart_value() == 2);
        }
    }

    TEST_CASE("the guest's task cancelled at every await: the commit is finished all the same") {
        std::size_t points = 0;
        {
            Machine m;
            m.start();
            m.points.passed = 0;
            m.send(FakeEngine::add);
            points = m.points.passed;
        }
        REQUIRE(points >= 4);
        for (auto code : {FakeEngine::add, FakeEngine::slow_add}) {
            for (std::size_t n = 0; n < points; ++n) {
                CAPTURE(n);
                Machine m;
                m.start();
                const auto base = m.points.passed;
                std::shared_ptr<Started<Bytes>> guest;
                m.at = [&](std::size_t here) {
                    if (here == base + n && guest) {
                        asio::post(m.loop.io, [guest] { guest->cancel(); });
                    }
                };
                guest = m.loop.start(m.vtpm->execute(FakeEngine::command(code), 0));
                REQUIRE(m.loop.wait(*guest));
                m.at = nullptr;
                CHECK(m.send(FakeEngine::read) == 0);
                CHECK(m.restart_value() == m.engine.value);
                CHECK(m.engine.value == 2);
            }
        }
    }

    TEST_CASE("64 guests at once: each is served, in order, none is lost") {
        Machine m;
        m.start();
        std::vector<std::shared_ptr<Started<Bytes>>> guests;
        for (int i = 0; i < 64; ++i) {
            guests.push_back(
                m.loop.start(m.vtpm->execute(FakeEngine::command(i % 3 ? FakeEngine::add : FakeEngine::slow_add), 0)));
        }
        std::uint64_t last = 1;
        for (auto& g : guests) {
            REQUIRE(m.loop.wait(*g));
            CHECK(m.note(*g->value) == 0);
            CHECK(number_in(ByteView(*g->value).subspan(10)) == ++last);
        }
        CHECK(m.restart_value() == 65);
    }

    TEST_CASE("asked to end in the middle of a commit: it is finished first") {
        Machine m;
        m.start();
        std::shared_ptr<Started<Result<void>>> closing;
        const auto base = m.points.passed;
        m.at = [&](std::size_t here) {
            if (here == base + 1) {
                closing = m.loop.start(m.vtpm->close());
            }
        };
        CHECK(m.send(FakeEngine::add) == 0);
        REQUIRE(closing);
        REQUIRE(m.loop.wait(*closing));
        CHECK(*closing->value);
        CHECK(m.restart_value() == 2);
        CHECK(m.engine.executed.back() == FakeEngine::shutdown_order);
        CHECK_FALSE(m.vtpm->running());
    }

    TEST_CASE("a long command runs on the worker and can be cancelled") {
        Machine m;
        m.start();
        m.engine.hold_slow = true;
        auto guest = m.loop.start(m.vtpm->execute(FakeEngine::command(FakeEngine::slow_add), 0));
        REQUIRE(m.loop.until([&] { return m.engine.in_slow.load(); }));
        auto second = m.loop.start(m.vtpm->execute(FakeEngine::command(FakeEngine::read), 0));
        m.loop.settle();
        CHECK_FALSE(second->done); // one at a time
        m.vtpm->cancel();
        REQUIRE(m.loop.wait(*guest));
        CHECK(tpm::peek_header(*guest->value).code == 0x909);
        REQUIRE(m.loop.wait(*second));
        CHECK(m.engine.ran_on != std::this_thread::get_id());
        CHECK(m.vtpm->counters().long_commands == 1);
    }

    TEST_CASE("power: stop, commands fail, init brings the state back") {
        Machine m;
        m.start();
        m.send(FakeEngine::add);
        CHECK(m.loop.run(m.vtpm->stop()));
        CHECK_FALSE(m.vtpm->running());
        CHECK(m.send(FakeEngine::read) == rc_failure);
        CHECK(m.loop.run(m.vtpm->get_blob(1)).error().code != Errc{});
        CHECK(m.loop.run(m.vtpm->init(true, {})));
        CHECK(m.send(FakeEngine::read) == 0);
        CHECK(m.engine.value == 2);
    }

    TEST_CASE("a manager that goes while the TPM starts is waited for as one that is not there yet") {
        Machine m;
        m.engine.startup_counts = true;
        m.manager_goes(std::chrono::seconds(29));
        EngineState kept;
        kept.permanent = number_blob(5);
        CHECK(m.loop.run(m.vtpm->start(std::move(kept))));
        CHECK(m.loop.clock.now() == m.back_at);
        CHECK(m.restart_value() == 5);
        CHECK(m.image.prepares == 1);
    }

    TEST_CASE("a power cycle waits for a manager that is started again, and once for one that is not") {
        using std::chrono::seconds;
        Machine m;
        m.start();
        CHECK(m.send(FakeEngine::add) == 0);
        m.manager_goes(seconds(11));
        CHECK(m.loop.run(m.vtpm->init(true, {})));
        CHECK(m.send(FakeEngine::read) == 0);
        m.manager_goes(seconds(3600));
        auto began = m.loop.clock.now();
        CHECK_FALSE(m.loop.run(m.vtpm->init(true, {})));
        CHECK(m.loop.clock.now() - began >= seconds(11));
        CHECK(m.loop.clock.now() - began <= seconds(13));
        began = m.loop.clock.now();
        CHECK_FALSE(m.loop.run(m.vtpm->init(true, {})));
        CHECK(m.loop.clock.now() - began <= seconds(1));
        m.manager.away = nullptr;
        m.manager.linked = true;
        CHECK(m.loop.run(m.vtpm->init(true, {})));
        CHECK(m.engine.value == 2);
    }

    TEST_CASE("state set from outside is durable once the TPM is on with it") {
        Machine m;
        m.start();
        m.send(FakeEngine::add);
        CHECK(m.loop.run(m.vtpm->set_blob(1, to_bytes(number_blob(70).view()), device_model)).error().code ==
              Errc::unsupported);
        REQUIRE(m.loop.run(m.vtpm->stop()));
        CHECK(m.loop.run(m.vtpm->set_blob(1, Bytes{}, device_model)).error().code == Errc::usage);
        REQUIRE(m.loop.run(m.vtpm->set_blob(1, to_bytes(number_blob(70).view()), device_model)));
        m.engine.value = 70; // for the invariant's upper bound
        REQUIRE(m.loop.run(m.vtpm->init(false, device_model)));
        CHECK(m.restart_value() == 70);
    }

    TEST_CASE("stored registers come back once, and never after anything else happened") {
        Machine m;
        m.start();
        m.engine.registers = 33;
        REQUIRE(m.loop.run(m.vtpm->store_volatile()));
        auto stored = [&] {
            return instance::decode_state(TpmVersion::tpm20, m.image.stored(m.manager.record)->view())
                ->volatile_state.size();
        };
        CHECK(stored() == 8);
        REQUIRE(m.loop.run(m.vtpm->init(false, {})));
        CHECK(m.engine.registers == 33);
        CHECK(stored() == 0);
        REQUIRE(m.loop.run(m.vtpm->store_volatile()));
        CHECK(m.send(FakeEngine::read) == 0);
        CHECK(stored() == 0);
        m.engine.registers = 33;
        REQUIRE(m.loop.run(m.vtpm->store_volatile()));
        REQUIRE(
            m.loop.run(m.vtpm->init(true, {}))); // what QEMU sends to go on with the state it has set, and swtpm does
        CHECK(m.engine.registers == 33);
        CHECK(stored() == 0);
        REQUIRE(m.loop.run(m.vtpm->init(true, {})));
        CHECK(m.engine.registers == 0);
    }

    TEST_CASE("stored registers at the start: resumed where that is asked for, else forgotten for good") {
        for (auto startup : {instance::Startup::clear, instance::Startup::save}) {
            Machine m(startup);
            EngineState state;
            state.permanent = number_blob(5);
            state.volatile_state = number_blob(44);
            REQUIRE(m.loop.run(m.vtpm->start(std::move(state))));
            CHECK(m.engine.registers == (startup == instance::Startup::save ? 44 : 0));
            auto on_disk = instance::decode_state(TpmVersion::tpm20, m.image.stored(m.manager.record)->view());
            CHECK(on_disk->volatile_state.empty());
            CHECK(number_in(on_disk->permanent.view()) == 5);
        }
    }

    TEST_CASE("a guest that may come back: its registers are stored at the end, and the TPM is shut down only if it "
              "does not") {
        EngineState saved;
        {
            Machine m;
            m.start();
            CHECK(m.send(FakeEngine::add) == 0);
            m.engine.registers = 33;
            m.engine.executed.clear();
            REQUIRE(m.loop.run(m.vtpm->close(true)));
            CHECK(m.engine.executed.empty()); // no TPM2_Shutdown
            saved = *instance::decode_state(TpmVersion::tpm20, m.image.stored(m.manager.record)->view());
            CHECK(number_in(saved.volatile_state.view()) == 33);
        }
        for (auto startup : {instance::Startup::save, instance::Startup::clear}) {
            Machine m(startup);
            EngineState state;
            state.permanent = saved.permanent.clone();
            state.volatile_state = saved.volatile_state.clone();
            REQUIRE(m.loop.run(m.vtpm->start(std::move(state))));
            const bool resumed = startup == instance::Startup::save;
            CHECK(m.engine.registers == (resumed ? 33 : 0));
            const std::vector<std::uint32_t> order{FakeEngine::shutdown_order, FakeEngine::startup};
            CHECK(m.engine.executed == (resumed ? std::vector<std::uint32_t>{} : order));
            auto on_disk = instance::decode_state(TpmVersion::tpm20, m.image.stored(m.manager.record)->view());
            CHECK(on_disk->volatile_state.empty());
            CHECK(number_in(on_disk->permanent.view()) == 2);
        }
    }

    TEST_CASE("waiting for a device model: off and never started, INIT brings stored registers back once") {
        for (bool stored : {false, true}) {
            CAPTURE(stored);
            Machine m(instance::Startup::wait);
            EngineState state;
            state.permanent = number_blob(5);
            state.volatile_state = stored ? number_blob(44) : SecretBytes();
            REQUIRE(m.loop.run(m.vtpm->start(std::move(state))));
            CHECK_FALSE(m.vtpm->running());
            CHECK(m.note(m.loop.run(m.vtpm->execute(FakeEngine::command(FakeEngine::add), 0))) == 0x101);
            REQUIRE(m.loop.run(m.vtpm->init(false, {})));
            CHECK(m.engine.registers == (stored ? 44 : 0));
            CHECK(m.engine.executed.empty()); // TPM2_Startup is the firmware's
            REQUIRE(m.loop.run(m.vtpm->init(false, {})));
            CHECK(m.engine.registers == 0);
        }
    }

    TEST_CASE("every control command and what it does to power, to what was stored and to what was given out") {
        using C = guest::ControlCommand;
        struct Row {
            C command;
            const char* body;
            guest::ControlResult on, off; ///< results while running and while stopped
            bool running_after;           ///< if it was running
            bool takes;                   ///< the handover's TAKE still says yes behind it
            bool stored;                  ///< registers that were stored are still on the disk
        };
        constexpr auto yes = guest::ControlResult::success;
        constexpr auto bad = guest::ControlResult::bad_ordinal;
        const Row table[] = {
            {C::get_capability, "", yes, yes, true, true, true},
            {C::init, "00000000", yes, yes, true, false, false},
            {C::shutdown, "", yes, yes, true, true, true}, // the caller ends the instance
            {C::get_established, "", yes, bad, true, true, true},
            {C::set_locality, "00", yes, yes, true, true, true},
            {C::hash_start, "", yes, bad, true, false, false},
            {C::hash_data, "00000001aa", yes, bad, true, false, false},
            {C::hash_end, "", yes, bad, true, false, false},
            {C::cancel, "", yes, bad, true, true, true},
            {C::store_volatile, "", yes, bad, true, false, true},
            {C::reset_established, "03", yes, bad, true, false, false},
            {C::get_stateblob, "000000010000000100000000", yes, bad, true, true, true},
            {C::set_stateblob, "00000000000000010000000100", bad, yes, true, true, true},
            {C::stop, "", yes, yes, false, true, true},
            {C::get_config, "", yes, yes, true, true, true},
            {C::set_datafd, "", bad, bad, true, true, true}, // the connection's, not the TPM's
            {C::set_buffersize, "00000000", yes, yes, true, true, true},
            {C::get_info,
             "0000000000000001"
             "00000000"
             "00000000",
             yes, yes, true, true, true},
            {C::lock_storage, "00000000", yes, yes, true, true, true},
        };
        CHECK(std::size(table) == 19);
        guest::EndpointState endpoint;
        auto run = [&](Machine& m, const Row& row) {
            WireWriter w;
            const Bytes body = from_hex(row.body).value();
            w.be32(static_cast<std::uint32_t>(row.command)).bytes(body);
            auto request = guest::parse_control(w.view());
            REQUIRE(request);
            const Bytes answer = m.loop.run(guest::carry_out(std::move(*request), *m.vtpm, endpoint, device_model));
            WireReader r(answer);
            return static_cast<guest::ControlResult>(r.be32());
        };
        for (const Row& row : table) {
            CAPTURE(static_cast<int>(row.command));
            {
                Machine m;
                m.start();
                REQUIRE(m.loop.run(m.vtpm->stop()));
                CHECK(run(m, row) == row.off);
                CHECK(m.vtpm->running() == (row.command == C::init));
            }
            {
                Machine m;
                m.start();
                instance::BlobDigests blobs{};
                for (std::uint32_t type = 1; type <= 3; ++type) {
                    blobs[type - 1] = store::sha256({*m.loop.run(m.vtpm->get_blob(type))});
                }
                CHECK(run(m, row) == row.on);
                CHECK(m.vtpm->running() == row.running_after);
                const instance::TakeRequest take{Uuid{}, instance::handover_token(blobs)};
                CHECK(m.loop.run(m.vtpm->hand_over(take)).has_value() == row.takes);
                CHECK(m.vtpm->handed_over() == row.takes);
                CHECK(m.manager.gone == row.takes);
            }
            {
                Machine m(instance::Startup::wait);
                EngineState state;
                state.permanent = number_blob(5);
                REQUIRE(m.loop.run(m.vtpm->start(std::move(state))));
                REQUIRE(m.loop.run(m.vtpm->init(false, device_model)));
                m.engine.registers = 33;
                REQUIRE(m.loop.run(m.vtpm->store_volatile()));
                CHECK(run(m, row) == row.on);
                auto on_disk = instance::decode_state(TpmVersion::tpm20, m.image.stored(m.manager.record)->view());
                CHECK(on_disk->volatile_state.empty() == !row.stored);
            }
        }
    }

    TEST_CASE("asked to end while it hands over and no manager answers: it does not wait for one") {
        Machine m;
        m.start();
        instance::BlobDigests blobs{};
        for (std::uint32_t type = 1; type <= 3; ++type) {
            blobs[type - 1] = store::sha256({*m.loop.run(m.vtpm->get_blob(type))});
        }
        m.manager.fault = FakeManager::Fault::lost_request;
        auto taking = m.loop.start(m.vtpm->hand_over({Uuid{}, instance::handover_token(blobs)}));
        for (int n = 0; n < 30; ++n) { // it may have been done: neither yes nor no is said meanwhile
            m.loop.settle();
            m.loop.clock.advance(std::chrono::seconds(1));
        }
        CHECK(m.loop.logged("it stands still until the manager is back"));
        REQUIRE_FALSE(taking->done);
        (void)m.loop.run(m.vtpm->close());
        m.loop.settle();
        REQUIRE(taking->done);
        CHECK(taking->value->error().code == Errc::unavailable);
        CHECK_FALSE(m.vtpm->handed_over());
        CHECK(m.restart_value() == 1); // as it was given out
    }

    TEST_CASE("a fresh TPM that waits for a device model is durable before it is there") {
        Machine m(instance::Startup::wait);
        REQUIRE(m.loop.run(m.vtpm->start(EngineState{})));
        CHECK_FALSE(m.vtpm->running());
        CHECK(m.restart_value() == 1);
    }

    TEST_CASE("malformed commands and localities are refused, the TPM does not see them") {
        Machine m;
        m.start();
        const auto before = m.engine.executed.size();
        CHECK(m.note(m.loop.run(m.vtpm->execute(Bytes(9), 0))) == 0x142);
        Bytes odd = FakeEngine::command(FakeEngine::add);
        odd.push_back(std::byte{0});
        CHECK(m.note(m.loop.run(m.vtpm->execute(odd, 0))) == 0x142);
        CHECK(m.note(m.loop.run(m.vtpm->execute(FakeEngine::command(FakeEngine::add), 5))) == 0x907);
        CHECK(m.engine.executed.size() == before);
        CHECK(m.vtpm->counters().refused == 3);
        for (int i = 0; i < 1000; ++i) {
            (void)m.loop.run(m.vtpm->execute(Bytes(9), 0));
        }
        CHECK(m.loop.lines.size() < 20);
    }

    TEST_CASE("a start that cannot be saved fails, and tells why") {
        Machine m;
        m.image.fail_prepare = Errc::no_space;
        auto started = m.loop.run(m.vtpm->start(EngineState{}));
        REQUIRE_FALSE(started);
        CHECK(started.error().code == Errc::no_space);
    }
}

} // namespace instance_test
