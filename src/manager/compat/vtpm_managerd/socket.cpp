#include "manager/compat/vtpm_managerd/socket.hpp"

#include "proto/link/stream_channel.hpp"
#include "util/deadline.hpp"
#include "util/unix_socket.hpp"

namespace vtpmd::manager {

namespace legacy = proto::legacy;

namespace {

Task<Result<void>> read_all(asio::local::stream_protocol::socket& socket, MutByteView into) {
    auto [ec, n] = co_await asio::async_read(socket, asio::buffer(into.data(), into.size()), use_tuple);
    if (ec) {
        co_return make_error(Errc::closed, "{}", ec.message());
    }
    co_return Result<void>{};
}

Task<Result<void>> write_all(asio::local::stream_protocol::socket& socket, ByteView bytes) {
    auto [ec, n] = co_await asio::async_write(socket, asio::buffer(bytes.data(), bytes.size()), use_tuple);
    if (ec) {
        co_return make_error(Errc::closed, "{}", ec.message());
    }
    co_return Result<void>{};
}

} // namespace

LegacySocket::LegacySocket(UniqueFd listening, Options options, Parts parts)
    : options_(options)
    , parts_(std::move(parts))
    , acceptor_(parts_.executor, Protocol(), listening.release())
    , connections_(parts_.executor, parts_.log) {}

Task<> LegacySocket::run() {
    return accept_each(acceptor_, parts_.clock, parts_.log, "a toolstack",
                       [this](Protocol::socket socket) { admit(std::move(socket)); });
}

Task<> LegacySocket::stop() {
    connections_.cancel();
    co_await connections_.join();
}

void LegacySocket::admit(Protocol::socket socket) {
    auto peer = proto::peer_credentials(socket);
    const bool root = peer && (peer->uid == 0 || peer->uid == options_.own_uid);
    const bool room = connections_.size() < options_.connection_limit;
    if (root && room) {
        connections_.spawn("a toolstack", serve(std::move(socket)));
        return;
    }
    parts_.log.warning_limited(refusals_, parts_.clock.now(), "the toolstack's socket: a peer with uid {} refused: {}",
                               peer ? std::to_string(peer->uid) : "unknown",
                               root ? "there are too many connections" : "it is not root's");
    if (room) {
        connections_.spawn("a stranger", turn_away(std::move(socket)));
    }
}

Task<> LegacySocket::turn_away(Protocol::socket socket) { (void)co_await send(socket, legacy::Status::forbidden); }

Task<> LegacySocket::serve(Protocol::socket socket) {
    co_await asio::this_coro::throw_if_cancelled(false);
    for (;;) {
        auto request = co_await next_request(socket);
        if (!request) {
            if (request.error().code != Errc::closed) {
                parts_.log.warning("the toolstack's socket: {}", request.error().message);
                (void)co_await send(socket, legacy::Status::invalid);
            }
            co_return;
        }
        legacy::Request asked = legacy::parse(*request);
        const legacy::Status status = co_await parts_.service.answer(std::move(asked));
        auto sent = co_await send(socket, status);
        if (!sent) {
            co_return;
        }
    }
}

Task<Result<Bytes>> LegacySocket::next_request(Protocol::socket& socket) {
    Bytes request(1);
    auto begun = co_await read_all(socket, request); // a toolstack may be silent for ever in between
    if (!begun) {
        co_return begun.error();
    }
    request.resize(legacy::header_size);
    Task<Result<void>> header = read_all(socket, MutByteView(request).subspan(1));
    auto there = co_await with_deadline(parts_.clock, options_.request_deadline, "a request", std::move(header));
    if (!there) {
        co_return there.error();
    }
    auto size = legacy::request_size(request);
    if (!size) {
        co_return size.error();
    }
    request.resize(*size);
    if (*size == legacy::header_size) {
        co_return request;
    }
    Task<Result<void>> body = read_all(socket, MutByteView(request).subspan(legacy::header_size));
    there = co_await with_deadline(parts_.clock, options_.request_deadline, "a request", std::move(body));
    if (!there) {
        co_return there.error();
    }
    co_return request;
}

Task<Result<void>> LegacySocket::send(Protocol::socket& socket, legacy::Status status) {
    const Bytes answer = legacy::encode_answer(status);
    Task<Result<void>> sending = write_all(socket, answer);
    co_return co_await with_deadline(parts_.clock, options_.request_deadline, "an answer", std::move(sending));
}

} // namespace vtpmd::manager
