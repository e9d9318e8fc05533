// Which process has which vTPM, and what the next manager is left to know: with real processes and a clock that the test moves.
#include "manager/instances/processes.hpp"

#include "check.hpp"
#include "loop.hpp"

#include <csignal>
#include <doctest/doctest.h>
#include <filesystem>
#include <fstream>
#include <set>
#include <spawn.h>
#include <sys/socket.h>
#include <sys/wait.h>

extern char** environ;

namespace manager_processes_test {

using namespace vtpmd;
using namespace vtpmd::manager;
using namespace std::chrono_literals;

namespace {

Uuid uuid_of(unsigned n) {
    Uuid u;
    u.bytes[0] = std::byte{0xcd};
    u.bytes[15] = static_cast<std::byte>(n);
    return u;
}

/// One that does nothing until it is ended.
class Sleeper {
  public:
    Sleeper() {
        std::string name = "sleep";
        std::string time = "1000";
        char* argv[] = {name.data(), time.data(), nullptr};
        REQUIRE(::posix_spawnp(&pid_, "sleep", nullptr, nullptr, static_cast<char**>(argv), environ) == 0);
    }
    Sleeper(const Sleeper&) = delete;
    Sleeper& operator=(const Sleeper&) = delete;
    ~Sleeper() { end(); }
    void end() {
        if (pid_ != 0) {
            (void)::kill(pid_, SIGKILL);
            (void)::waitpid(pid_, nullptr, 0);
            pid_ = 0;
        }
    }
    [[nodiscard]] pid_t pid() const { return pid_; }

  private:
    pid_t pid_ = 0;
};

struct Rig {
    Rig() {
        std::string name = "/tmp/vtpmd-processes-XXXXXX";
        REQUIRE(::mkdtemp(name.data()) != nullptr);
        dir = name;
        manager();
    }
    Rig(const Rig&) = delete;
    Rig& operator=(const Rig&) = delete;
    ~Rig() { std::filesystem::remove_all(dir); }
    /// The next one.
    void manager() {
        processes.emplace(
            dir, [this](const Uuid& u) { return held.contains(u); }, loop.clock, loop.log);
    }
    [[nodiscard]] std::string note(const Uuid& u) const { return fmt::format("{}/instances/{}", dir, u); }
    void write_note(const Uuid& u, const std::string& text) const {
        std::filesystem::create_directories(dir + "/instances");
        std::ofstream(note(u)) << text;
    }

