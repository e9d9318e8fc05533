// A guest's device, from the toolstack's writing it to its end, on simulated Xen.
#include "check.hpp"
#include "fake_service.hpp"
#include "guest/xen_guest.hpp"
#include "loop_fixture.hpp"
#include "ring/front_device.hpp"
#include "tpm/header.hpp"
#include "xen/sim.hpp"

namespace xen_guest_test {

using namespace vtpmd;
using ring::BackDevice;
using ring::FrontOrder;

namespace {

const Uuid uuid_a = parse_uuid("6f1b1f0e-0000-4000-8000-00000000000a").value();
const Uuid uuid_b = parse_uuid("6f1b1f0e-0000-4000-8000-00000000000b").value();
constexpr xen::DomId back_domain = 0;
constexpr xen::DomId guest_domain = 5;

Bytes command(std::uint8_t mark, std::size_t size = 12) {
    WireWriter w;
    w.be16(0x8001).be32(static_cast<std::uint32_t>(size)).be32(0x17B).zeros(size - 11).u8(mark);
    return w.take();
}

/// One back end, in domain 0 if not told otherwise, and one guest, 5; each test is a coroutine on it.
struct Stage {
    test::Loop& loop;
    const xen::DomId back_id;
    xen::SimHost host{loop.io.get_executor(), loop.clock, loop.log};
    std::unique_ptr<xen::Fabric> back = host.fabric(back_id);
    std::unique_ptr<xen::Fabric> front = host.fabric(guest_domain);
    fakes::FakeService service;
    std::unique_ptr<guest::XenGuest> guest;
    std::optional<BackDevice::Ended> ended;
    TaskGroup tasks{loop.io.get_executor(), loop.log};

    explicit Stage(test::Loop& l, xen::DomId back_domain_id = back_domain)
        : loop(l)
        , back_id(back_domain_id) {}

