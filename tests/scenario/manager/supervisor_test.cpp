// The supervisor with processes that end as the test says, on a clock that the test moves.
#include "manager/instances/supervisor.hpp"

#include "check.hpp"
#include "fake_spawner.hpp"
#include "loop.hpp"

#include <algorithm>
#include <array>
#include <csignal>
#include <fcntl.h>
#include <sys/socket.h>

namespace manager_supervisor_test {

using namespace vtpmd;
using namespace vtpmd::manager;
using fakes::FakeProcess;
using fakes::FakeSpawner;
using namespace std::chrono_literals;

namespace {

Uuid uuid_of(unsigned n) {
    Uuid u;
    u.bytes[0] = std::byte{0xcc};
    u.bytes[15] = static_cast<std::byte>(n);
    return u;
}

struct Rig {
    explicit Rig(SpawnOptions o = {})
        : spawner(loop.io.get_executor())
        , supervisor(
              std::move(o), "/run/m.sock",
              {.executor = loop.io.get_executor(),
               .spawner = spawner,
               .clock = loop.clock,
               .log = loop.log,
               .serve_link = [this](UniqueFd fd, const Uuid& u, pid_t) { links.emplace_back(u, std::move(fd)); }}) {}
    ~Rig() { loop.run(supervisor.stop(20s)); }
    void pass(Clock::duration d) {
        loop.clock.advance(d);
        loop.settle();
    }
    void hold(unsigned n) { spawner.in_use.insert(fmt::format("/var/lib/vtpmd/{}.img", uuid_of(n))); }
    /// Any process that lives.
    static ProcessHandle somebody() { return open_process(::getpid()); }
    FakeProcess& last() { return *spawner.processes.back(); }
    std::size_t started() const { return spawner.processes.size(); }

