// --xen=vtpms: the manager protocol over simulated rings, with the real key service, vault and journal.
#include "instance/links/ring_channel.hpp"
#include "manager/xen/rings.hpp"
#include "manager_machine.hpp"
#include "ring/front_device.hpp"
#include "tpm/commands.hpp"
#include "util/text.hpp"
#include "xen/sim.hpp"

#include <algorithm>
#include <sys/resource.h>

namespace xen_rings_test {

using namespace vtpmd;
using namespace vtpmd::manager;
using namespace std::chrono_literals;

namespace {

constexpr xen::DomId vtpm_domain = 5;

Uuid uuid_of(unsigned n) {
    Uuid u;
    u.bytes[0] = std::byte{0xdd};
    u.bytes[14] = static_cast<std::byte>(n >> 8U);
    u.bytes[15] = static_cast<std::byte>(n);
    return u;
}

Bytes key_of(unsigned mark) { return Bytes(proto::hash_key_long, static_cast<std::byte>(mark)); }

/// A manager in domain 0; one vTPM domain, 5, with a device for each vTPM.
struct Stage {
    explicit Stage(unsigned vtpms, bool auto_create = true, std::optional<Uuid> administrator = {})
        : only(administrator) {
        m.options.size = std::size_t{1} << 20;
        REQUIRE(m.create());
        service.emplace(KeyService::Options{.auto_create = auto_create},
                        KeyService::Parts{.executor = m.loop.io.get_executor(),
                                          .vault = *m.vault,
                                          .root = *m.root,
                                          .clock = m.loop.clock,
                                          .log = m.loop.log});
        host.emplace(m.loop.io.get_executor(), clock, m.loop.log);
        back = host->fabric(0);
        front = host->fabric(vtpm_domain);
        for (unsigned i = 0; i < vtpms; ++i) {
            host->add_vtpm(0, vtpm_domain, i, uuid_of(i));
        }
        back->start();
        front->start();
        begin();
    }
    ~Stage() {
        end();
        go(front->stop());
        go(back->stop());
        go(host->stop());
        service.reset();
    }
    void begin() {
        rings.emplace(XenRings::Parts{
            .fabric = *back, .service = *service, .links = *links, .clock = clock, .log = m.loop.log, .only = only});
        tasks->spawn("rings", rings->run());
    }
    /// The manager goes away in order.
    void end() {
        if (rings) {
            tasks->cancel();
            go(tasks->join());
            go(rings->stop());
            rings.reset();
            go(links->join());
        }
    }
    std::unique_ptr<proto::ManagerClient> client(unsigned handle, const Uuid& uuid) {
        proto::ClientOptions options;
        options.greeting = {uuid, TpmVersion::tpm20, true};
        return proto::make_manager_client(m.loop.io.get_executor(), options, instance::ring_connector(*front, handle),
                                          clock, m.loop.log);
    }
    /// Handler by handler: under load there is always one more that is ready.
    bool drive(const std::function<bool()>& done) {
        const auto give_up = std::chrono::steady_clock::now() + 60s;
        while (!done() && std::chrono::steady_clock::now() < give_up) {
            m.loop.io.restart();
            (void)m.loop.io.run_one_for(10ms);
        }
        return done();
    }
    void go(Task<> task) {
        auto started = m.loop.start(std::move(task));
        REQUIRE(m.loop.wait(*started, false));
    }
    template <typename T>
    T run(Task<T> task) {
        return m.loop.run(std::move(task), false);
    }
    std::vector<std::uint64_t> served() const {
        std::vector<std::uint64_t> out;
        for (unsigned i = 0; i < rings->rings(); ++i) {
            out.push_back(rings->requests({vtpm_domain, i}).value());
        }
        return out;
    }

