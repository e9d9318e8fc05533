// The listener on real Unix sockets in this process, with the real vault behind it.
#include "manager/links/listener.hpp"

#include "manager_machine.hpp"
#include "no_descriptors.hpp"
#include "util/unix_socket.hpp"

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <optional>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

namespace manager_listener_test {

using namespace vtpmd;
using namespace vtpmd::manager;

namespace {

struct Directory {
    Directory() {
        std::string pattern = std::filesystem::temp_directory_path() / "vtpmd-test-XXXXXX";
        REQUIRE(::mkdtemp(pattern.data()) != nullptr);
        path = pattern;
    }
    ~Directory() { std::filesystem::remove_all(path); }
    std::string path;
};

/// Connects without waiting; -1 if the queue is full or nobody listens.
UniqueFd connect_to(const std::string& path) {
    UniqueFd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
    sockaddr_un a{};
    a.sun_family = AF_UNIX;
    std::copy(path.begin(), path.end(), a.sun_path);
    if (::connect(fd.get(), reinterpret_cast<const sockaddr*>(&a), sizeof a) != 0) {
        fd.reset();
    }
    return fd;
}

struct Rig {
    explicit Rig(Listener::Options o = {.allowed = allowed_peers()})
        : path(dir.path + "/m.sock")
        , links(m.loop.io.get_executor(), m.loop.log)
        , tasks(m.loop.io.get_executor(), m.loop.log) {
        REQUIRE(m.create());
        service =
            std::make_unique<KeyService>(KeyService::Options{}, KeyService::Parts{.executor = m.loop.io.get_executor(),
                                                                                  .vault = *m.vault,
                                                                                  .root = *m.root,
                                                                                  .clock = m.loop.clock,
                                                                                  .log = m.loop.log});
        auto fd = listen_unix(path);
        REQUIRE(fd);
        auto made = Listener::make(std::move(*fd), o, parts());
        REQUIRE(made);
        listener = std::move(*made);
        tasks.spawn("listener", listener->run());
        m.loop.settle();
    }
    ~Rig() {
        tasks.cancel();
        m.loop.run(tasks.join());
        service->stop();
        m.loop.run(links.join());
    }
    Listener::Parts parts() {
        return {.executor = m.loop.io.get_executor(),
                .service = *service,
                .links = links,
                .clock = m.loop.clock,
                .log = m.loop.log};
    }
    bool until(const std::function<bool()>& done) { return m.loop.until(done); }
    /// A whole exchange on a connected socket.
    Bytes ask(const UniqueFd& fd, const Bytes& frame) {
        REQUIRE(::send(fd.get(), frame.data(), frame.size(), MSG_NOSIGNAL) == static_cast<ssize_t>(frame.size()));
        Bytes answer(proto::frame_limit);
        ssize_t n = -1;
        REQUIRE(until([&] { return (n = ::recv(fd.get(), answer.data(), answer.size(), 0)) >= 0; }));
        answer.resize(static_cast<std::size_t>(n));
        return answer;
    }
    Result<proto::HelloReply> hello(const UniqueFd& fd, const Uuid& uuid) {
        Bytes a = ask(fd, proto::encode_hello({.uuid = uuid, .create = true}));
        return proto::parse_hello_reply(a);
    }

