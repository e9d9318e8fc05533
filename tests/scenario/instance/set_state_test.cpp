// INIT with a state that was set over the control channel, on a real image: every write and flush failing in turn, and power lost at
// each. The TPM is as it was, or as the set state, never between; and a state that was set goes with its connection.
#include "check.hpp"
#include "crash_images.hpp"
#include "fake_vtpm.hpp"
#include "instance/instance.hpp"
#include "instance/state/state_blob.hpp"
#include "loop.hpp"

#include <algorithm>
#include <utility>

namespace set_state_test {

using namespace vtpmd;
using namespace vtpmd::fakes;
using namespace vtpmd::test;

namespace {

constexpr std::uint64_t own = 2, own_registers = 5, set = 70, set_registers = 9;
constexpr int connection = 0;
constexpr guest::ControlPeer device_model{.id = &connection};
/// Permanent state and registers, as a restart would find them; -1: none.
using Found = std::pair<std::int64_t, std::int64_t>;
constexpr Found as_it_was{own, own_registers}, as_set{set, -1}, as_set_and_stored{set, set_registers};

struct Rig {
    Rig() {
        image = loop.run(store::StateImage::create(disk.open(), {}, loop.log)).value();
        instance::InstanceConfig config;
        config.allow_rollback = true;
        instance::InstanceParts parts{loop.io.get_executor(), engine, *image, manager, loop.clock, loop.log, [] {}};
        vtpm = std::make_unique<instance::Instance>(std::move(config), std::move(parts));
        REQUIRE(loop.run(vtpm->start(EngineState{})));
        (void)loop.run(vtpm->execute(FakeEngine::command(FakeEngine::add), 0));
        engine.registers = own_registers;
        REQUIRE(loop.run(vtpm->store_volatile()));
        REQUIRE(loop.run(vtpm->stop()));
        REQUIRE(loop.run(vtpm->set_blob(1, to_bytes(number_blob(set).view()), device_model)));
        REQUIRE(loop.run(vtpm->set_blob(2, to_bytes(number_blob(set_registers).view()), device_model)));
        before = disk.operations();
    }
    ~Rig() {
        disk.plan = {};
        manager.fault = FakeManager::Fault::none;
        (void)loop.run(vtpm->close());
    }
    Result<void> init() { return loop.run(vtpm->init(false, device_model)); }
    /// What the TPM has now, if it is on.
    [[nodiscard]] Found in_use() const {
        return {static_cast<std::int64_t>(engine.value), static_cast<std::int64_t>(engine.registers)};
    }
    /// What a restart finds on a disk with this content.
    Found restart(const Bytes& content) {
        FaultDisk other(content);
        auto opened = loop.run(store::StateImage::open(other.open(), {}, loop.log));
        REQUIRE_MESSAGE(opened, opened.error().message);
        auto blob = loop.run((*opened)->load(manager.key_on_record().view()));
        REQUIRE_MESSAGE(blob, blob.error().message);
        auto state = instance::decode_state(TpmVersion::tpm20, blob->view());
        REQUIRE(state);
        auto number = [](const SecretBytes& b) {
            return b.empty() ? std::int64_t{-1} : static_cast<std::int64_t>(number_in(b.view()));
        };
        return {number(state->permanent), number(state->volatile_state)};
    }
    void check_restart(std::initializer_list<Found> allowed) {
        for (const CrashImage& after : crash_images(disk)) {
            const Found found = restart(after.content);
            INFO(after.how << ": " << found.first << ", " << found.second);
            CHECK(std::ranges::find(allowed, found) != allowed.end());
        }
    }

    Loop loop;
    Points points{loop.io.get_executor()};
    FakeEngine engine;
    FaultDisk disk;
    FakeManager manager{points};
    std::unique_ptr<store::StateImage> image;
    std::unique_ptr<instance::Instance> vtpm;
    std::uint64_t before = 0; ///< operations of the disk
};

/// As many as an INIT takes where nothing fails.
std::uint64_t operations_of_init() {
    Rig r;
    REQUIRE(r.init());
    CHECK(r.in_use() == as_set_and_stored);
    r.check_restart({as_set});
    return r.disk.operations() - r.before;
}

} // namespace

TEST_SUITE("instance") {
    TEST_CASE("a state that was set, every write and flush of INIT failing in turn: as it was, or as set") {
        const std::uint64_t operations = operations_of_init();
        REQUIRE(operations >= 2); // a slot is written and flushed
        unsigned refused = 0;
        for (std::uint64_t n = 0; n < operations; ++n) {
            for (const std::uint64_t lasting : {std::uint64_t{0}, never}) {
                for (const std::size_t prefix : {0U, 100U}) {
                    CAPTURE(n);
                    CAPTURE(lasting);
                    CAPTURE(prefix);
                    Rig r;
                    r.disk.plan.fail_at = r.before + n;
                    r.disk.plan.fail_until = lasting;
                    r.disk.plan.fail_prefix = prefix;
                    r.disk.plan.drop_seed = static_cast<std::uint32_t>(prefix);
                    const auto on = r.init();
                    if (on) {
                        CHECK(r.in_use() == as_set_and_stored);
                        r.check_restart({as_set});
                        continue;
                    }
                    ++refused;
                    CHECK_FALSE(r.vtpm->running());
                    r.check_restart({as_it_was, as_set});
                    r.disk.plan = {};
                    REQUIRE(r.init()); // from its own: what was set has been tried
                    CHECK(r.in_use() == as_it_was);
                    CHECK(tpm::peek_header(r.loop.run(r.vtpm->execute(FakeEngine::command(FakeEngine::add), 0))).code ==
                          0);
                    r.check_restart({{own + 1, -1}});
                }
            }
        }
        CHECK(refused > 0);
    }

    TEST_CASE("a state that was set, power lost at every write and flush of INIT: as it was, or as set") {
        const std::uint64_t operations = operations_of_init();
        for (std::uint64_t n = 0; n < operations; ++n) {
            CAPTURE(n);
            Rig r;
            r.disk.plan.die_at = r.before + n;
            (void)r.init();
            r.check_restart({as_it_was, as_set});
        }
    }

    TEST_CASE("a state that was set, the manager failing in every way: as it was, or as set") {
        using Fault = FakeManager::Fault;
        for (const Fault fault : {Fault::refuses, Fault::fails_after, Fault::lost_request, Fault::lost_answer}) {
            CAPTURE(static_cast<int>(fault));
            Rig r;
            r.manager.fault = fault;
            const auto on = r.init();
            r.check_restart({as_it_was, as_set});
            if (!on) {
                CHECK_FALSE(r.vtpm->running());
                r.manager.fault = Fault::none;
                REQUIRE(r.init());
                CHECK(r.in_use() == as_it_was);
                r.check_restart({{own, -1}});
            }
        }
    }

    TEST_CASE("a state that was set goes with its connection, whatever INIT made of it") {
        for (const bool tried : {false, true}) {
            CAPTURE(tried);
            Rig r;
            if (tried) {
                r.disk.plan.fail_at = r.before;
                CHECK_FALSE(r.init());
                r.disk.plan = {};
            }
            r.vtpm->control_gone(device_model);
            r.check_restart({as_it_was});
            REQUIRE(r.init());
            CHECK(r.in_use() == as_it_was);
        }
    }
}

} // namespace set_state_test
