// Boost 1.81's io_uring back end delivered one socket's bytes to another's reader: a socket closed with a read in
// flight gave its slot to the next socket, whose first bytes went to the old reader. Gone in Boost 1.83; vtpmd requires
// that.
#include "check.hpp"
#include "util/asio.hpp"

#include <array>
#include <chrono>
#include <vector>

namespace asio_closed_socket_test {

using namespace vtpmd;
using namespace std::chrono_literals;
using Socket = asio::local::stream_protocol::socket;

namespace {

struct Read {
    bool done = false;
    error_code ec;
    std::size_t bytes = 0;
};

Task<> read_once(Socket& socket, Read& out) {
    std::array<char, 16> buffer{};
    auto [ec, n] = co_await socket.async_read_some(asio::buffer(buffer), use_tuple);
    out = {true, ec, n};
}

void run(asio::io_context& io, Task<> task) {
    asio::co_spawn(io, std::move(task), [](std::exception_ptr e) { CHECK_FALSE(e); });
}

Task<> one_round(asio::io_context& io) {
    Socket a(io);
    Socket b(io);
    asio::local::connect_pair(a, b);
    Read old_read;
    run(io, read_once(a, old_read));
    co_await asio::post(use_tuple);
    a.close(); // a read is in flight
    Socket c(io);
    Socket d(io);
    asio::local::connect_pair(c, d); // likely takes over a's place inside Asio
    Read new_read;
    run(io, read_once(c, new_read));
    co_await asio::async_write(d, asio::buffer("hello", 5), use_tuple);
    for (int i = 0; i < 1000 && !(old_read.done && new_read.done); ++i) {
        asio::steady_timer pause(io, 1ms);
        co_await pause.async_wait(use_tuple);
    }
    CHECK(old_read.done);
    CHECK(old_read.bytes == 0);
    CHECK(old_read.ec == asio::error::operation_aborted);
    CHECK(new_read.done);
    CHECK(new_read.bytes == 5);
}

Task<> rounds(asio::io_context& io) {
    for (int i = 0; i < 50; ++i) {
        co_await one_round(io);
    }
}

} // namespace

TEST_SUITE("regression") {
    TEST_CASE("asio: a closed socket's reader never gets another socket's bytes") {
        asio::io_context io(1);
        run(io, rounds(io));
        io.run_for(60s);
        CHECK(io.stopped());
    }
}

} // namespace asio_closed_socket_test
