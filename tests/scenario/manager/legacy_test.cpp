// A toolstack of 2006 and the manager: the real vault, key service, supervisor and socket, with processes that the test makes up.
#include "manager/compat/vtpm_managerd/socket.hpp"

#include "fake_spawner.hpp"
#include "manager_machine.hpp"
#include "service_link.hpp"
#include "util/wire.hpp"

#include <filesystem>
#include <sys/socket.h>
#include <sys/un.h>

namespace legacy_test {

using namespace vtpmd;
using namespace vtpmd::manager;
using namespace std::chrono_literals;
namespace legacy = proto::legacy;
using legacy::Status;

namespace {

/// A directory of the test's own.
struct Directory {
    Directory() {
        std::string name = "/tmp/vtpmd-legacy-XXXXXX";
        REQUIRE(::mkdtemp(name.data()) != nullptr);
        path = name;
    }
    Directory(const Directory&) = delete;
    Directory& operator=(const Directory&) = delete;
    ~Directory() { std::filesystem::remove_all(path); }
    std::string path;
};

struct Rig {
    Rig() {
        REQUIRE(m.create());
        start();
    }
    ~Rig() { stop(); }
    void start() {
        const auto executor = m.loop.io.get_executor();
        service = std::make_unique<KeyService>(
            KeyService::Options{},
            KeyService::Parts{
                .executor = executor, .vault = *m.vault, .root = *m.root, .clock = m.loop.clock, .log = m.loop.log});
        supervisor = std::make_unique<Supervisor>(SpawnOptions{.state_dir = "/s", .run_dir = run.path}, "/run/m.sock",
                                                  Supervisor::Parts{.executor = executor,
                                                                    .spawner = spawner,
                                                                    .clock = m.loop.clock,
                                                                    .log = m.loop.log,
                                                                    .serve_link = [](UniqueFd, const Uuid&, pid_t) {}});
        toolstack = std::make_unique<LegacyService>(
            LegacyService::Options{.run_dir = run.path, .patience = 5s},
            LegacyService::Parts{
                .executor = executor,
                .vault = *m.vault,
                .service = *service,
                .supervisor = *supervisor,
                .stop = [this](Uuid u) { return stop_instance(u); },
                .remove = [this](Uuid u) { return service->remove(u, TombstoneRecord::Reason::deleted); },
                .clock = m.loop.clock,
                .log = m.loop.log});
    }
    void stop() {
        hang_up();
        m.loop.run(supervisor->stop(20s));
        service->stop();
        m.loop.settle();
        toolstack.reset();
        supervisor.reset();
        service.reset();
    }
    void hang_up() {
        link.reset();
        guest = UniqueFd();
    }
    [[nodiscard]] Uuid numbered(std::uint32_t number) const { return *m.vault->registry().numbered(number); }
    [[nodiscard]] const std::vector<std::string>& arguments() const { return spawner.processes.back()->arguments; }
    [[nodiscard]] bool told(const std::string& word) const { return std::ranges::count(arguments(), word) == 1; }

    /// As ControlService::stop().
    Task<Result<void>> stop_instance(Uuid uuid) {
        auto charge = supervisor->kept(uuid);
        if (!charge) {
            co_return Result<void>{};
        }
        supervisor->release(*charge);
        co_return co_await supervisor->wait_ended(std::move(charge), 20s);
    }

