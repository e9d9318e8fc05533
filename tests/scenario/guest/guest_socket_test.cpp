// The guests' sockets, with clients that behave and clients that do not. Real sockets, a fake TPM, a fake clock.
#include "check.hpp"
#include "fake_service.hpp"
#include "guest/socket_server.hpp"
#include "loop.hpp"
#include "no_descriptors.hpp"
#include "util/text.hpp"

#include <cstdlib>
#include <fcntl.h>
#include <optional>
#include <random>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

namespace guest_socket_test {

using namespace vtpmd;
using namespace vtpmd::guest;
using namespace vtpmd::fakes;

namespace {

struct Dir {
    Dir() {
        std::string t = "/tmp/vtpmd-test-XXXXXX";
        path = ::mkdtemp(t.data());
    }
    ~Dir() { (void)!::rmdir(path.c_str()); }
    std::string path;
};

UniqueFd dial(const std::string& path) {
    UniqueFd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
    sockaddr_un a{};
    a.sun_family = AF_UNIX;
    path.copy(a.sun_path, sizeof a.sun_path - 1);
    if (::connect(fd.get(), reinterpret_cast<const sockaddr*>(&a), sizeof a) != 0) {
        return UniqueFd();
    }
    return fd;
}

struct Server {
    explicit Server(std::size_t limit = 1024) {
        SocketServerOptions options;
        options.name = "test";
        options.connection_limit = limit;
        server = std::make_unique<SocketServer>(
            loop.io.get_executor(), options, *open_listeners(UnixEndpoint{path()}, ""), service, loop.clock, loop.log);
        server->start();
    }
    ~Server() {
        if (server) {
            loop.run(server->stop(std::chrono::seconds(1)));
        }
    }
    [[nodiscard]] std::string path() const { return dir.path + "/t.sock"; }

    static void put(const UniqueFd& fd, std::string_view hex) {
        const Bytes b = from_hex(hex).value();
        (void)!::send(fd.get(), b.data(), b.size(), MSG_NOSIGNAL);
    }
    /// What comes within the loop's patience: n bytes, or "" with `closed` set at the end of the stream.
    std::string get(const UniqueFd& fd, std::size_t n) {
        Bytes in(n);
        std::size_t have = 0;
        closed = false;
        REQUIRE(loop.until([&] {
            const ssize_t k = ::recv(fd.get(), in.data() + have, n - have, MSG_DONTWAIT);
            if (k > 0) {
                have += static_cast<std::size_t>(k);
            }
            closed = k == 0 || (k < 0 && errno != EAGAIN);
            return have == n || closed;
        }));
        in.resize(have);
        return to_hex(in);
    }