    Directory dir;
    std::string path;
    fakes::Machine m;
    TaskGroup links, tasks;
    std::unique_ptr<KeyService> service;
    std::unique_ptr<Listener> listener;
};

} // namespace

TEST_SUITE("manager listener") {
    TEST_CASE("served, and the same instance again after its link broke") {
        Rig rig;
        Uuid uuid = random_uuid();
        auto first = connect_to(rig.path);
        REQUIRE(first);
        REQUIRE(rig.hello(first, uuid));
        auto second = connect_to(rig.path);
        REQUIRE(second);
        auto refused = rig.hello(second, uuid);
        REQUIRE(refused.has_error());
        CHECK(refused.error().code == Errc::busy);
        first.reset(); // broken: the end of it has not been read when the next hello comes
        auto third = connect_to(rig.path);
        REQUIRE(third);
        CHECK(rig.hello(third, uuid));
        CHECK((std::filesystem::status(rig.path).permissions() & std::filesystem::perms::others_all) ==
              std::filesystem::perms::none);
    }
    TEST_CASE("1,000 connections: half of them silent, the rest served; all of them gone, nothing left") {
        Rig rig;
        std::vector<UniqueFd> peers;
        while (peers.size() < 1000) {
            auto fd = connect_to(rig.path);
            if (fd) {
                peers.push_back(std::move(fd));
            }
            (void)rig.m.loop.io.poll();
            rig.m.loop.io.restart();
        }
        REQUIRE(rig.until([&] { return rig.service->link_count() == 1000; }));
        for (std::size_t i = 0; i < peers.size(); i += 10) {
            CHECK(rig.hello(peers[i], random_uuid()));
        }
        CHECK(rig.service->open_count() == 100);
        rig.m.loop.clock.advance(std::chrono::seconds(11)); // the silent ones have had their time
        CHECK(rig.until([&] { return rig.service->link_count() == 100; }));
        peers.clear();
        CHECK(rig.until([&] { return rig.service->link_count() == 0 && rig.links.empty(); }));
    }
    TEST_CASE("no descriptors left: one line, and who came is admitted when there are some again") {
        const Directory dir;
        const std::string path = dir.path + "/s";
        fakes::Loop loop;
        TaskGroup tasks(loop.io.get_executor(), loop.log);
        asio::local::stream_protocol::acceptor acceptor(loop.io, asio::local::stream_protocol(),
                                                        listen_unix(path).value().release());
        const UniqueFd peer = connect_to(path);
        int admitted = 0;
        std::optional<fakes::NoDescriptors> none(peer.get());
        tasks.spawn("accepting", accept_each(acceptor, loop.clock, loop.log, "a peer",
                                             [&admitted](asio::local::stream_protocol::socket) { ++admitted; }));
        CHECK(loop.until([&] { return loop.logged("accepting a peer: "); }));
        none.reset();
        loop.settle();
        CHECK(admitted == 0); // it waits
        loop.clock.advance(std::chrono::seconds(1));
        CHECK(loop.until([&] { return admitted == 1; }));
        CHECK(loop.lines.size() == 1);
        tasks.cancel();
        loop.run(tasks.join());
    }
    TEST_CASE("over the limit, or not allowed: closed at once, and the others go on") {
        Rig rig({.connection_limit = 2, .allowed = allowed_peers()});
        auto a = connect_to(rig.path);
        auto b = connect_to(rig.path);
        REQUIRE(rig.until([&] { return rig.service->link_count() == 2; }));
        auto c = connect_to(rig.path);
        char byte = 0;
        CHECK(rig.until([&] { return ::recv(c.get(), &byte, 1, 0) == 0; }));
        CHECK(rig.service->counters().connections_refused == 1);
        CHECK(rig.hello(a, random_uuid()));
        a.reset();
        REQUIRE(rig.until([&] { return rig.service->link_count() == 1; }));
        auto d = connect_to(rig.path);
        CHECK(rig.hello(d, random_uuid()));
    }
    TEST_CASE("a client that sends half a frame, or garbage, or never reads, is let go") {
        Rig rig;
        auto half = connect_to(rig.path);
        Bytes hello = proto::encode_hello({.uuid = random_uuid(), .create = true});
        REQUIRE(::send(half.get(), hello.data(), 7, 0) == 7);
        auto garbage = connect_to(rig.path);
        Bytes junk(5000, std::byte{0xff});
        REQUIRE(::send(garbage.get(), junk.data(), junk.size(), 0) > 0);
        char byte = 0;
        CHECK(rig.until([&] { return ::recv(garbage.get(), &byte, 1, 0) <= 0 && errno != EAGAIN; }));
        REQUIRE(rig.until([&] { return rig.service->link_count() == 1; }));
        auto good = connect_to(rig.path);
        CHECK(rig.hello(good, random_uuid()));
        rig.m.loop.clock.advance(std::chrono::seconds(11));
        CHECK(rig.until([&] { return rig.service->link_count() == 1; }));
    }
    TEST_CASE("a socket left behind is replaced; one in use, or a file, is not") {
        Directory dir;
        std::string path = dir.path + "/s";
        {
            auto left = listen_unix(path);
            REQUIRE(left);
            CHECK(listen_unix(path).error().code == Errc::busy);
        }
        CHECK(listen_unix(path));
        std::string file = dir.path + "/f";
        std::ofstream(file) << "mine";
        CHECK(listen_unix(file).error().code == Errc::exists);
        CHECK(std::filesystem::file_size(file) == 4);
        CHECK(listen_unix(dir.path + "/nowhere/s").error().code == Errc::not_found);
        CHECK(listen_unix(std::string(200, 'x')).error().code == Errc::usage);
    }
    TEST_CASE(
        "a socket's mode is there from the first moment, and its group is never given to what was put in its place") {
        Directory dir;
        const SocketFile file{.path = dir.path + "/s", .mode = 0660, .group = ::getegid()};
        const UniqueFd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
        REQUIRE(bind_socket(fd.get(), file) == 0);
        using std::filesystem::perms;
        CHECK(std::filesystem::status(file.path).permissions() ==
              (perms::owner_read | perms::owner_write | perms::group_read | perms::group_write));
        CHECK(give_socket(file) == 0);
        // Whoever owns the folder exchanges it: for a link to another socket of ours, for a file.
        std::filesystem::rename(file.path, dir.path + "/kept");
        std::filesystem::create_symlink(dir.path + "/kept", file.path);
        CHECK(give_socket(file) == EPERM);
        std::filesystem::remove(file.path);
        std::ofstream(file.path) << "theirs";
        CHECK(give_socket(file) == EPERM);
        std::filesystem::remove(file.path);
        CHECK(give_socket(file) == ENOENT);
    }
    TEST_CASE("a passed descriptor must be a listening Unix socket") {
        Rig rig;
        UniqueFd tcp(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
        CHECK(Listener::make(std::move(tcp), {}, rig.parts()).error().code == Errc::usage);
        UniqueFd deaf(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
        CHECK(Listener::make(std::move(deaf), {}, rig.parts()).error().code == Errc::usage);
    }
    TEST_CASE("a spawned instance's link is for its vTPM only") {
        Rig rig;
        int ends[2] = {-1, -1};
        REQUIRE(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, ends) == 0);
        UniqueFd mine(ends[0]);
        Uuid uuid = random_uuid();
        serve_spawned_link(rig.parts(), UniqueFd(ends[1]), uuid, 1234);
        auto refused = rig.hello(mine, random_uuid());
        REQUIRE(refused.has_error());
        CHECK(refused.error().code == Errc::permission);
    }
}

} // namespace manager_listener_test
