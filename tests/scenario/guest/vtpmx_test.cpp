// The host as a guest, over a kernel that the test plays: what is read from the proxy's descriptor, what is written to it. A
// socket that keeps messages apart stands for it.
#include "check.hpp"
#include "fake_service.hpp"
#include "guest/vtpmx_guest.hpp"
#include "loop.hpp"
#include "util/fd.hpp"
#include "util/text.hpp"

#include <sys/socket.h>

namespace vtpmx_test {

using namespace vtpmd;
using namespace vtpmd::guest;
using namespace vtpmd::fakes;

namespace {

struct Kernel {
    explicit Kernel(unsigned tries = 2) {
        VtpmxOptions options;
        options.tries = tries;
        options.make = [this](const char* /*control*/, bool tpm20) {
            int pair[2];
            if (refuse != 0 || ::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, pair) != 0) {
                return VtpmxDevice{-1, 0, refuse};
            }
            mine.reset(pair[0]);
            asked_for_tpm20 = tpm20;
            return VtpmxDevice{pair[1], ++made, 0};
        };
        guest = std::make_unique<VtpmxGuest>(loop.io.get_executor(), options, service, loop.clock, loop.log);
        guest->start([this](Error e) { failed = std::move(e); });
        loop.settle();
    }
    ~Kernel() { loop.run(guest->stop(std::chrono::seconds(1))); }

    void put(std::string_view hex) const {
        const Bytes b = from_hex(hex).value();
        REQUIRE(::send(mine.get(), b.data(), b.size(), MSG_NOSIGNAL) == static_cast<ssize_t>(b.size()));
    }
    std::string get() {
        Bytes in(5000);
        ssize_t n = -1;
        REQUIRE(loop.until([&] { return (n = ::recv(mine.get(), in.data(), in.size(), MSG_DONTWAIT)) >= 0; }));
        in.resize(static_cast<std::size_t>(n));
        return to_hex(in);
    }
    std::string ask(std::string_view hex) {
        put(hex);
        return get();
    }

    Loop loop;
    FakeService service;
    UniqueFd mine;
    unsigned made = 0;
    int refuse = 0;
    bool asked_for_tpm20 = false;
    std::optional<Error> failed;
    std::unique_ptr<VtpmxGuest> guest;
};

constexpr const char* command = "80010000000c000001440007";
constexpr const char* answer = "80010000000b0000000007";

} // namespace

TEST_SUITE("guest") {
    TEST_CASE("vtpmx: commands, and the locality that the kernel asks for itself") {
        Kernel k;
        CHECK(k.asked_for_tpm20);
        CHECK(k.ask("80010000000b2000100000") == "80010000000a00000000");
        CHECK(k.ask(command) == answer);
        CHECK(k.service.last_locality == 0);
        CHECK(k.ask("80010000000b2000100003") == "80010000000a00000000");
        CHECK(k.ask(command) == answer);
        CHECK(k.service.last_locality == 3);
        for (const char* bad : {"80010000000b2000100005", "80010000000a20001000", "80010000000c200010000000"}) {
            CAPTURE(bad);
            CHECK(k.ask(bad) == "80010000000a00000907");
        }
        CHECK(k.ask(command) == answer);
        CHECK(k.service.last_locality == 3);
        CHECK(k.service.commands == 3);
        CHECK(k.loop.logged("/dev/tpm1"));
    }
    TEST_CASE("vtpmx: what is no command is refused, and the next one served") {
        Kernel k;
        for (const char* bad : {"80", "80010000000b00000144", "8001ffffffff00000144"}) {
            CAPTURE(bad);
            CHECK(k.ask(bad) == "80010000000a00000142");
        }
        CHECK(k.ask(command) == answer);
    }
    TEST_CASE("vtpmx: a device that the kernel gave up is made again, some times in a row") {
        Kernel k;
        for (unsigned i = 1; i <= 4; ++i) { // more than the tries, but it works in between
            CHECK(k.ask(command) == answer);
            k.mine.reset();
            REQUIRE(k.loop.until([&] {
                k.loop.clock.advance(std::chrono::seconds(1));
                return k.made == i + 1;
            }));
        }
        for (unsigned i = 0; i < 3; ++i) {
            k.mine.reset();
            REQUIRE(k.loop.until([&] {
                k.loop.clock.advance(std::chrono::seconds(1));
                return k.mine.get() >= 0 || k.failed;
            }));
        }
        REQUIRE(k.failed);
        CHECK(k.failed->code == Errc::unavailable);
        CHECK(k.failed->message.find("given up") != std::string::npos);
    }
    TEST_CASE("vtpmx: no driver") {
        CHECK(check_vtpmx("/nonexistent/vtpmx").error().code == Errc::unavailable);
        CHECK(check_vtpmx("/nonexistent/vtpmx").error().message.find("modprobe tpm_vtpm_proxy") != std::string::npos);
        Kernel k;
        k.refuse = ENODEV;
        k.mine.reset();
        REQUIRE(k.loop.until([&] {
            k.loop.clock.advance(std::chrono::seconds(1));
            return k.failed.has_value();
        }));
        CHECK(k.failed->message.find("modprobe tpm_vtpm_proxy") != std::string::npos);
    }
    TEST_CASE("vtpmx: stopped while nothing is asked, and before it is made again") {
        { Kernel k; }
        Kernel k;
        k.mine.reset();
        k.loop.settle();
    }
}

} // namespace vtpmx_test
