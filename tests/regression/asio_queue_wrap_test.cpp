// Boost 1.81's io_uring back end stalled for ever once its submission queue had wrapped. Our ring is clamped to 256
// entries (util/asio_impl.cpp), so that a few hundred rounds of reads with deadlines wrap it many times over.
#include "check.hpp"
#include "util/asio.hpp"
#include "util/clock.hpp"
#include "util/deadline.hpp"

#include <array>
#include <chrono>

namespace asio_queue_wrap_test {

using namespace vtpmd;
using namespace std::chrono_literals;
using Socket = asio::local::stream_protocol::socket;

namespace {

Task<Result<std::size_t>> read_some(Socket& socket) {
    std::array<char, 16> buffer{};
    auto [ec, n] = co_await socket.async_read_some(asio::buffer(buffer), use_tuple);
    if (ec) {
        co_return make_error(Errc::canceled, "{}", ec.message());
    }
    co_return n;
}

Task<> rounds(asio::io_context& io, int count, int& finished) {
    SystemClock clock(io.get_executor());
    for (int i = 0; i < count; ++i) {
        Socket a(io);
        Socket b(io);
        asio::local::connect_pair(a, b);
        Result<std::size_t> silent = co_await with_deadline<std::size_t>(clock, 1ms, "silent peer", read_some(a));
        CHECK_FALSE(silent);
        CHECK(silent.error().code == Errc::timed_out);
        co_await asio::async_write(b, asio::buffer("hello", 5), use_tuple);
        Result<std::size_t> heard = co_await with_deadline<std::size_t>(clock, 60s, "peer", read_some(a));
        REQUIRE(heard);
        CHECK(*heard == 5);
        ++finished;
    }
}

} // namespace

TEST_SUITE("regression") {
    TEST_CASE("asio: the loop goes on after its queue has wrapped") {
        asio::io_context io(1);
        int finished = 0;
        for (int i = 0; i < 4; ++i) {
            asio::co_spawn(io, rounds(io, 200, finished), [](std::exception_ptr e) { CHECK_FALSE(e); });
        }
        io.run_for(120s);
        CHECK(io.stopped());
        CHECK(finished == 800);
    }
}

} // namespace asio_queue_wrap_test