    /// What the instance does when it was started: greets its manager, has saved something, and listens for its guest.
    void instance_serves(std::uint32_t number) {
        link.emplace(m.loop, *service, LinkInfo{.made_for = numbered(number), .peer_gone = {}});
        for (const Bytes& frame : {proto::encode_hello({.uuid = numbered(number), .version = TpmVersion::tpm12}),
                                   proto::encode_save(Bytes(hash_key_long, std::byte{1}))}) {
            (void)link->ask(frame);
        }
        guest = UniqueFd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
        sockaddr_un address{};
        address.sun_family = AF_UNIX;
        const std::string path = toolstack->socket_of(number);
        std::ranges::copy(path, address.sun_path);
        (void)::unlink(path.c_str());
        REQUIRE(::bind(guest.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0);
    }
    Status open(std::uint32_t number, legacy::Start start = legacy::Start::clear) {
        auto asked = m.loop.start(toolstack->answer(legacy::Open{.start = start, .instance = number}));
        m.loop.settle();
        if (!asked->done) {
            instance_serves(number);
        }
        m.loop.wait(*asked);
        return *asked->value;
    }
    Status ask(legacy::Request request) { return m.loop.run(toolstack->answer(std::move(request))); }

    fakes::Machine m;
    Directory run;
    fakes::FakeSpawner spawner{m.loop.io.get_executor()};
    std::unique_ptr<KeyService> service;
    std::unique_ptr<Supervisor> supervisor;
    std::unique_ptr<LegacyService> toolstack;
    std::optional<fakes::ServiceLink> link;
    UniqueFd guest;
};

} // namespace

TEST_SUITE("legacy") {
    TEST_CASE(
        "a toolstack's vTPM by number: made, opened, closed, opened again as it was, deleted; a restart knows it") {
        Rig rig;
        CHECK(rig.open(7) == Status::success);
        const Uuid uuid = rig.numbered(7);
        CHECK(rig.m.vault->registry().find(uuid)->version == TpmVersion::tpm12);
        CHECK(rig.told("--uuid=" + to_string(uuid)));
        CHECK(rig.told("--guest=socket:unix:" + rig.run.path + "/vtpm-7.sock"));
        CHECK(rig.told("--create"));
        CHECK(rig.told("--tpm-version=1.2"));
        CHECK(rig.told("--startup=clear"));
        CHECK(rig.ask(legacy::Open{.instance = 7}) == Status::fail); // it is open
        CHECK(rig.spawner.processes.size() == 1);

        rig.hang_up();
        CHECK(rig.ask(legacy::Close{.instance = 7}) == Status::success);
        CHECK(rig.spawner.processes.back()->signals == std::vector<int>{SIGTERM});
        CHECK(rig.ask(legacy::Close{.instance = 7}) == Status::success); // as it was asked for

        rig.stop();
        REQUIRE(rig.m.off());
        REQUIRE(rig.m.open());
        rig.start();
        CHECK(rig.numbered(7) == uuid);
        CHECK(rig.open(7, legacy::Start::resume) == Status::success);
        CHECK(rig.told("--startup=save"));
        CHECK_FALSE(rig.told("--create")); // it has a state
        CHECK(rig.open(8, legacy::Start::deactivated) == Status::success);
        CHECK(rig.told("--startup=deactivated"));
        CHECK(rig.numbered(8) != uuid);

        rig.hang_up();
        CHECK(rig.ask(legacy::Delete{.instance = 7}) == Status::success); // stopped first
        CHECK(rig.m.vault->registry().tombstone(uuid) != nullptr);
        CHECK(rig.m.vault->registry().numbered(7) == nullptr);
        CHECK(rig.ask(legacy::Delete{.instance = 7}) == Status::invalid);
        CHECK(rig.ask(legacy::Close{.instance = 7}) == Status::invalid);
        CHECK(rig.open(7) == Status::success); // another one
        CHECK(rig.numbered(7) != uuid);
    }

    TEST_CASE("what is not done is said by its status; an instance that does not come is stopped") {
        Rig rig;
        CHECK(rig.ask(legacy::Refused{.status = Status::unsupported, .why = "x"}) == Status::unsupported);
        CHECK(rig.ask(legacy::Close{.instance = 3}) == Status::invalid);
        CHECK(rig.ask(legacy::Open{.instance = 3}) == Status::fail); // nobody greets the manager
        CHECK_FALSE(rig.supervisor->in_charge(rig.numbered(3)));
        CHECK(rig.ask(legacy::Open{.start = legacy::Start::resume, .instance = 3}) == Status::restore_failed);
        CHECK(rig.m.loop.logged("does not start"));
        rig.m.disk->plan = {.fail_at = rig.m.disk->operations(), .fail_until = test::never};
        CHECK(rig.ask(legacy::Open{.instance = 4}) == Status::fail);
        rig.m.disk->plan = {};
    }

    TEST_CASE("the privileged socket: whole requests, bad ones, a peer that stops in between") {
        Rig rig;
        UniqueFd listening(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
        sockaddr_un address{};
        address.sun_family = AF_UNIX;
        const std::string path = rig.run.path + "/legacy.sock";
        std::ranges::copy(path, address.sun_path);
        REQUIRE(::bind(listening.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0);
        REQUIRE(::listen(listening.get(), 4) == 0);
        LegacySocket::Parts parts{.executor = rig.m.loop.io.get_executor(),
                                  .service = *rig.toolstack,
                                  .clock = rig.m.loop.clock,
                                  .log = rig.m.loop.log};
        LegacySocket socket(std::move(listening), {.own_uid = ::geteuid()}, std::move(parts));
        auto running = rig.m.loop.start(socket.run());

        /// Sends, and reads as many bytes as there have to be; fewer: the connection has ended.
        const auto exchange = [&](const Bytes& sent, std::size_t expected) {
            UniqueFd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
            REQUIRE(::connect(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0);
            REQUIRE(::write(fd.get(), sent.data(), sent.size()) == static_cast<ssize_t>(sent.size()));
            Bytes got;
            bool ended = false;
            REQUIRE(rig.m.loop.until([&] {
                rig.m.loop.settle();
                if (rig.m.loop.clock.next_due() > rig.m.loop.clock.now()) {
                    rig.m.loop.clock.advance(rig.m.loop.clock.next_due() - rig.m.loop.clock.now());
                }
                std::array<std::byte, 64> part{};
                const ssize_t n = ::read(fd.get(), part.data(), part.size());
                if (n > 0) {
                    got.insert(got.end(), part.begin(), part.begin() + n);
                }
                ended = n == 0;
                return ended || got.size() >= expected;
            }));
            return got;
        };
        Bytes two = legacy::encode(legacy::Close{.instance = 5});
        const Bytes second = legacy::encode(legacy::Delete{.instance = 5});
        two.insert(two.end(), second.begin(), second.end());
        const Bytes invalid = legacy::encode_answer(Status::invalid);
        Bytes twice = invalid;
        twice.insert(twice.end(), invalid.begin(), invalid.end());
        CHECK(exchange(two, twice.size()) == twice);
        Bytes migrate = legacy::encode(legacy::Close{.instance = 5});
        migrate[13] = std::byte{4};
        CHECK(exchange(migrate, 14) == legacy::encode_answer(Status::unsupported));
        migrate[3] = std::byte{9};
        CHECK(exchange(migrate, 14) == legacy::encode_answer(Status::forbidden));
        Bytes huge = legacy::encode(legacy::Close{.instance = 5});
        huge[6] = std::byte{0xFF};
        CHECK(exchange(huge, 1000) == invalid); // and the end: where the next one begins is not known
        CHECK(exchange({std::byte{0}, std::byte{0}}, 1000) == invalid); // the rest does not come in time

        running->cancel();
        rig.m.loop.wait(*running);
        rig.m.loop.run(socket.stop());
    }
}

} // namespace legacy_test