    fakes::Loop loop;
    FakeSpawner spawner;
    std::vector<std::pair<Uuid, UniqueFd>> links;
    Supervisor supervisor;
};

} // namespace

TEST_SUITE("manager supervisor") {
    TEST_CASE("whom to keep: named ones, else those with an image") {
        Rig rig;
        Registry registry;
        REQUIRE(registry.apply(GroupRecord{.id = 0}));
        for (unsigned i = 1; i <= 3; ++i) {
            REQUIRE(registry.apply(VtpmRecord{.uuid = uuid_of(i)}));
        }
        CHECK(rig.supervisor.choose(registry).empty());
        rig.spawner.images.insert(fmt::format("/var/lib/vtpmd/{}.img", uuid_of(2)));
        CHECK(rig.supervisor.choose(registry) == std::vector<Uuid>{uuid_of(2)});
        Rig named({.enabled = true, .only = {uuid_of(3)}});
        CHECK(named.supervisor.choose(registry) == std::vector<Uuid>{uuid_of(3)});
    }
    TEST_CASE("a child gets its UUID, a connected socket, and the way back") {
        Rig rig({.enabled = true, .state_dir = "/s", .run_dir = "/r", .extra_arguments = {"--log-level=debug"}});
        rig.supervisor.keep(uuid_of(1));
        rig.loop.settle();
        REQUIRE(rig.started() == 1);
        const std::string u = to_string(uuid_of(1));
        CHECK(rig.last().arguments ==
              std::vector<std::string>{"--mode=instance", "--uuid=" + u, "--manager=fd:3,unix:/run/m.sock",
                                       "--state=/s/" + u + ".img", "--guest=socket:unix:/r/" + u + ".sock",
                                       "--log-level=debug"});
        REQUIRE(rig.links.size() == 1);
        CHECK(rig.links[0].first == uuid_of(1));
        char byte = 'x';
        CHECK(::send(rig.last().inherited.get(), &byte, 1, 0) == 1);
        CHECK(::recv(rig.links[0].second.get(), &byte, 1, 0) == 1);
    }
    TEST_CASE("one that fails is started again, slower each time; one that served is at the beginning") {
        Rig rig;
        rig.supervisor.keep(uuid_of(1));
        rig.loop.settle();
        for (auto wait : {1s, 2s, 4s, 8s, 16s, 32s, 60s, 60s}) {
            std::size_t before = rig.started();
            rig.last().end({.code = EX_TEMPFAIL});
            rig.loop.settle();
            rig.pass(wait - 1ms);
            CHECK(rig.started() == before);
            rig.pass(1ms);
            CHECK(rig.started() == before + 1);
        }
        rig.pass(100s);
        rig.last().end({.code = 0, .signal = SIGSEGV});
        rig.loop.settle();
        std::size_t before = rig.started();
        rig.pass(1s);
        CHECK(rig.started() == before + 1);
    }
    TEST_CASE("good order: started for the next guest; unreadable state: left alone, with a message") {
        Rig rig;
        rig.supervisor.keep(uuid_of(1));
        rig.loop.settle();
        rig.last().end({});
        rig.loop.settle();
        CHECK(rig.started() == 2);
        rig.last().end({.code = EX_DATAERR});
        rig.pass(1h);
        CHECK(rig.started() == 2);
        CHECK(rig.supervisor.counters().given_up == 1);
        CHECK(rig.loop.logged("trying again would not help"));
    }
    TEST_CASE("an instance that outlived the last manager is left alone until it is known, or lets go of the image") {
        Rig rig;
        rig.hold(1);
        rig.supervisor.keep(uuid_of(1));
        rig.pass(1h);
        CHECK(rig.started() == 0);
        CHECK(rig.supervisor.is_unknown(uuid_of(1)));
        CHECK(rig.supervisor.pid_of(uuid_of(1)) == 0);
        rig.spawner.in_use.clear();
        rig.pass(2s);
        CHECK(rig.started() == 1);
    }
    TEST_CASE("one that comes by its link is taken up: watched, and replaced by a child once it has ended") {
        Rig rig;
        rig.hold(1);
        rig.supervisor.keep(uuid_of(1));
        rig.pass(10s);
        rig.supervisor.met(uuid_of(2), rig.somebody()); // not in charge
        rig.supervisor.met(uuid_of(1), {});             // of another PID namespace
        CHECK(rig.supervisor.is_unknown(uuid_of(1)));
        rig.supervisor.met(uuid_of(1), rig.somebody());
        rig.loop.settle();
        CHECK(rig.supervisor.pid_of(uuid_of(1)) == ::getpid());
        CHECK(rig.supervisor.counters().adopted == 1);
        CHECK(rig.supervisor.running() == 1);
        rig.pass(1h);
        CHECK(rig.started() == 0);
        rig.spawner.in_use.clear();
        rig.spawner.adopted.back()->end({.unknown = true});
        rig.loop.settle();
        CHECK(rig.supervisor.pid_of(uuid_of(1)) == 0);
        REQUIRE(rig.supervisor.last_failure(uuid_of(1)) != nullptr);
        rig.pass(1s);
        CHECK(rig.started() == 1);
        rig.supervisor.met(uuid_of(1), rig.somebody()); // its own child's link
        CHECK(rig.supervisor.pid_of(uuid_of(1)) == rig.last().pid);
    }
    TEST_CASE("one that was taken up is stopped by a signal; one that is not known yet, once it is") {
        Rig rig;
        for (const bool known : {true, false}) {
            rig.hold(1);
            rig.supervisor.keep(uuid_of(1));
            rig.loop.settle();
            auto charge = rig.supervisor.kept(uuid_of(1));
            if (known) {
                rig.supervisor.met(uuid_of(1), rig.somebody());
                rig.loop.settle();
            }
            rig.supervisor.release(*charge);
            rig.loop.settle();
            CHECK(charge->ended.requested() == known);
            if (!known) {
                auto stopping = rig.loop.start(rig.supervisor.wait_ended(charge, 5s));
                rig.loop.settle();
                rig.pass(5s);
                REQUIRE(stopping->done);
                CHECK(stopping->value->error().message.find("fuser") != std::string::npos);
                rig.supervisor.met(uuid_of(1), rig.somebody());
                rig.loop.settle();
            }
            CHECK(rig.spawner.adopted.back()->signals == std::vector<int>{SIGTERM});
            CHECK(charge->ended.requested());
            CHECK(rig.supervisor.kept(uuid_of(1)) == nullptr);
        }
        CHECK(rig.started() == 0);
    }
    TEST_CASE("one that is wanted no more and is not known lets go of the image") {
        Rig rig;
        rig.hold(1);
        rig.supervisor.keep(uuid_of(1));
        rig.loop.settle();
        auto charge = rig.supervisor.kept(uuid_of(1));
        rig.supervisor.release(*charge);
        rig.pass(1h);
        CHECK_FALSE(charge->ended.requested());
        rig.spawner.in_use.clear();
        rig.pass(1s);
        CHECK(charge->ended.requested());
        CHECK(rig.started() == 0);
    }
    TEST_CASE("leave: every process goes on, and nothing is signalled") {
        Rig rig;
        rig.supervisor.keep(uuid_of(1));
        rig.hold(2);
        rig.supervisor.keep(uuid_of(2));
        rig.loop.settle();
        rig.supervisor.met(uuid_of(2), rig.somebody());
        rig.hold(3);
        rig.supervisor.keep(uuid_of(3));
        rig.loop.settle();
        rig.supervisor.keep(uuid_of(4));
        rig.loop.settle();
        rig.last().end({.code = EX_TEMPFAIL}); // and one that waits to be started again
        rig.loop.settle();
        rig.loop.run(rig.supervisor.leave());
        CHECK(rig.loop.logged("2 instances go on without the manager"));
        CHECK(rig.spawner.processes.front()->signals.empty());
        CHECK(rig.spawner.adopted.back()->signals.empty());
        CHECK(rig.supervisor.running() == 0);
        rig.pass(1h);
        CHECK(rig.started() == 2);
    }
    TEST_CASE("what an instance says when it ends is known") {
        Rig rig;
        rig.supervisor.keep(uuid_of(1));
        rig.loop.settle();
        CHECK(rig.supervisor.last_failure(uuid_of(1)) == nullptr);
        rig.last().last_words = "there is no image";
        rig.last().end({.code = EX_NOINPUT});
        rig.loop.settle();
        const LastFailure* failure = rig.supervisor.last_failure(uuid_of(1));
        REQUIRE(failure != nullptr);
        CHECK(failure->why == "exit code 66: there is no image");
        CHECK(failure->final);
        CHECK_FALSE(rig.supervisor.in_charge(uuid_of(1)));
        rig.supervisor.keep(uuid_of(1));
        CHECK(rig.supervisor.last_failure(uuid_of(1)) == nullptr);
        rig.loop.settle();
    }
    TEST_CASE("one that cannot be started is tried again") {
        Rig rig;
        rig.spawner.refuse = true;
        rig.supervisor.keep(uuid_of(1));
        rig.pass(10s);
        CHECK(rig.started() == 0);
        rig.spawner.refuse = false;
        rig.pass(60s);
        CHECK(rig.started() == 1);
    }
    TEST_CASE("stop: SIGTERM to all, SIGKILL to who does not go, no restart") {
        Rig rig;
        rig.supervisor.keep(uuid_of(1));
        rig.loop.settle();
        rig.spawner.obedient = false;
        rig.supervisor.keep(uuid_of(2));
        rig.loop.settle();
        REQUIRE(rig.started() == 2);
        auto stopping = rig.loop.start(rig.supervisor.stop(20s));
        rig.loop.settle();
        CHECK(rig.spawner.processes[0]->signals == std::vector<int>{SIGTERM});
        CHECK_FALSE(stopping->done);
        rig.pass(20s);
        CHECK(stopping->done);
        CHECK(rig.spawner.processes[1]->signals == std::vector<int>{SIGTERM, SIGKILL});
        CHECK(rig.started() == 2);
        CHECK(rig.supervisor.running() == 0);
    }
    TEST_CASE("stop while one waits to be started again, and while one is left alone") {
        Rig rig;
        rig.supervisor.keep(uuid_of(1));
        rig.loop.settle();
        rig.last().end({.code = EX_TEMPFAIL});
        rig.spawner.in_use.insert(fmt::format("/var/lib/vtpmd/{}.img", uuid_of(2)));
        rig.supervisor.keep(uuid_of(2));
        rig.loop.settle();
        auto stopping = rig.loop.start(rig.supervisor.stop(20s));
        rig.loop.settle();
        CHECK_FALSE(stopping->done); // it may become known yet
        rig.pass(20s);
        rig.pass(1s);
        CHECK(stopping->done);
        CHECK(rig.started() == 1);
    }
    TEST_CASE("real processes: started with descriptor 3, waited for, signalled") {
        fakes::Loop loop;
        auto spawner = make_spawner(loop.io.get_executor());
        int ends[2] = {-1, -1};
        REQUIRE(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) == 0);
        UniqueFd mine(ends[0]);
        auto child =
            spawner->spawn("/bin/sh", {"-c", "read line <&3; echo \"got $line\" >&3; exit 42"}, UniqueFd(ends[1]));
        REQUIRE(child);
        REQUIRE(::send(mine.get(), "word\n", 5, 0) == 5);
        auto status = loop.run((*child)->wait());
        REQUIRE(status);
        CHECK(*status == ExitStatus{.code = 42});
        char text[32] = {};
        CHECK(::recv(mine.get(), text, sizeof text - 1, 0) == 9);
        CHECK(std::string(text) == "got word\n");

        REQUIRE(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) == 0);
        UniqueFd other(ends[0]);
        child = spawner->spawn("/bin/sh", {"-c", "read line <&3"}, UniqueFd(ends[1]));
        REQUIRE(child);
        (*child)->signal(SIGKILL);
        status = loop.run((*child)->wait());
        REQUIRE(status);
        CHECK(*status == ExitStatus{.code = 0, .signal = SIGKILL});
        REQUIRE(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) == 0);
        UniqueFd third(ends[0]);
        CHECK(spawner->spawn("/nowhere/vtpmd", {}, UniqueFd(ends[1])).error().code == Errc::not_found);
    }
    TEST_CASE("a child has its link, its last words and nothing else, whatever this process has open") {
        fakes::Loop loop;
        auto spawner = make_spawner(loop.io.get_executor());
        // As a library leaves it: not close-on-exec.
        const UniqueFd leaky(::open("/dev/null", O_RDONLY)); // NOLINT(android-cloexec-open)
        REQUIRE(leaky);
        std::vector<UniqueFd> many;
        for (int i = 0; i < 40; ++i) {
            many.emplace_back(::dup(leaky.get())); // NOLINT(android-cloexec-dup)
        }
        int ends[2] = {-1, -1};
        REQUIRE(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) == 0);
        UniqueFd mine(ends[0]);
        // The shell's `echo` makes no descriptor of its own; the glob has one while it reads the folder.
        auto child = spawner->spawn("/bin/sh", {"-c", "echo /proc/$$/fd/* >&3"}, UniqueFd(ends[1]));
        REQUIRE(child);
        REQUIRE(loop.run((*child)->wait()));
        std::array<char, 4096> text{};
        const ssize_t got = ::recv(mine.get(), text.data(), text.size(), 0);
        REQUIRE(got > 0);
        const std::string listed(text.data(), static_cast<std::size_t>(got));
        for (const int fd : {0, 1, 2, 3, 4}) {
            CHECK(listed.find(fmt::format("/fd/{}", fd)) != std::string::npos);
        }
        CHECK_MESSAGE(std::ranges::count(listed, ' ') <= 5, listed); // one more: the glob's
        CHECK((*child)->last_words().empty());
    }
    TEST_CASE("last words: bounded, printable, and read when the child has ended") {
        fakes::Loop loop;
        auto spawner = make_spawner(loop.io.get_executor());
        int ends[2] = {-1, -1};
        REQUIRE(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) == 0);
        UniqueFd mine(ends[0]);
        auto child = spawner->spawn(
            "/bin/sh", {"-c", "printf 'no\\033[2J image' >&$VTPMD_LAST_WORDS; head -c 4096 /dev/zero >&4; exit 66"},
            UniqueFd(ends[1]));
        REQUIRE(child);
        REQUIRE(loop.run((*child)->wait()));
        CHECK((*child)->last_words() == "no [2J image");
    }
}

} // namespace manager_supervisor_test