    Dir dir;
    Loop loop;
    FakeService service;
    std::unique_ptr<SocketServer> server;
    bool closed = false;
};

struct DeviceModelServer : Server {
    DeviceModelServer() {
        loop.run(server->stop(std::chrono::seconds(1)));
        server.reset();
        SocketServerOptions options;
        options.name = "qemu";
        server = std::make_unique<SocketServer>(
            loop.io.get_executor(), options, *open_listeners(QemuEndpoint{path()}, ""), service, loop.clock, loop.log);
        server->start();
    }
};

constexpr const char* command = "80010000000c000001440007";
constexpr const char* answer = "80010000000b0000000007";

} // namespace

TEST_SUITE("guest") {
    TEST_CASE("commands: whole, byte by byte, two at once") {
        Server s;
        const UniqueFd c = dial(s.path());
        s.put(c, command);
        CHECK(s.get(c, 11) == answer);
        for (std::size_t i = 0; i < 24; i += 2) {
            s.put(c, std::string_view(command).substr(i, 2));
            s.loop.settle();
        }
        CHECK(s.get(c, 11) == answer);
        s.put(c, std::string(command) + command);
        CHECK(s.get(c, 22) == std::string(answer) + answer);
        CHECK(s.service.commands == 4);
    }

    TEST_CASE("locality set on the control channel is the commands'") {
        Server s;
        const UniqueFd c = dial(s.path());
        const UniqueFd k = dial(s.path() + ".ctrl");
        s.put(c, command);
        CHECK(s.get(c, 11) == answer);
        CHECK(s.service.last_locality == 0);
        s.put(k, "00000005"
                 "02"
                 "000000"); // with the padding of a C union
        CHECK(s.get(k, 4) == "00000000");
        s.put(k, "00000001");
        CHECK(s.get(k, 8) == "0000000000016fff");
        s.put(c, command);
        CHECK(s.get(c, 11) == answer);
        CHECK(s.service.last_locality == 2);
        s.put(k, "00000063");
        CHECK(s.get(k, 4) == "0000000a");
        s.put(k, "00000003");
        CHECK(s.get(k, 4) == "00000000");
        CHECK(s.loop.until([&] { return s.service.called == "shutdown"; }));
    }

    TEST_CASE("a device model hands over the socket of its commands; when it goes the TPM is powered off") {
        DeviceModelServer s;
        auto pass = [](const UniqueFd& over, std::initializer_list<int> fds) {
            const Bytes request = from_hex("00000010").value();
            iovec part{const_cast<std::byte*>(request.data()), request.size()};
            alignas(cmsghdr) char control[CMSG_SPACE(12 * sizeof(int))]{};
            msghdr message{};
            message.msg_iov = &part;
            message.msg_iovlen = 1;
            message.msg_control = control;
            message.msg_controllen = CMSG_SPACE(fds.size() * sizeof(int));
            cmsghdr* c = CMSG_FIRSTHDR(&message);
            c->cmsg_level = SOL_SOCKET;
            c->cmsg_type = SCM_RIGHTS;
            c->cmsg_len = CMSG_LEN(fds.size() * sizeof(int));
            std::copy(fds.begin(), fds.end(), reinterpret_cast<int*>(CMSG_DATA(c)));
            REQUIRE(::sendmsg(over.get(), &message, MSG_NOSIGNAL) == 4);
        };
        for (int life = 0; life < 3; ++life) {
            CAPTURE(life);
            UniqueFd k = dial(s.path());
            REQUIRE(k);
            s.put(k, "00000001");
            CHECK(s.get(k, 8) == "0000000000017fff");
            s.put(k, "00000010"); // without a descriptor
            CHECK(s.get(k, 4) == "00000003");
            const UniqueFd file(::open("/dev/null", O_RDWR | O_CLOEXEC));
            pass(k, {file.get()});
            CHECK(s.get(k, 4) == "00000003");
            int pair[2];
            REQUIRE(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) == 0);
            UniqueFd ours(pair[0]);
            UniqueFd theirs(pair[1]);
            pass(k, {file.get(), file.get(), theirs.get()}); // all but one are closed
            theirs.reset();
            CHECK(s.get(k, 4) == "00000000");
            s.service.on = true;
            s.put(k, "0000000503");
            CHECK(s.get(k, 4) == "00000000");
            s.put(ours, command);
            CHECK(s.get(ours, 11) == answer);
            CHECK(s.service.last_locality == 3);
            pass(k, {ours.get()}); // a second one
            CHECK(s.get(k, 4) == "0000001f");
            const UniqueFd other = dial(s.path()); // somebody who only asks, meanwhile
            s.put(other, "00000001");
            CHECK(s.get(other, 8) == "0000000000017fff");
            CHECK(s.service.on);
            if (life == 0) {
                k.reset();
                CHECK(s.get(ours, 1).empty()); // the data socket ends with its device model
            } else {
                ours.reset();
                k.reset();
            }
            CHECK(s.loop.until([&] { return !s.service.on; }));
        }
    }

    TEST_CASE("descriptors sent to a socket that takes none do not stay open") {
        Server s;
        const UniqueFd k = dial(s.path() + ".ctrl");
        s.put(k, "00000010");
        CHECK(s.get(k, 4) == "0000000a");
    }

    TEST_CASE("a size that cannot be is answered, and the connection closed; others go on") {
        for (const char* bad : {"800100000009000001440007", "800100001001000001440007", "8001ffffffff000001440007",
                                "800100000000000001440007"}) {
            Server s;
            const UniqueFd good = dial(s.path());
            const UniqueFd c = dial(s.path());
            s.put(c, bad);
            CHECK(s.get(c, 10) == "80010000000a00000142");
            (void)s.get(c, 1);
            CHECK(s.closed);
            s.put(good, command);
            CHECK(s.get(good, 11) == answer);
        }
    }

    TEST_CASE("half-open connections cost nobody anything, and end") {
        Server s;
        std::vector<UniqueFd> half;
        for (int i = 0; i < 50; ++i) {
            half.push_back(dial(s.path()));
            s.put(half.back(), std::string_view(command).substr(0, i % 2 ? 6 : 22));
        }
        const UniqueFd good = dial(s.path());
        s.put(good, command);
        CHECK(s.get(good, 11) == answer);
        CHECK(s.loop.until([&] { return s.loop.clock.sleeping() >= 50; }));
        s.loop.clock.advance(std::chrono::seconds(61));
        for (const UniqueFd& h : half) {
            (void)s.get(h, 1);
            CHECK(s.closed);
        }
        s.put(good, command); // idle between commands for as long as it likes
        CHECK(s.get(good, 11) == answer);
        CHECK(s.server->counters().stalled == 50);
        CHECK(s.loop.lines.size() < 10);
    }