    fakes::Loop loop;
    std::string dir;
    std::set<Uuid> held;
    std::optional<Processes> processes;
};

} // namespace

TEST_SUITE("manager") {
    TEST_CASE("processes: one that came by its link has its vTPM until it has ended, whatever becomes of the link") {
        Rig rig;
        Sleeper s;
        CHECK_FALSE(rig.processes->in_use(uuid_of(1)));
        rig.processes->opened(uuid_of(1), open_process(s.pid()));
        REQUIRE(rig.processes->in_use(uuid_of(1)));
        CHECK(rig.processes->in_use(uuid_of(1))->pid == s.pid());
        CHECK(rig.processes->find(uuid_of(1)).pid == s.pid());
        s.end();
        CHECK_FALSE(rig.processes->in_use(uuid_of(1)));
        CHECK_FALSE(rig.processes->find(uuid_of(1)).known());
    }
    TEST_CASE("processes: the next manager knows them at once, and how they were started") {
        Rig rig;
        Sleeper spawned;
        Sleeper by_hand;
        rig.processes->started(uuid_of(1), open_process(spawned.pid()),
                               {.guest = "socket:unix:/r/a.sock", .startup = "save"});
        rig.processes->opened(uuid_of(1), open_process(spawned.pid())); // its link: nothing new
        rig.processes->opened(uuid_of(2), open_process(by_hand.pid()));
        rig.manager();
        CHECK_FALSE(rig.processes->in_use(uuid_of(1)));
        auto found = rig.processes->take_up();
        REQUIRE(found.size() == 2);
        for (const auto& f : found) {
            CHECK(f.spawned.has_value() == (f.uuid == uuid_of(1)));
            if (f.spawned) {
                CHECK(f.spawned->guest == "socket:unix:/r/a.sock");
                CHECK(f.spawned->startup == "save");
            }
        }
        CHECK(rig.processes->find(uuid_of(1)).pid == spawned.pid());
        CHECK(rig.processes->find(uuid_of(2)).pid == by_hand.pid());
        rig.loop.clock.advance(1h); // it is the very same: no time makes it another
        CHECK(rig.processes->in_use(uuid_of(1)));
    }
    TEST_CASE(
        "processes: a note of one that has ended, of another boot or of a number that is another's now says nothing") {
        Rig rig;
        Sleeper s;
        rig.processes->opened(uuid_of(1), open_process(s.pid()));
        const pid_t pid = s.pid();
        s.end();
        rig.write_note(uuid_of(2), fmt::format("pid={}\nprocess=another boot inode 1\n", ::getpid()));
        rig.write_note(uuid_of(3), "");
        rig.write_note(uuid_of(4), "pid=\nguest");
        rig.write_note(uuid_of(5), fmt::format("pid={}\n", -pid));
        rig.manager();
        CHECK(rig.processes->take_up().empty());
        for (unsigned i = 1; i <= 5; ++i) {
            CHECK_FALSE(rig.processes->in_use(uuid_of(i)));
            CHECK_FALSE(std::filesystem::exists(rig.note(uuid_of(i))));
        }
    }
    TEST_CASE("processes: where the kernel does not tell, one may come back for a while; then its image's lock tells") {
        Rig rig;
        Sleeper s;
        rig.write_note(uuid_of(1), fmt::format("pid={}\nprocess=\n", s.pid()));
        rig.write_note(uuid_of(2), fmt::format("pid={}\nprocess=\n", s.pid()));
        CHECK(rig.processes->take_up().size() == 2);
        rig.held.insert(uuid_of(2));
        CHECK(rig.processes->in_use(uuid_of(1)));
        CHECK(rig.processes->in_use(uuid_of(1))->pid == 0);
        CHECK_FALSE(rig.processes->find(uuid_of(1)).known()); // nothing to be signalled
        rig.loop.clock.advance(Processes::settle_time);
        CHECK_FALSE(rig.processes->in_use(uuid_of(1)));
        CHECK(rig.processes->in_use(uuid_of(2)));
        rig.held.clear();
        CHECK_FALSE(rig.processes->in_use(uuid_of(2)));
    }
    TEST_CASE("processes: an image that is held counts, for lists once it was looked at") {
        Rig rig;
        rig.held.insert(uuid_of(1));
        CHECK_FALSE(rig.processes->in_use(uuid_of(1)));
        CHECK(rig.processes->in_use_now(uuid_of(1)));
        rig.processes->look(uuid_of(1));
        CHECK(rig.processes->in_use(uuid_of(1)));
        rig.held.clear();
        CHECK_FALSE(rig.processes->in_use(uuid_of(1)));
        CHECK_FALSE(rig.processes->in_use_now(uuid_of(1)));
    }
    TEST_CASE("processes: what ended leaves no note; a folder that cannot be written is told of once") {
        Rig rig;
        Sleeper s;
        rig.processes->opened(uuid_of(1), open_process(s.pid()));
        CHECK(std::filesystem::exists(rig.note(uuid_of(1))));
        rig.processes->ended(uuid_of(1));
        CHECK_FALSE(std::filesystem::exists(rig.note(uuid_of(1))));
        std::filesystem::remove_all(rig.dir);
        std::ofstream(rig.dir) << "a file";
        rig.processes->opened(uuid_of(1), open_process(s.pid()));
        rig.processes->opened(uuid_of(2), open_process(s.pid()));
        CHECK(std::ranges::count_if(rig.loop.lines, [](const std::string& l) {
                  return l.find("cannot be written") != std::string::npos;
              }) == 1);
        CHECK(rig.processes->in_use(uuid_of(1)));
    }
    TEST_CASE("processes: who is at the other end of a socket") {
        int ends[2] = {-1, -1};
        REQUIRE(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) == 0);
        UniqueFd a(ends[0]);
        UniqueFd b(ends[1]);
        const ProcessHandle me = peer_process(a.get());
        CHECK(me.pid == ::getpid());
        CHECK(me.alive());
        CHECK(identity_of(me) == identity_of(open_process(::getpid())));
        Sleeper s;
        CHECK(identity_of(me) != identity_of(open_process(s.pid())));
        CHECK_FALSE(peer_process(-1).known());
        CHECK_FALSE(open_process(0).known());
        CHECK(identity_of({}).empty());
    }
}

} // namespace manager_processes_test
