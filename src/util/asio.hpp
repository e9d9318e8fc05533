// The one place that includes Boost.Asio. Everything asynchronous in vtpmd is a Task<T>, awaited with use_tuple.
//
// Asio is compiled once (asio_impl.cpp); BOOST_ASIO_SEPARATE_COMPILATION and the choice of the event loop
// (io_uring or epoll) are project arguments in meson.build, the same for every translation unit.
#pragma once

#include <boost/asio/as_tuple.hpp>
#include <boost/asio/awaitable.hpp>
#include <boost/asio/bind_cancellation_slot.hpp>
#include <boost/asio/buffer.hpp>
#include <boost/asio/cancellation_signal.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/deferred.hpp>
#include <boost/asio/dispatch.hpp>
#include <boost/asio/error.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/local/connect_pair.hpp>
#include <boost/asio/local/stream_protocol.hpp>
#include <boost/asio/posix/stream_descriptor.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/read.hpp>
#include <boost/asio/signal_set.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/this_coro.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <boost/asio/write.hpp>

namespace vtpmd {

namespace asio = boost::asio;
using boost::system::error_code;

template <typename T = void>
using Task = asio::awaitable<T>;

/// The completion token used throughout: `auto [ec, n] = co_await socket.async_read_some(buf, use_tuple);`
inline constexpr auto use_tuple = asio::as_tuple(asio::use_awaitable);

} // namespace vtpmd
