#include "proto/link/stream_channel.hpp"

#include "proto/link/frame.hpp"
#include "util/deadline.hpp"
#include "util/secret_bytes.hpp"

#include <algorithm>
#include <cerrno>
#include <sys/socket.h>
#include <sys/un.h>

namespace vtpmd::proto {

namespace {

Error socket_error(const error_code& ec, std::string_view peer, std::string_view what) {
    if (ec == asio::error::operation_aborted) {
        return make_error(Errc::canceled, "{}: {} was cancelled", peer, what);
    }
    if (ec == asio::error::eof || ec == asio::error::connection_reset || ec == asio::error::broken_pipe ||
        ec == asio::error::not_connected) {
        return make_error(Errc::closed, "{}: the peer closed the connection ({})", peer, what);
    }
    return errno_error(ec.value(), fmt::format("{}: {}", peer, what));
}

template <typename Socket>
class StreamChannel final : public Channel {
  public:
    StreamChannel(Socket socket, Clock& clock, StreamOptions options)
        : clock_(clock)
        , options_(std::move(options))
        , socket_(std::move(socket)) {}

    ~StreamChannel() override { cleanse(buffer_); }

    Task<Result<Bytes>> receive() override {
        if (closed_) {
            co_return closed_error();
        }
        if (auto frame = take_frame(); !frame || frame->size() != 0) {
            co_return frame;
        }
        if (filled_ == 0) { // between frames: no deadline
            auto begun = co_await fill();
            if (!begun) {
                co_return std::move(begun).error();
            }
            if (auto frame = take_frame(); !frame || frame->size() != 0) {
                co_return frame;
            }
        }
        co_return co_await with_deadline(clock_, options_.frame_deadline, options_.peer + ": the rest of a frame",
                                         rest_of_frame());
    }

    Task<Result<void>> send(ByteView frame) override {
        if (closed_) {
            co_return closed_error();
        }
        // Nearly always the whole frame goes into the socket's buffer at once; that needs no trip through the
        // loop.
        const ssize_t n = ::send(socket_.native_handle(), frame.data(), frame.size(), MSG_DONTWAIT | MSG_NOSIGNAL);
        if (n == static_cast<ssize_t>(frame.size())) {
            co_return Result<void>{};
        }
        if (n < 0 && errno != EAGAIN && errno != EINTR) {
            co_return socket_error(error_code(errno, boost::system::system_category()), options_.peer, "sending");
        }
        co_return co_await with_deadline(clock_, options_.frame_deadline, options_.peer + ": taking an answer",
                                         send_rest(frame.subspan(n < 0 ? 0 : static_cast<std::size_t>(n))));
    }

    void close() override {
        if (!closed_) {
            closed_ = true;
            // The descriptor itself goes with the object: an operation may still be in flight on it.
            error_code ignored;
            socket_.shutdown(Socket::shutdown_both, ignored);
            socket_.cancel(ignored);
        }
    }

    [[nodiscard]] std::string peer() const override { return options_.peer; }

  private:
    [[nodiscard]] Error closed_error() const { return make_error(Errc::closed, "{}: closed", options_.peer); }

    /// The first frame in the buffer, whole; empty if it is not whole yet.
    Result<Bytes> take_frame() {
        const ByteView have(buffer_.data(), filled_);
        if (have.size() < header_size) {
            return Bytes{};
        }
        auto header = parse_header(have);
        if (!header) {
            return in_context(std::move(header).error(), options_.peer);
        }
        if (have.size() < header->size) {
            return Bytes{};
        }
        Bytes frame = to_bytes(have.first(header->size));
        // What follows moves to the front; what it leaves behind may be a key.
        std::copy(buffer_.begin() + static_cast<std::ptrdiff_t>(header->size),
                  buffer_.begin() + static_cast<std::ptrdiff_t>(filled_), buffer_.begin());
        cleanse(MutByteView(buffer_).subspan(filled_ - header->size, header->size));
        filled_ -= header->size;
        return frame;
    }

    /// Reads what there is, at least a byte. Not called with a full buffer: a whole frame always fits.
    Task<Result<void>> fill() {
        auto [ec, n] = co_await socket_.async_read_some(
            asio::buffer(buffer_.data() + filled_, buffer_.size() - filled_), use_tuple);
        if (closed_) {
            co_return closed_error();
        }
        if (ec) {
            if (ec == asio::error::eof && filled_ != 0) {
                co_return make_error(Errc::protocol, "{}: the connection ended inside a frame", options_.peer);
            }
            co_return socket_error(ec, options_.peer, "receiving");
        }
        filled_ += n;
        co_return Result<void>{};
    }