    fakes::Machine m;
    SystemClock clock{m.loop.io.get_executor()};
    std::optional<xen::SimHost> host;
    std::unique_ptr<xen::Fabric> back, front;
    std::optional<KeyService> service;
    std::optional<TaskGroup> links{std::in_place, m.loop.io.get_executor(), m.loop.log};
    std::optional<TaskGroup> tasks{std::in_place, m.loop.io.get_executor(), m.loop.log};
    std::optional<XenRings> rings;
    const std::optional<Uuid> only; ///< XenRings::Parts
};

Result<Bytes> ask(Stage& s, ring::FrontDevice& device, ByteView frame) {
    if (auto sent = device.ring()->submit(frame, 0); !sent) {
        return sent.error();
    }
    return s.run(device.ring()->answer());
}

/// A vTPM that alternately saves and asks for random numbers, until told to stop; without a hello, as Xen's stub domains.
struct Load {
    Load(Stage& s, unsigned handle)
        : device({.handle = handle}, *s.front) {}
    Task<> connect() {
        auto connected = co_await device.connect();
        failed = !connected;
    }
    Task<> run(bool* stop) {
        for (unsigned i = 0; !*stop; ++i) {
            const Bytes key = key_of(i);
            const Bytes frame = i % 2 == 0 ? proto::encode_save(key) : tpm::get_random_command(TpmVersion::tpm12, 16);
            auto sent = device.ring()->submit(frame, 0);
            if (!sent) {
                failed = true;
                co_return;
            }
            auto answer = co_await device.ring()->answer();
            if (!answer || tpm::peek_header(*answer).code != 0) {
                failed = true;
                co_return;
            }
            ++answers;
        }
    }
    ring::FrontDevice device;
    std::uint64_t answers = 0;
    bool failed = false;
};

} // namespace

TEST_SUITE("xen rings") {

    TEST_CASE("an instance's whole conversation, by the ring") {
        Stage s(2);
        auto client = s.client(0, uuid_of(0));
        auto greeted = s.run(client->hello());
        REQUIRE(greeted);
        CHECK(greeted->known);
        CHECK_FALSE(greeted->has_record);
        const Bytes key = key_of(1);
        auto saved = s.run(client->save_hash_key(key));
        CHECK(saved);
        auto random = s.run(client->tpm_command(tpm::get_random_command(TpmVersion::tpm20, 8)));
        CHECK(random);

        // Its program dies and is started again in the same domain; nothing told the manager.
        client.reset();
        client = s.client(0, uuid_of(0));
        greeted = s.run(client->hello());
        REQUIRE(greeted);
        CHECK(greeted->has_record);
        auto loaded = s.run(client->load_hash_key());
        REQUIRE(loaded);
        REQUIRE(*loaded);
        const Bytes found = to_bytes((*loaded)->view());
        CHECK(found == key);

        // The ring of one vTPM is no way to another.
        auto other = s.client(1, uuid_of(0));
        auto refused = s.run(other->hello());
        REQUIRE_FALSE(refused);
        CHECK(refused.error().code == Errc::permission);
        CHECK(s.rings->rings() == 2);
    }

    TEST_CASE("a manager that is started again is found by itself; the same ring goes on") {
        Stage s(1);
        auto client = s.client(0, uuid_of(0));
        REQUIRE(s.run(client->hello()));
        s.end();
        CHECK(s.service->link_count() == 0);
        s.begin();
        const Bytes key = key_of(2);
        CHECK(s.run(client->save_hash_key(key)));
    }

    TEST_CASE("Xen's stub domains send no hello; what makes no sense is answered, and the ring goes on") {
        Stage s(1);
        ring::FrontDevice device({.handle = 0, .extra_pages = 0, .order = ring::FrontOrder::minios_order}, *s.front);
        REQUIRE(s.run(device.connect()));
        const auto code = [&](ByteView frame) -> std::int64_t {
            auto answer = ask(s, device, frame);
            return answer ? static_cast<std::int64_t>(tpm::peek_header(*answer).code) : -1;
        };
        const Bytes key = key_of(3);
        const Bytes save = proto::encode_save(key);
        CHECK(code(proto::encode_load()) != 0); // nothing saved yet
        CHECK(code(save) == 0);
        CHECK(code(Bytes{}) > 0);
        CHECK(code(Bytes(9)) > 0);
        CHECK(code(Bytes(4088)) > 0);
        CHECK(code(ByteView(save).first(save.size() - 1)) > 0); // its size is not its length
        auto loaded = ask(s, device, proto::encode_load());
        REQUIRE(loaded);
        auto parsed = proto::parse_load_reply(*loaded);
        REQUIRE(parsed);
        const Bytes found = to_bytes((*parsed)->view());
        CHECK(found == key);
    }

    TEST_CASE("GET_BOOT_HASH is the SHA-1 of the vTPM domain's XSM label, zeros without one") {
        Stage s(2);
        auto client = s.client(0, uuid_of(0));
        REQUIRE(s.run(client->hello()));
        auto hash = s.run(client->boot_hash());
        REQUIRE(hash);
        CHECK(*hash == proto::BootHash{});
        s.host->set_label(vtpm_domain, "abc"); // FIPS 180: a9993e36...
        auto labelled = s.client(1, uuid_of(1));
        REQUIRE(s.run(labelled->hello()));
        hash = s.run(labelled->boot_hash());
        REQUIRE(hash);
        CHECK(to_hex(*hash) == "a9993e364706816aba3e25717850c26c9cd0d89d");
    }

    TEST_CASE("a vTPM that nobody registered is not made by a ring alone") {
        Stage s(1, false);
        ring::FrontDevice device({}, *s.front);
        REQUIRE(s.run(device.connect()));
        const Bytes key = key_of(4);
        const Bytes save = proto::encode_save(key);
        for (int i = 0; i < 2; ++i) { // the second one must not find the door open
            auto answer = ask(s, device, save);
            REQUIRE(answer);
            CHECK(tpm::peek_header(*answer).code != 0);
        }
        CHECK(s.m.vault->registry().vtpm_count() == 0);
    }

    TEST_CASE("with --xen=guests only the administrator's ring is the manager's") {
        Stage s(3, true, uuid_of(1));
        ring::FrontDevice device({.handle = 1}, *s.front);
        REQUIRE(s.run(device.connect()));
        const Bytes frame = proto::make_frame(proto::tag::management, 0x02000101);
        auto answer = ask(s, device, frame);
        REQUIRE(answer);
        CHECK(tpm::peek_header(*answer).code == 1); // this service has no administrator
        CHECK(s.rings->rings() == 1);
        CHECK_FALSE(s.rings->requests({vtpm_domain, 0}));
        CHECK_FALSE(s.rings->requests({vtpm_domain, 2}));
        // xl vtpm-attach, later.
        s.host->add_vtpm(0, vtpm_domain, 3, uuid_of(9));
        s.host->add_vtpm(0, vtpm_domain, 4, uuid_of(1));
        ring::FrontDevice second({.handle = 4}, *s.front);
        REQUIRE(s.run(second.connect()));
        CHECK(s.rings->rings() == 2);
    }

    TEST_CASE("1, 16, 256 and 1024 rings are served alike, and cost nothing when idle") {
        for (unsigned n : {1U, 16U, 256U, 1024U}) {
            CAPTURE(n);
            Stage s(n);
            std::vector<std::unique_ptr<Load>> loads;
            bool stop = false;
            TaskGroup fronts(s.m.loop.io.get_executor(), s.m.loop.log);
            for (unsigned i = 0; i < n; ++i) {
                loads.push_back(std::make_unique<Load>(s, i));
                fronts.spawn("connect", loads.back()->connect());
            }
            s.go(fronts.join());
            for (auto& load : loads) {
                REQUIRE_FALSE(load->failed);
                fronts.spawn("load", load->run(&stop));
            }
            const auto all_have = [&](std::uint64_t k) {
                return std::all_of(loads.begin(), loads.end(),
                                   [&](const auto& l) { return l->answers >= k || l->failed; });
            };
            REQUIRE(s.drive([&] { return all_have(1); })); // all are open: from here on the load is equal
            const auto before = s.served();
            REQUIRE(before.size() == n);
            const std::uint64_t most_before = *std::max_element(before.begin(), before.end());
            const std::uint64_t target = 20;
            REQUIRE(s.drive([&] { return all_have(most_before + target); }));
            const auto after = s.served();
            stop = true;
            s.go(fronts.join());
            std::uint64_t least = UINT64_MAX;
            std::uint64_t most = 0;
            for (unsigned i = 0; i < n; ++i) {
                CHECK_FALSE(loads[i]->failed);
                least = std::min(least, after[i] - before[i]);
                most = std::max(most, after[i] - before[i]);
            }
            CAPTURE(least);
            CAPTURE(most);
            CHECK(least > 0);
            CHECK(2 * most <= 3 * least);
            // Nothing left to do, and nothing that looks from time to time.
            s.m.loop.settle();
            s.m.loop.io.restart();
            // Every system call of a loop that sleeps follows a waking up. Asio's run_for wakes up once a second by itself.
            const auto pause = n == 1024 ? std::chrono::milliseconds(10s) : 300ms;
            rusage sleep_begin{};
            rusage sleep_end{};
            REQUIRE(getrusage(RUSAGE_THREAD, &sleep_begin) == 0);
            CHECK(s.m.loop.io.run_for(pause) == 0);
            REQUIRE(getrusage(RUSAGE_THREAD, &sleep_end) == 0);
            CHECK(sleep_end.ru_nvcsw - sleep_begin.ru_nvcsw <= pause / 1s + 40);
        }
    }

} // TEST_SUITE

} // namespace xen_rings_test