    TEST_CASE("a client that never reads holds up nobody, and its commands are not taken in advance") {
        Server s;
        s.service.answer_body = 4000;
        const UniqueFd greedy = dial(s.path());
        int sent = 0;
        const Bytes b = from_hex(command).value();
        while (sent < 100000 && ::send(greedy.get(), b.data(), b.size(), MSG_DONTWAIT | MSG_NOSIGNAL) > 0) {
            ++sent;
            if (sent % 64 == 0) {
                s.loop.settle();
            }
        }
        s.loop.settle();
        CHECK(s.service.commands < 1000); // as many as the socket's buffer holds answers
        const unsigned before = s.service.commands;
        const UniqueFd good = dial(s.path());
        s.put(good, command);
        CHECK(s.get(good, 4011).size() == 8022);
        CHECK(s.service.commands == before + 1);
        s.loop.clock.advance(std::chrono::seconds(61));
        CHECK(s.loop.until([&] { return s.server->connections() == 1; }));
    }

    TEST_CASE("connections over the limit are closed at once, those there go on") {
        Server s(8);
        std::vector<UniqueFd> all;
        for (int i = 0; i < 8; ++i) {
            all.push_back(dial(s.path()));
            s.put(all.back(), command);
            CHECK(s.get(all.back(), 11) == answer);
        }
        for (int i = 0; i < 100; ++i) {
            const UniqueFd extra = dial(s.path());
            (void)s.get(extra, 1);
            CHECK(s.closed);
        }
        CHECK(s.server->counters().over_limit == 100);
        CHECK(s.loop.lines.size() < 10);
        s.put(all[3], command);
        CHECK(s.get(all[3], 11) == answer);
        all.clear();
        CHECK(s.loop.until([&] { return s.server->connections() == 0; }));
        const UniqueFd again = dial(s.path());
        s.put(again, command);
        CHECK(s.get(again, 11) == answer);
    }

    TEST_CASE("connections over the limit: those that have never said anything make room, the oldest first") {
        Server s(8);
        std::vector<UniqueFd> silent;
        for (int i = 0; i < 8; ++i) {
            silent.push_back(dial(s.path()));
        }
        CHECK(s.loop.until([&] { return s.server->connections() == 8; }));
        std::vector<UniqueFd> all;
        for (int i = 0; i < 8; ++i) {
            all.push_back(dial(s.path()));
            s.put(all.back(), command);
            CHECK(s.get(all.back(), 11) == answer);
            (void)s.get(silent[static_cast<std::size_t>(i)], 1);
            CHECK(s.closed);
        }
        const UniqueFd extra = dial(s.path()); // now all have
        (void)s.get(extra, 1);
        CHECK(s.closed);
        CHECK(s.server->counters().over_limit == 1);
        CHECK(s.loop.lines.size() < 10);
    }

    TEST_CASE("long requests that are not whole: bounded for all connections together, others are served") {
        Server s;
        const std::string control = s.path() + ".ctrl";
        Bytes blob = from_hex("0000000d000000000000000100080000").value(); // SET_STATEBLOB of 512 KiB
        blob.resize(blob.size() + std::size_t{512} * 1024 - 1);
        std::vector<UniqueFd> half;
        std::size_t closed = 0;
        for (int i = 0; i < 12; ++i) {
            half.push_back(dial(control));
            std::size_t sent = 0;
            bool gone = false;
            REQUIRE(s.loop.until([&] {
                const ssize_t n =
                    ::send(half.back().get(), blob.data() + sent, blob.size() - sent, MSG_DONTWAIT | MSG_NOSIGNAL);
                sent += n > 0 ? static_cast<std::size_t>(n) : 0;
                gone = n < 0 && errno != EAGAIN;
                return gone || sent == blob.size();
            }));
            closed += gone ? 1 : 0;
        }
        s.loop.settle();
        CHECK(closed >= 8);
        const UniqueFd good = dial(s.path());
        s.put(good, command);
        CHECK(s.get(good, 11) == answer);
        const UniqueFd other = dial(control);
        s.put(other, "00000001"); // GET_CAPABILITY
        CHECK(s.get(other, 8).substr(0, 8) == "00000000");
        half.clear();
        CHECK(s.loop.until([&] { return s.server->connections() == 2; }));
        std::size_t sent = 0; // there is room again
        REQUIRE(s.loop.until([&] {
            const ssize_t n = ::send(other.get(), blob.data() + sent, blob.size() - sent, MSG_DONTWAIT | MSG_NOSIGNAL);
            sent += n > 0 ? static_cast<std::size_t>(n) : 0;
            return sent == blob.size();
        }));
        s.put(other, "00");
        CHECK(s.get(other, 4).size() == 8);
    }

