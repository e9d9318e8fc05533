// Requests of a peer that asks at once, one that pauses, one that never does, and answers that it does not take.
#include "check.hpp"
#include "guest/stream.hpp"
#include "loop.hpp"

#include <sys/socket.h>
#include <unistd.h>

namespace guest_stream_test {

using namespace vtpmd;
using namespace vtpmd::guest;
using vtpmd::fakes::Loop;

namespace {

/// Requests of four bytes, from a peer that is this test.
struct Stage {
    Stage() {
        std::array<int, 2> ends{};
        REQUIRE(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends.data()) == 0);
        peer.reset(ends[1]);
        stream.emplace(StreamSocket(loop.io, asio::generic::stream_protocol(AF_UNIX, 0), ends[0]), loop.clock,
                       [](ByteView) -> Result<std::size_t> { return 4; });
    }
    void ask(std::string_view request) { REQUIRE(::write(peer.get(), request.data(), 4) == 4); }
    /// The request after one that was answered; `late`: asked once we wait for it, that much after the answer.
    std::string next(std::string_view request, Clock::duration late = {}) {
        if (late == Clock::duration::zero()) {
            ask(request);
        }
        auto started = loop.start(stream->receive());
        if (late != Clock::duration::zero()) {
            loop.settle();
            CHECK(!started->done);
            loop.clock.advance(late);
            ask(request);
        }
        REQUIRE(loop.until([&] { return started->done; }));
        const Bytes got = started->value->value();
        std::string text;
        for (std::byte b : got) {
            text += static_cast<char>(b);
        }
        REQUIRE(loop.run(stream->send(got)));
        return text;
    }
    Loop loop;
    UniqueFd peer;
    std::optional<GuestStream> stream;
};

} // namespace

TEST_SUITE("guest") {
    TEST_CASE("what a peer asks before it is waited for and after it comes in order") {
        Stage s;
        CHECK(s.next("one ") == "one ");
        CHECK(s.next("two ") == "two ");
        CHECK(s.next("thre", std::chrono::microseconds(60)) == "thre");
        s.ask("four");
        s.ask("five");
        CHECK(s.next("six ") == "four");
        CHECK(s.next("seve") == "five");
    }

    TEST_CASE("an answer that the peer does not take at once is sent to its end") {
        Stage s;
        const Bytes answer(4 << 20, std::byte{7});
        auto sending = s.loop.start(s.stream->send(answer));
        s.loop.settle();
        CHECK_FALSE(sending->done); // the socket is full
        Bytes got(answer.size());
        std::size_t have = 0;
        REQUIRE(s.loop.until([&] {
            const ssize_t n = ::recv(s.peer.get(), got.data() + have, got.size() - have, MSG_DONTWAIT);
            have += n > 0 ? static_cast<std::size_t>(n) : 0;
            return sending->done && have == got.size();
        }));
        CHECK(*sending->value);
        CHECK(got == answer);
    }

    TEST_CASE("a peer that has gone takes no answer") {
        Stage s;
        s.peer.reset();
        const Bytes answer(4);
        CHECK(!s.loop.run(s.stream->send(answer)));
    }

    TEST_CASE("a peer that never pauses lets others have their turn") {
        Stage s;
        unsigned others = 0;
        bool done = false;
        auto crowd = [&]() -> Task<> {
            while (!done) {
                ++others;
                co_await asio::post(s.loop.io, asio::use_awaitable);
            }
        };
        auto serve = [&]() -> Task<> {
            for (int i = 0; i < 64; ++i) {
                s.ask("more");
                auto request = co_await s.stream->receive();
                REQUIRE(request);
                REQUIRE(co_await s.stream->send(*request));
            }
            done = true;
        };
        auto crowding = s.loop.start(crowd());
        auto serving = s.loop.start(serve());
        s.loop.until([&] { return serving->done && crowding->done; });
        CHECK(others > 1);
    }

    TEST_CASE("a peer that ends between two requests has ended in order") {
        Stage s;
        CHECK(s.next("one ") == "one ");
        CHECK(s.next("two ") == "two ");
        s.peer.reset();
        auto end = s.loop.run(s.stream->receive());
        REQUIRE(!end);
        CHECK(end.error().code == Errc::closed);
    }
}

} // namespace guest_stream_test