    Task<Result<Bytes>> rest_of_frame() {
        for (;;) {
            auto more = co_await fill();
            if (!more) {
                co_return std::move(more).error();
            }
            if (auto frame = take_frame(); !frame || frame->size() != 0) {
                co_return frame;
            }
        }
    }

    Task<Result<void>> send_rest(ByteView data) {
        auto [ec, n] = co_await asio::async_write(socket_, asio::buffer(data.data(), data.size()), use_tuple);
        if (closed_) {
            co_return closed_error();
        }
        if (ec) {
            co_return socket_error(ec, options_.peer, "sending");
        }
        co_return Result<void>{};
    }

    Clock& clock_;
    const StreamOptions options_;

    Socket socket_;
    Bytes buffer_ = Bytes(frame_limit);
    std::size_t filled_ = 0;
    bool closed_ = false;
};

std::string describe(asio::local::stream_protocol::socket& socket) {
    auto who = peer_credentials(socket);
    return who ? fmt::format("unix peer pid {} uid {}", who->pid, who->uid) : std::string("unix peer");
}

} // namespace

std::unique_ptr<Channel> make_stream_channel(asio::local::stream_protocol::socket socket, Clock& clock,
                                             StreamOptions options) {
    if (options.peer.empty()) {
        options.peer = describe(socket);
    }
    return std::make_unique<StreamChannel<asio::local::stream_protocol::socket>>(std::move(socket), clock,
                                                                                 std::move(options));
}

std::unique_ptr<Channel> make_stream_channel(asio::ip::tcp::socket socket, Clock& clock, StreamOptions options) {
    return std::make_unique<StreamChannel<asio::ip::tcp::socket>>(std::move(socket), clock, std::move(options));
}

Result<PeerCredentials> peer_credentials(asio::local::stream_protocol::socket& socket) {
    ucred cred{};
    socklen_t size = sizeof cred;
    if (::getsockopt(socket.native_handle(), SOL_SOCKET, SO_PEERCRED, &cred, &size) != 0) {
        return errno_error(errno, "peer credentials");
    }
    return PeerCredentials{cred.pid, cred.uid, cred.gid};
}

Task<Result<std::unique_ptr<Channel>>> connect_unix(std::string path, Clock& clock) {
    if (path.size() >= sizeof(sockaddr_un::sun_path)) {
        co_return make_error(Errc::usage, "{}: a socket's path has at most {} characters", path,
                             sizeof(sockaddr_un::sun_path) - 1);
    }
    asio::local::stream_protocol::socket socket(co_await asio::this_coro::executor);
    const asio::local::stream_protocol::endpoint endpoint(path);
    auto [ec] = co_await socket.async_connect(endpoint, use_tuple);
    if (ec == asio::error::operation_aborted) {
        co_return make_error(Errc::canceled, "{}: connecting was cancelled", path);
    }
    if (ec) {
        co_return errno_error(ec.value(), path);
    }
    StreamOptions options;
    options.peer = "unix:" + path;
    co_return make_stream_channel(std::move(socket), clock, std::move(options));
}

Result<std::unique_ptr<Channel>> adopt_unix(asio::any_io_executor executor, UniqueFd fd, Clock& clock,
                                            std::string peer) {
    int domain = 0;
    int type = 0;
    socklen_t size = sizeof domain;
    if (::getsockopt(fd.get(), SOL_SOCKET, SO_DOMAIN, &domain, &size) != 0 || domain != AF_UNIX) {
        return make_error(Errc::usage, "descriptor {} is not a Unix socket", fd.get());
    }
    size = sizeof type;
    if (::getsockopt(fd.get(), SOL_SOCKET, SO_TYPE, &type, &size) != 0 || type != SOCK_STREAM) {
        return make_error(Errc::usage, "descriptor {} is not a stream socket", fd.get());
    }
    asio::local::stream_protocol::socket socket(executor);
    error_code ec;
    socket.assign(asio::local::stream_protocol(), fd.get(), ec);
    if (ec) {
        return errno_error(ec.value(), fmt::format("descriptor {}", fd.get()));
    }
    (void)fd.release();
    StreamOptions options;
    options.peer = std::move(peer);
    return make_stream_channel(std::move(socket), clock, std::move(options));
}

} // namespace vtpmd::proto