    void start(const Uuid& uuid = uuid_a, guest::LocalityPolicy policy = {}) {
        back->start();
        front->start();
        guest::XenGuestOptions options;
        options.endpoint = {guest_domain, 0};
        options.uuid = uuid;
        options.localities = std::move(policy);
        options.patience = std::chrono::milliseconds(200);
        guest = std::make_unique<guest::XenGuest>(std::move(options), *back, loop.clock, loop.log);
        tasks.spawn("guest", run());
    }
    Task<> run() { ended = co_await guest->run(); }
    Task<> finish() {
        tasks.cancel();
        co_await tasks.join();
        guest.reset();
        co_await front->stop();
        co_await back->stop();
        co_await host.stop();
    }
    /// Until the condition holds, at most 10 s.
    Task<bool> until(std::function<bool()> condition) {
        for (int i = 0; i < 2000 && !condition(); ++i) {
            (void)co_await loop.clock.sleep_for(std::chrono::milliseconds(5));
        }
        co_return condition();
    }
    std::string back_state() {
        return host.store().get(xen::SimHost::back_dir(back_id, guest_domain, 0) + "/state").value_or("none");
    }
    Task<bool> until_back_state(std::string wanted) {
        auto reached = [this, wanted] { return back_state() == wanted; };
        co_return co_await until(std::move(reached));
    }
};

/// The whole exchange of one command, checked.
Task<bool> exchanges(ring::FrontDevice& device, std::uint8_t mark, std::uint8_t locality = 0) {
    const Bytes request = command(mark);
    auto sent = device.ring()->submit(request, locality);
    if (!sent) {
        co_return false;
    }
    auto answer = co_await device.ring()->answer();
    co_return answer && answer->size() == 11 && std::to_integer<std::uint8_t>(answer->back()) == mark;
}

Task<> life(Stage& s, FrontOrder order) {
    s.host.add_vtpm(back_domain, guest_domain, 0, uuid_a);
    s.start();
    bool waiting = co_await s.until_back_state("2");
    CHECK(waiting);
    CHECK(s.host.store().get(xen::SimHost::back_dir(0, guest_domain, 0) + "/feature-protocol-v2") == "1");
    CHECK_FALSE(s.guest->connected());

    ring::FrontDevice device({.order = order}, *s.front);
    std::optional<Result<void>> connected;
    auto connect = [](ring::FrontDevice& d, std::optional<Result<void>>& out) -> Task<> { out = co_await d.connect(); };
    TaskGroup front(s.loop.io.get_executor(), s.loop.log);
    front.spawn("front end", connect(device, connected));
    auto offered = [&] { return device.ring() != nullptr; };
    (void)co_await s.until(offered);
    (void)co_await s.loop.clock.sleep_for(std::chrono::milliseconds(20));
    CHECK_FALSE(connected); // there is no TPM yet
    CHECK(s.back_state() == "2");

    s.guest->open(s.service);
    co_await front.join();
    REQUIRE(connected);
    REQUIRE(*connected);
    CHECK(s.back_state() == "4");
    bool first = co_await exchanges(device, 1);
    bool second = co_await exchanges(device, 2);
    CHECK(first);
    CHECK(second);
    CHECK(s.service.last_locality == 0);

    // A driver that is loaded again, in the same domain: the TPM is not touched.
    auto gone = co_await device.disconnect();
    CHECK(gone);
    waiting = co_await s.until_back_state("2");
    CHECK(waiting);
    CHECK_FALSE(s.guest->connected());
    auto again = co_await device.connect();
    REQUIRE(again);
    first = co_await exchanges(device, 3);
    CHECK(first);
    CHECK(s.service.called.empty());

    s.host.remove_vtpm(back_domain, guest_domain, 0);
    auto ended = [&] { return s.ended.has_value(); };
    bool over = co_await s.until(ended);
    CHECK(over);
    CHECK(s.ended == BackDevice::Ended::gone);
    CHECK(s.back_state() == "none");
    CHECK_FALSE(s.host.store().get("/local/domain/0/backend/vtpm/5"));
    co_await s.finish();
}

/// The command is in the page before the back end has mapped it, as xen-tpmfront's first one is.
Task<> early_command(Stage& s) {
    s.host.add_vtpm(back_domain, guest_domain, 0, uuid_a);
    s.start();
    s.guest->open(s.service);
    bool waiting = co_await s.until_back_state("2");
    CHECK(waiting);
    auto ring = ring::FrontEnd::make(*s.front, back_domain, 0);
    REQUIRE(ring);
    const Bytes request = command(7);
    auto sent = (*ring)->submit(request, 0);
    CHECK(sent);
    xen::StoreEdit edit;
    edit.writes = {{"device/vtpm/0/feature-protocol-v2", "1"},
                   {"device/vtpm/0/ring-ref", std::to_string((*ring)->ref())},
                   {"device/vtpm/0/event-channel", std::to_string((*ring)->port())},
                   {"device/vtpm/0/state", "3"}};
    auto offered = co_await s.front->store().apply(std::move(edit));
    CHECK(offered);
    auto answer = co_await (*ring)->answer();
    REQUIRE(answer);
    CHECK(std::to_integer<int>(answer->back()) == 7);
    bool connected = co_await s.until_back_state("4");
    CHECK(connected);
    ring->reset();
    co_await s.finish();
}

Task<> front_gone(Stage& s) {
    s.host.add_vtpm(back_domain, guest_domain, 0, uuid_a);
    s.start();
    bool waiting = co_await s.until_back_state("2");
    CHECK(waiting);
    s.host.store().remove(xen::SimHost::front_dir(guest_domain, 0)); // as libxl does for a driver domain's device
    auto ended = [&] { return s.ended.has_value(); };
    bool over = co_await s.until(ended);
    CHECK(over);
    CHECK(s.ended == BackDevice::Ended::gone);
    CHECK(s.back_state() == "none");
    CHECK_FALSE(s.host.store().get("/local/domain/0/backend/vtpm/5"));
    co_await s.finish();
}

Task<> offline(Stage& s) {
    s.host.add_vtpm(back_domain, guest_domain, 0, uuid_a);
    s.start();
    s.guest->open(s.service);
    ring::FrontDevice device({}, *s.front);
    bool waiting = co_await s.until_back_state("2");
    CHECK(waiting);
    auto connected = co_await device.connect();
    REQUIRE(connected);
    const std::string dir = xen::SimHost::back_dir(back_domain, guest_domain, 0);
    s.host.store().set(dir + "/online", "0"); // xl vtpm-detach
    s.host.store().set(dir + "/state", "5");
    bool closed = co_await s.until_back_state("6");
    CHECK(closed);
    CHECK_FALSE(s.guest->connected());
    s.host.remove_vtpm(back_domain, guest_domain, 0);
    auto ended = [&] { return s.ended.has_value(); };
    bool over = co_await s.until(ended);
    CHECK(over);
    CHECK(s.back_state() == "none");
    co_await s.finish();
}

/// What `xl destroy` does, in one transaction; and, from domain 0, the removal of the back end's directory once that is at 6.
Task<> destroyed(Stage& s) {
    s.host.add_vtpm(s.back_id, guest_domain, 0, uuid_a);
    s.start();
    s.guest->open(s.service);
    ring::FrontDevice device({}, *s.front);
    bool waiting = co_await s.until_back_state("2");
    CHECK(waiting);
    auto connected = co_await device.connect();
    REQUIRE(connected);
    const std::string dir = xen::SimHost::back_dir(s.back_id, guest_domain, 0);
    s.host.store().remove(xen::SimHost::front_dir(guest_domain, 0));
    s.host.store().set(dir + "/online", "0");
    s.host.store().set(dir + "/state", "5");
    bool closed = co_await s.until_back_state("6");
    CHECK(closed);
    auto ended = [&] { return s.ended.has_value(); };
    if (s.back_id == 0) {
        (void)co_await s.loop.clock.sleep_for(std::chrono::milliseconds(500));
        CHECK(s.back_state() == "6");
        CHECK_FALSE(s.ended);
        s.host.remove_vtpm(s.back_id, guest_domain, 0);
    }
    bool over = co_await s.until(ended);
    CHECK(over);
    CHECK(s.ended == BackDevice::Ended::gone);
    CHECK(s.back_state() == "none");
    co_await s.finish();
}

Task<> not_this_device(Stage& s, bool there) {
    if (there) {
        s.host.add_vtpm(back_domain, guest_domain, 0, uuid_b);
    }
    s.start(uuid_a);
    auto ended = [&] { return s.ended.has_value(); };
    bool over = co_await s.until(ended);
    CHECK(over);
    CHECK(s.ended == BackDevice::Ended::never_there);
    CHECK(s.back_state() == (there ? "1" : "none"));
    co_await s.finish();
}

Task<> xenstored_restarts(Stage& s, bool keeps_tree) {
    s.host.add_vtpm(back_domain, guest_domain, 0, uuid_a);
    s.start();
    s.guest->open(s.service);
    bool waiting = co_await s.until_back_state("2");
    CHECK(waiting);
    ring::FrontDevice device({.order = FrontOrder::linux_order}, *s.front);
    auto connected = co_await device.connect();
    REQUIRE(connected);
    co_await s.host.store().down();
    bool served = co_await exchanges(device, 1);
    CHECK(served);
    if (!keeps_tree) {
        s.host.store().remove("/local");
    }
    const unsigned before = s.back->store().connections();
    s.host.store().up();
    auto back_again = [&] { return s.back->store().connections() > before; };
    bool reconnected = co_await s.until(back_again);
    CHECK(reconnected);
    (void)co_await s.loop.clock.sleep_for(std::chrono::milliseconds(50));
    served = co_await exchanges(device, 2);
    CHECK(served);
    CHECK_FALSE(s.ended);
    co_await s.finish();
}

Task<> localities(Stage& s) {
    guest::LocalityPolicy policy;
    REQUIRE(policy.add("dom:5=0,2"));
    s.host.add_vtpm(back_domain, guest_domain, 0, uuid_a);
    s.start(uuid_a, std::move(policy));
    s.guest->open(s.service);
    bool waiting = co_await s.until_back_state("2");
    CHECK(waiting);
    ring::FrontDevice device({}, *s.front);
    auto connected = co_await device.connect();
    REQUIRE(connected);
    bool allowed = co_await exchanges(device, 1, 2);
    CHECK(allowed);
    CHECK(s.service.last_locality == 2);
    const Bytes request = command(2);
    auto sent = device.ring()->submit(request, 1);
    CHECK(sent);
    auto answer = co_await device.ring()->answer();
    REQUIRE(answer);
    const Bytes refusal = tpm::error_response(TpmVersion::tpm20, tpm::Refusal::bad_locality);
    CHECK(*answer == refusal);
    CHECK(s.service.commands == 1);
    co_await s.finish();
}

/// What a label allows, and what is left without the right to know it.
Task<> labels(Stage& s, const char* label, bool secret, bool allowed) {
    guest::LocalityPolicy policy;
    REQUIRE(policy.add("label:system_u:system_r:domHU_t=2"));
    REQUIRE(policy.add("label:system_u:system_r:locked_t=0"));
    REQUIRE(policy.add("*=0-4"));
    s.host.add_vtpm(back_domain, guest_domain, 0, uuid_a);
    if (label != nullptr) {
        s.host.set_label(guest_domain, label);
    }
    if (secret) {
        s.host.keep_labels_secret();
    }
    s.start(uuid_a, std::move(policy));
    s.guest->open(s.service);
    bool waiting = co_await s.until_back_state("2");
    CHECK(waiting);
    ring::FrontDevice device({}, *s.front);
    auto connected = co_await device.connect();
    REQUIRE(connected);
    const Bytes request = command(1);
    auto sent = device.ring()->submit(request, 2);
    CHECK(sent);
    auto answer = co_await device.ring()->answer();
    REQUIRE(answer);
    CHECK(s.service.commands == (allowed ? 1 : 0));
    co_await s.finish();
}

} // namespace

TEST_SUITE("xen guest") {

    TEST_CASE("a device's life: InitWait, connected when the TPM is ready, driver reload, removal") {
        for (FrontOrder order : {FrontOrder::linux_order, FrontOrder::minios_order}) {
            test::Loop loop;
            Stage stage(loop);
            loop.run(life(stage, order));
        }
    }

    TEST_CASE("a command sent before the back end connected is answered") {
        test::Loop loop;
        Stage stage(loop);
        loop.run(early_command(stage));
    }

    TEST_CASE("a driver domain removes its own directory when the front end's is gone") {
        test::Loop loop;
        Stage stage(loop);
        loop.run(front_gone(stage));
    }

    TEST_CASE("a guest is destroyed: Closed, for the toolstack waits for it; it removes the directory, or a driver "
              "domain does") {
        for (const xen::DomId back : {xen::DomId{0}, xen::DomId{3}}) {
            CAPTURE(back);
            test::Loop loop;
            Stage stage(loop, back);
            loop.run(destroyed(stage));
        }
    }

    TEST_CASE("the toolstack takes the device away: Closed, and nothing is written after it is gone") {
        test::Loop loop;
        Stage stage(loop);
        loop.run(offline(stage));
    }

    TEST_CASE("a device that is not there, or another vTPM's, is not served") {
        for (bool there : {false, true}) {
            test::Loop loop;
            Stage stage(loop);
            loop.run(not_this_device(stage, there));
        }
    }

    TEST_CASE("xenstored restarts: the ring goes on, also when xenstore forgot everything") {
        for (bool keeps_tree : {true, false}) {
            test::Loop loop;
            Stage stage(loop);
            loop.run(xenstored_restarts(stage, keeps_tree));
        }
    }

    TEST_CASE("localities are the policy's") {
        test::Loop loop;
        Stage stage(loop);
        loop.run(localities(stage));
    }

    TEST_CASE("localities by XSM label; one that cannot be known has locality 0 alone") {
        struct Row {
            const char* label;
            bool secret;
            bool allowed;
        };
        for (const Row& row :
             {Row{"system_u:system_r:domHU_t", false, true}, Row{"system_u:system_r:locked_t", false, false},
              Row{"system_u:system_r:other_t", false, true}, Row{nullptr, false, true},
              Row{"system_u:system_r:domHU_t", true, false}}) {
            test::Loop loop;
            Stage stage(loop);
            loop.run(labels(stage, row.label, row.secret, row.allowed));
            CHECK(loop.lines.empty() != row.secret);
        }
    }

} // TEST_SUITE

} // namespace xen_guest_test
