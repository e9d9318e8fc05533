// Which vTPMs run whenever the manager does.
#include "manager/instances/autostart.hpp"

#include "check.hpp"
#include "loop.hpp"

#include <doctest/doctest.h>
#include <filesystem>
#include <fstream>

namespace manager_autostart_test {

using namespace vtpmd;
using namespace vtpmd::manager;

namespace {

Uuid uuid_of(unsigned n) {
    Uuid u;
    u.bytes[0] = std::byte{0xce};
    u.bytes[15] = static_cast<std::byte>(n);
    return u;
}

struct Rig {
    Rig() {
        std::string name = "/tmp/vtpmd-autostart-XXXXXX";
        REQUIRE(::mkdtemp(name.data()) != nullptr);
        dir = name;
    }
    Rig(const Rig&) = delete;
    Rig& operator=(const Rig&) = delete;
    ~Rig() { std::filesystem::remove_all(dir); }
    fakes::Loop loop;
    std::string dir;
};

} // namespace

TEST_SUITE("manager") {
    TEST_CASE("autostart: what was set is what the next manager finds") {
        Rig rig;
        Autostart wanted(rig.loop.io.get_executor(), rig.dir);
        REQUIRE(wanted.read());
        CHECK(wanted.all().empty());
        REQUIRE(rig.loop.run(wanted.set(uuid_of(1), false))); // as it is already: nothing is made
        CHECK_FALSE(std::filesystem::exists(rig.dir + "/autostart"));
        REQUIRE(rig.loop.run(wanted.set(uuid_of(1), true)));
        REQUIRE(rig.loop.run(wanted.set(uuid_of(2), true)));
        REQUIRE(rig.loop.run(wanted.set(uuid_of(1), true)));
        REQUIRE(rig.loop.run(wanted.set(uuid_of(2), false)));
        CHECK(wanted.has(uuid_of(1)));
        CHECK_FALSE(wanted.has(uuid_of(2)));
        std::ofstream(rig.dir + "/autostart/README") << "no UUID";
        const Autostart next(rig.loop.io.get_executor(), rig.dir);
        CHECK(next.all() == std::unordered_set<Uuid>{uuid_of(1)});
    }
    TEST_CASE("autostart: two changes at once are done one after the other") {
        Rig rig;
        Autostart wanted(rig.loop.io.get_executor(), rig.dir);
        auto on = rig.loop.start(wanted.set(uuid_of(1), true));
        auto off = rig.loop.start(wanted.set(uuid_of(1), false));
        REQUIRE(rig.loop.until([&] { return on->done && off->done; }));
        CHECK_FALSE(wanted.has(uuid_of(1)));
        CHECK(std::filesystem::is_empty(rig.dir + "/autostart"));
    }
    TEST_CASE("autostart: one that cannot be kept is an error, and does not count") {
        Rig rig;
        std::ofstream(rig.dir + "/autostart") << "a file in the folder's place";
        Autostart wanted(rig.loop.io.get_executor(), rig.dir);
        CHECK_FALSE(wanted.read());
        CHECK_FALSE(rig.loop.run(wanted.set(uuid_of(1), true)));
        CHECK_FALSE(wanted.has(uuid_of(1)));
        Autostart nowhere(rig.loop.io.get_executor(), rig.dir + "/nodir");
        CHECK(nowhere.read());
        CHECK(rig.loop.run(nowhere.set(uuid_of(1), true)).error().code == Errc::not_found);
        CHECK_FALSE(nowhere.has(uuid_of(1)));
    }
}

} // namespace manager_autostart_test