    TEST_CASE("no descriptors left: the accept loop waits and goes on") {
        Server s;
        const UniqueFd waiting = dial(s.path());
        std::optional<fakes::NoDescriptors> none(waiting.get());
        CHECK(s.loop.until([&] { return s.loop.logged("trying again"); }));
        none.reset();
        s.loop.clock.advance(std::chrono::seconds(1));
        s.put(waiting, command);
        CHECK(s.get(waiting, 11) == answer);
    }

    TEST_CASE("10,000 random bytes at a time: every connection is answered or closed, the next one is served") {
        Server s;
        std::mt19937 random(3);
        for (int i = 0; i < 200; ++i) {
            const UniqueFd c = dial(s.path() + (i % 2 ? "" : ".ctrl"));
            Bytes junk(random() % 10000);
            for (auto& b : junk) {
                b = static_cast<std::byte>(random());
            }
            (void)!::send(c.get(), junk.data(), junk.size(), MSG_DONTWAIT | MSG_NOSIGNAL);
            s.loop.settle();
        }
        CHECK(s.loop.until([&] { return s.server->connections() == 0; }));
        const UniqueFd good = dial(s.path());
        s.put(good, command);
        CHECK(s.get(good, 11) == answer);
        CHECK(s.loop.lines.size() < 10);
    }

    TEST_CASE("stopping: what runs is answered, the files are gone, nobody is left") {
        Server s;
        const UniqueFd c = dial(s.path());
        s.put(c, command);
        CHECK(s.get(c, 11) == answer);
        s.loop.run(s.server->stop(std::chrono::seconds(1)));
        (void)s.get(c, 1);
        CHECK(s.closed);
        CHECK(s.server->connections() == 0);
        s.server.reset();
        CHECK_FALSE(dial(s.path()));
        CHECK(::access(s.path().c_str(), F_OK) != 0);
        CHECK(::access((s.path() + ".ctrl").c_str(), F_OK) != 0);
    }

    TEST_CASE("the socket's file: mode, in use, stale, not a socket") {
        Dir dir;
        const std::string path = dir.path + "/s";
        {
            auto first = listen_unix(path, "");
            REQUIRE(first);
            struct stat st {};
            REQUIRE(::stat(path.c_str(), &st) == 0);
            CHECK((st.st_mode & 0777) == 0600);
            auto second = listen_unix(path, "");
            REQUIRE_FALSE(second);
            CHECK(second.error().code == Errc::busy);
            CHECK(second.error().message.find("address in use") != std::string::npos);
        }
        CHECK(::access(path.c_str(), F_OK) != 0);
        {
            UniqueFd dead(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
            sockaddr_un a{};
            a.sun_family = AF_UNIX;
            path.copy(a.sun_path, sizeof a.sun_path - 1);
            REQUIRE(::bind(dead.get(), reinterpret_cast<const sockaddr*>(&a), sizeof a) == 0);
        }
        CHECK(listen_unix(path, "")); // nobody listens there any more
        { const UniqueFd file(::open(path.c_str(), O_CREAT | O_WRONLY | O_CLOEXEC, 0600)); }
        CHECK(listen_unix(path, "").error().code == Errc::exists);
        ::unlink(path.c_str());
        CHECK(listen_unix(dir.path + "/no/s", "").error().code == Errc::not_found);
        CHECK(listen_unix(path, "no-such-group-here").error().code == Errc::usage);
        CHECK(::access(path.c_str(), F_OK) != 0);
    }

    TEST_CASE("sockets that were passed") {
        Dir dir;
        auto made = listen_unix(dir.path + "/s", "");
        REQUIRE(made);
        CHECK(adopt_listener(UniqueFd(::dup(made->fd())), "passed"));
        CHECK(adopt_listener(UniqueFd(::open("/dev/null", O_RDONLY | O_CLOEXEC)), "x").error().code == Errc::usage);
        CHECK(adopt_listener(UniqueFd(::socket(AF_UNIX, SOCK_STREAM, 0)), "x").error().code == Errc::usage);
    }
}

} // namespace guest_socket_test
