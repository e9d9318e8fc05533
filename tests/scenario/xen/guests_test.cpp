// --xen=guests: devices come and go in a simulated xenstore, instances are the test's processes.
#include "check.hpp"
#include "fake_spawner.hpp"
#include "loop_fixture.hpp"
#include "manager/xen/guests.hpp"
#include "xen/sim.hpp"

#include <algorithm>

namespace xen_guests_test {

using namespace vtpmd;
using namespace vtpmd::manager;

namespace {

const Uuid uuid_a = parse_uuid("6f1b1f0e-0000-4000-8000-00000000000a").value();
const Uuid uuid_b = parse_uuid("6f1b1f0e-0000-4000-8000-00000000000b").value();

struct Stage {
    test::Loop& loop;
    xen::SimHost host{loop.io.get_executor(), loop.clock, loop.log};
    std::unique_ptr<xen::Fabric> fabric = host.fabric(0);
    fakes::FakeSpawner spawner{loop.io.get_executor()};
    std::vector<UniqueFd> links;
    Supervisor supervisor;
    XenGuests guests;
    TaskGroup tasks{loop.io.get_executor(), loop.log};

    explicit Stage(test::Loop& l, SpawnOptions options = {}, bool spawn = true, std::optional<Uuid> admin = {})
        : loop(l)
        , supervisor(std::move(options), "/run/m.sock",
                     {.executor = loop.io.get_executor(),
                      .spawner = spawner,
                      .clock = loop.clock,
                      .log = loop.log,
                      .serve_link = [this](UniqueFd fd, const Uuid&, pid_t) { links.push_back(std::move(fd)); }})
        , guests(spawn,
                 {.fabric = *fabric, .supervisor = supervisor, .clock = loop.clock, .log = loop.log, .admin = admin}) {}

