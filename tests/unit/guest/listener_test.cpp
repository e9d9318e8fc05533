// A place for a socket that another process has, had, or is about to give up.
#include "dead_listener.hpp"
#include "guest/listener.hpp"
#include "manager/links/listener.hpp"

#include <filesystem>

namespace guest_listener_test {

using namespace vtpmd;

namespace {

struct Place {
    Place() {
        std::string name = (std::filesystem::temp_directory_path() / "vtpmd-listener-XXXXXX").string();
        REQUIRE(::mkdtemp(name.data()) != nullptr);
        directory = name;
    }
    Place(const Place&) = delete;
    Place& operator=(const Place&) = delete;
    ~Place() { std::filesystem::remove_all(directory); }
    [[nodiscard]] std::string path() const { return (directory / "sock").string(); }
    std::filesystem::path directory;
};

} // namespace

TEST_SUITE("guest") {
    TEST_CASE("a socket that a killed process still holds is lingering, not busy; then it is free") {
        Place place;
        fakes::DeadListener dead(place.path());
        CHECK(guest::listen_unix(place.path(), "").error().code == Errc::lingering); // a zombie
        CHECK(manager::listen_unix(place.path()).error().code == Errc::lingering);
        dead.reap();
        CHECK(guest::listen_unix(place.path(), "").error().code == Errc::lingering);
        CHECK(manager::listen_unix(place.path()).error().code == Errc::lingering);
        dead.close();
        CHECK(guest::listen_unix(place.path(), ""));
    }
    TEST_CASE("a socket that a process listens on is busy") {
        Place place;
        auto first = guest::listen_unix(place.path(), "");
        REQUIRE(first);
        CHECK(guest::listen_unix(place.path(), "").error().code == Errc::busy);
        CHECK(manager::listen_unix(place.path()).error().code == Errc::busy);
    }
}

} // namespace guest_listener_test