    void start() {
        fabric->start();
        tasks.spawn("guests", guests.run());
    }
    Task<> finish() {
        tasks.cancel();
        co_await tasks.join();
        co_await guests.stop();
        co_await supervisor.stop(std::chrono::seconds(1));
        co_await fabric->stop();
        co_await host.stop();
    }
    Task<bool> until(std::function<bool()> condition) {
        for (int i = 0; i < 2000 && !condition(); ++i) {
            (void)co_await loop.clock.sleep_for(std::chrono::milliseconds(5));
        }
        co_return condition();
    }
    Task<bool> until_started(std::size_t n) {
        auto started = [this, n] { return spawner.processes.size() >= n; };
        co_return co_await until(std::move(started));
    }
    fakes::FakeProcess& process(std::size_t i) { return *spawner.processes.at(i); }
    std::string state(xen::DomId front) {
        return host.store().get(xen::SimHost::back_dir(0, front, 0) + "/state").value_or("none");
    }
};

bool has(const fakes::FakeProcess& p, const std::string& argument) {
    return std::find(p.arguments.begin(), p.arguments.end(), argument) != p.arguments.end();
}

Task<> come_and_go(Stage& s) {
    s.host.add_vtpm(0, 3, 0, uuid_a); // before the manager
    s.start();
    bool started = co_await s.until_started(1);
    CHECK(started);
    CHECK(s.state(3) == "2"); // the toolstack goes on, though nothing serves yet
    CHECK(has(s.process(0), "--guest=xen:3/0"));
    CHECK(has(s.process(0), "--uuid=" + to_string(uuid_a)));
    CHECK(has(s.process(0), "--tpm-version=1.2"));
    s.host.add_vtpm(0, 4, 0, uuid_b); // after it
    started = co_await s.until_started(2);
    CHECK(started);
    CHECK(has(s.process(1), "--guest=xen:4/0"));
    CHECK(s.guests.devices() == 2);

    s.host.remove_vtpm(0, 3, 0);
    auto asked = [&] { return !s.process(0).signals.empty(); };
    bool ended = co_await s.until(asked);
    CHECK(ended);
    CHECK(s.process(0).signals == std::vector<int>{SIGTERM});
    CHECK(s.process(1).signals.empty());
    CHECK(s.guests.devices() == 1);
    CHECK(s.spawner.processes.size() == 2); // nobody wants it again
    co_await s.finish();
    CHECK(s.process(1).signals.empty()); // its guest runs on while the manager is away
}

/// The administrator's device is the manager's own: no instance for it, and the device is left alone.
Task<> administrator(Stage& s) {
    s.host.add_vtpm(0, 3, 0, uuid_b);
    s.host.add_vtpm(0, 4, 0, uuid_a);
    s.start();
    bool started = co_await s.until_started(1);
    CHECK(started);
    CHECK(has(s.process(0), "--guest=xen:4/0"));
    CHECK(s.state(4) == "2");
    CHECK(s.state(3) == "1");
    s.host.remove_vtpm(0, 3, 0);
    auto gone = [&] { return s.guests.devices() == 1; };
    bool ended = co_await s.until(gone);
    CHECK(ended);
    CHECK(s.process(0).signals.empty());
    CHECK(s.spawner.processes.size() == 1);
    co_await s.finish();
}

/// The new domain of a guest that reboots is there before the old one's instance has ended.
Task<> reboot(Stage& s) {
    s.spawner.obedient = false;
    s.host.add_vtpm(0, 3, 0, uuid_a);
    s.start();
    bool started = co_await s.until_started(1);
    CHECK(started);
    s.host.remove_vtpm(0, 3, 0);
    s.host.add_vtpm(0, 4, 0, uuid_a);
    auto accepted = [&] { return s.state(4) == "2"; };
    bool answered = co_await s.until(accepted);
    CHECK(answered);
    (void)co_await s.loop.clock.sleep_for(std::chrono::milliseconds(30));
    CHECK(s.spawner.processes.size() == 1); // never two with one vTPM
    s.process(0).end({});
    started = co_await s.until_started(2);
    CHECK(started);
    CHECK(has(s.process(1), "--guest=xen:4/0"));
    s.process(1).end({.code = EX_DATAERR}); // its state cannot be read
    auto refused = [&] { return s.state(4) == "6"; };
    bool closed = co_await s.until(refused);
    CHECK(closed);
    CHECK(s.spawner.processes.size() == 2);
    co_await s.finish();
}

/// Who restores a saved guest says so; every other new domain's TPM is power-cycled.
Task<> restored(Stage& s) {
    const std::string order = "/local/domain/0/vtpmd/restore/" + to_string(uuid_a);
    s.start();
    s.host.store().set(order, "1");
    s.host.add_vtpm(0, 3, 0, uuid_b);
    bool started = co_await s.until_started(1);
    CHECK(started);
    CHECK_FALSE(has(s.process(0), "--startup=save"));
    s.host.add_vtpm(0, 4, 0, uuid_a);
    started = co_await s.until_started(2);
    CHECK(started);
    CHECK(has(s.process(1), "--startup=save"));
    CHECK_FALSE(s.host.store().get(order).has_value());
    for (const char* resume : {"False", "True"}) {
        s.host.remove_vtpm(0, 4, 0);
        auto gone = [&] { return s.guests.devices() == 1; };
        bool left = co_await s.until(gone);
        CHECK(left);
        const std::string directory = xen::SimHost::back_dir(0, 4, 0);
        s.host.store().set(directory + "/resume", resume);
        s.host.store().set(directory + "/state", "1");
        s.host.store().set(directory + "/uuid", to_string(uuid_a));
        const std::size_t so_far = s.spawner.processes.size();
        started = co_await s.until_started(so_far + 1);
        CHECK(started);
        CHECK(has(s.process(so_far), "--startup=save") == (std::string(resume) == "True"));
    }
    co_await s.finish();
}

Task<> odd_nodes(Stage& s) {
    const std::string dir = xen::SimHost::back_dir(0, 7, 0);
    s.host.store().set(dir + "/state", "1");
    s.host.store().set(dir + "/uuid", "not a uuid");
    s.host.store().set("/local/domain/0/backend/vtpm/x/0/state", "1");
    s.host.store().set("/local/domain/0/backend/vtpm/8/y", "1");
    s.start();
    s.host.add_vtpm(0, 3, 0, uuid_a);
    bool started = co_await s.until_started(1);
    CHECK(started);
    CHECK(s.guests.devices() == 1);
    CHECK(s.state(7) == "1");
    // Removed and made anew for another vTPM, faster than anybody looks.
    s.host.remove_vtpm(0, 3, 0);
    s.host.add_vtpm(0, 3, 0, uuid_b);
    started = co_await s.until_started(2);
    CHECK(started);
    CHECK(has(s.process(1), "--uuid=" + to_string(uuid_b)));
    co_await s.finish();
}

Task<> xenstored_restarts(Stage& s, bool keeps_tree) {
    s.host.add_vtpm(0, 3, 0, uuid_a);
    s.start();
    bool started = co_await s.until_started(1);
    CHECK(started);
    co_await s.host.store().down();
    if (keeps_tree) {
        s.host.remove_vtpm(0, 3, 0); // while nobody could tell
    } else {
        s.host.store().remove("/local");
    }
    const unsigned before = s.fabric->store().connections();
    s.host.store().up();
    auto back = [&] { return s.fabric->store().connections() > before; };
    bool reconnected = co_await s.until(back);
    CHECK(reconnected);
    (void)co_await s.loop.clock.sleep_for(std::chrono::milliseconds(100));
    CHECK(s.guests.devices() == (keeps_tree ? 0 : 1));
    CHECK(s.process(0).signals.empty() == !keeps_tree);
    co_await s.finish();
}

Task<> only_told(Stage& s) {
    s.host.add_vtpm(0, 3, 0, uuid_a);
    s.start();
    auto known = [&] { return s.guests.devices() == 1; };
    bool seen = co_await s.until(known);
    CHECK(seen);
    CHECK(s.state(3) == "1"); // whoever serves it will answer
    CHECK(s.spawner.processes.empty());
    co_await s.finish();
}

} // namespace

TEST_SUITE("xen guests") {

    TEST_CASE("an instance for each device, ended with it, left alone by a manager that stops") {
        test::Loop loop;
        Stage stage(loop, {.enabled = true, .tpm_version = TpmVersion::tpm12});
        loop.run(come_and_go(stage));
    }

    TEST_CASE("the administrator's device gets no instance") {
        test::Loop loop;
        Stage stage(loop, {}, true, uuid_b);
        loop.run(administrator(stage));
    }

    TEST_CASE("a rebooted guest's new domain waits for the old instance; one that cannot be served is told") {
        test::Loop loop;
        Stage stage(loop);
        loop.run(reboot(stage));
    }

    TEST_CASE("a guest that is restored, as the operator's order or the toolstack's key says, resumes its registers") {
        test::Loop loop;
        Stage stage(loop);
        loop.run(restored(stage));
    }

    TEST_CASE("nodes that make no sense are passed over; a device made anew is another device") {
        test::Loop loop;
        Stage stage(loop);
        loop.run(odd_nodes(stage));
    }

    TEST_CASE("xenstored restarts: what went is noticed, unless everything went") {
        for (bool keeps_tree : {true, false}) {
            test::Loop loop;
            Stage stage(loop);
            loop.run(xenstored_restarts(stage, keeps_tree));
        }
    }

    TEST_CASE("without --spawn nothing is answered or started") {
        test::Loop loop;
        Stage stage(loop, {}, false);
        loop.run(only_told(stage));
    }

    TEST_CASE("the device of a changed path") {
        CHECK(device_of_path("backend/vtpm/3/1/state") == ring::DeviceId{3, 1});
        CHECK(device_of_path("backend/vtpm/3/1") == ring::DeviceId{3, 1});
        CHECK_FALSE(device_of_path("backend/vtpm/3"));
        CHECK_FALSE(device_of_path("backend/vbd/3/1"));
        CHECK_FALSE(device_of_path("backend/vtpm/99999/1"));
        CHECK_FALSE(device_of_path(""));
    }

} // TEST_SUITE

} // namespace xen_guests_test
