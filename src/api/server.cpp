// The listener and its sessions; the only unit that sees Boost.Beast.
#include "api/server.hpp"

#include "api/routes.hpp"
#include "util/deadline.hpp"
#include "util/shielded.hpp"
#include "util/task_group.hpp"
#include "util/text.hpp"
#include "util/unix_socket.hpp"

#include <algorithm>
#include <boost/asio/write.hpp>
#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/http/empty_body.hpp>
#include <boost/beast/http/error.hpp>
#include <boost/beast/http/parser.hpp>
#include <boost/beast/http/read.hpp>
#include <boost/beast/http/string_body.hpp>
#include <boost/beast/http/write.hpp>
#include <sys/socket.h>
#include <tuple>

namespace vtpmd::api {

namespace {

namespace http = boost::beast::http;
using Protocol = asio::local::stream_protocol;
using Socket = Protocol::socket;
using Parser = http::request_parser<http::string_body>;

/// Bytes of a long answer that are in memory at a time.
constexpr std::size_t stream_piece = 65536;
/// In which one who has no right has to ask what is refused.
constexpr auto stranger_deadline = std::chrono::seconds(2);

enum class Right { none, read, full };

Right right_of(const manager::ManagementAccess& access, const ucred& peer, const std::vector<gid_t>& groups) {
    auto in = [&](const std::optional<gid_t>& group) {
        return group && (peer.gid == *group || std::ranges::count(groups, *group) != 0);
    };
    if (peer.uid == 0 || peer.uid == access.own_uid || in(access.full)) {
        return Right::full;
    }
    return in(access.read_only) ? Right::read : Right::none;
}

unsigned status_of(const error_code& ec) {
    if (ec == http::error::header_limit) {
        return 431;
    }
    return ec == http::error::body_limit ? 413 : 400;
}

struct SessionPeer {
    std::string name;
    Right right = Right::none;
    bool over_limit = false;
};

class Server final : public manager::Management {
  public:
    Server(Protocol::acceptor acceptor, manager::ManagementParts parts)
        : parts_(std::move(parts))
        , acceptor_(std::move(acceptor))
        , sessions_(parts_.executor, parts_.log)
        , work_(parts_.executor, parts_.log) {}

    Task<> run() override {
        return accept_each(acceptor_, parts_.clock, parts_.log, "management",
                           [this](Socket socket) { admit(std::move(socket)); });
    }

    Task<> stop() override {
        sessions_.cancel();
        co_await sessions_.join();
        co_await work_.join();
    }

  private:
    void admit(Socket socket) {
        ucred peer{};
        socklen_t size = sizeof peer;
        if (::getsockopt(socket.native_handle(), SOL_SOCKET, SO_PEERCRED, &peer, &size) != 0) {
            return;
        }
        SessionPeer who{.name = fmt::format("management pid {} uid {}", peer.pid, peer.uid),
                        .right = right_of(parts_.access, peer, peer_groups(socket.native_handle()))};
        // One more than the limit is told so and let go; beyond that there is no answer either. Who has no right has no
        // part of the places of those who have.
        const std::size_t count = count_of(who.right);
        const std::size_t limit = who.right == Right::full   ? full_connections
                                  : who.right == Right::read ? read_connections
                                                             : 0;
        who.over_limit = count >= limit;
        if (count >= limit + 16) {
            note_refusal(who.name, "has too many connections");
            return;
        }
        if (who.right == Right::none) {
            note_refusal(who.name, "is neither root nor in the group of --api-group or --api-read-group");
        }
        std::string name = who.name;
        sessions_.spawn(std::move(name), session(*this, std::move(socket), std::move(who)));
    }

    [[nodiscard]] std::size_t& count_of(Right right) {
        return right == Right::full ? full_ : right == Right::read ? others_ : strangers_;
    }

    void note_refusal(std::string_view who, std::string_view why) {
        parts_.log.warning_limited(refusals_, parts_.clock.now(), "{}: refused: {}", who, why);
    }

    /// Whoever may not change anything may not fill the log with what it asked for either.
    void note_change(const SessionPeer& peer, const Request& request) {
        const std::string what = printable(request.method + " " + request.target);
        if (request.may_change) {
            parts_.log.info_limited(changes_, parts_.clock.now(), "{}: {}", peer.name, what);
        } else {
            note_refusal(peer.name, what + " without the right to change anything");
        }
    }

    static Task<> session(Server& self, Socket socket, SessionPeer peer) {
        std::size_t& count = self.count_of(peer.right);
        struct Counted {
            std::size_t& n;
            explicit Counted(std::size_t& c)
                : n(++c) {}
            ~Counted() { --n; }
        } counted(count);
        co_await asio::this_coro::throw_if_cancelled(false);
        boost::beast::flat_buffer buffer(header_limit + body_limit);
        for (bool more = true; more;) {
            more = co_await serve_one(self, socket, buffer, peer);
        }
        error_code ignored;
        socket.shutdown(Socket::shutdown_both, ignored);
    }

    /// False once the connection is to end.
    static Task<bool> serve_one(Server& self, Socket& socket, boost::beast::flat_buffer& buffer,
                                const SessionPeer& peer) {
        Parser parser;
        parser.header_limit(header_limit);
        Task<Result<error_code>> reading = read(socket, buffer, parser, peer.right == Right::full && !peer.over_limit);
        const Clock::duration patience = peer.right == Right::none ? stranger_deadline : request_deadline;
        auto got = co_await with_deadline(self.parts_.clock, patience, "a request", std::move(reading));
        if (!got) {
            if (got.error().code == Errc::timed_out && parser.got_some()) {
                Response late = transport_error(408, "the request did not come to its end in time");
                (void)co_await send(self, socket, std::move(late), {.keep_alive = false});
            }
            co_return false;
        }
        if (*got == http::error::end_of_stream || *got == http::error::partial_message ||
            (got->failed() && got->category() != make_error_code(http::error::bad_method).category())) {
            co_return false; // it is gone
        }
        if (got->failed()) {
            Response bad = transport_error(status_of(*got), got->message());
            (void)co_await send(self, socket, std::move(bad), {.keep_alive = false});
            co_return false;
        }
        const bool keep_alive = parser.get().keep_alive();
        auto response = co_await answer(self, peer, parser);
        if (!response) {
            co_return false;
        }
        const bool sent = co_await send(self, socket, std::move(*response),
                                        {.keep_alive = keep_alive && peer.right != Right::none && !peer.over_limit});
        co_return sent&& keep_alive&& peer.right != Right::none && !peer.over_limit;
    }

    static Task<Result<error_code>> read(Socket& socket, boost::beast::flat_buffer& buffer, Parser& parser,
                                         bool may_be_large) {
        // What is over any limit is refused by the parser while it reads the header; the rest needs its target.
        parser.body_limit(may_be_large ? copy_limit : body_limit);
        auto [ec, n] = co_await http::async_read_header(socket, buffer, parser, use_tuple);
        if (!ec && may_be_large) {
            const std::size_t limit =
                limit_of_body(parser.get().method_string(), std::string_view(parser.get().target()));
            if (parser.content_length() && *parser.content_length() > limit) {
                co_return error_code(http::error::body_limit);
            }
            parser.body_limit(limit);
        }
        if (!ec) {
            std::tie(ec, n) = co_await http::async_read(socket, buffer, parser, use_tuple);
        }
        if (ec == asio::error::operation_aborted) {
            co_return make_error(Errc::canceled, "cancelled");
        }
        co_return ec;
    }

    /// nullopt: we are stopping.
    static Task<std::optional<Response>> answer(Server& self, const SessionPeer& peer, Parser& parser) {
        if (peer.right == Right::none) {
            co_return transport_error(403, "this socket is not yours to use");
        }
        if (peer.over_limit) {
            co_return transport_error(503, "there are too many connections");
        }
        auto message = parser.release();
        Request request{.method = std::string(message.method_string()),
                        .target = std::string(message.target()),
                        .body = std::move(message.body()),
                        .may_change = peer.right == Right::full};
        if (request.method != "GET") {
            self.note_change(peer, request);
        }
        Task<Response> work = handle(self.parts_.control, std::move(request));
        co_return co_await shielded(self.work_, "a request of " + peer.name, std::move(work));
    }

    struct SendOptions {
        bool keep_alive = true;
    };
    static Task<bool> send(Server& self, Socket& socket, Response response, SendOptions options) {
        if (response.stream) {
            co_return co_await send_stream(self, socket, std::move(response), options);
        }
        http::response<http::string_body> message{static_cast<http::status>(response.status), 11};
        message.set(http::field::content_type, response.content_type);
        message.set(http::field::server, "vtpmd/" VTPMD_VERSION);
        if (!response.allow.empty()) {
            message.set(http::field::allow, response.allow);
        }
        message.keep_alive(options.keep_alive);
        message.body() = std::move(response.body);
        message.prepare_payload();
        Task<Result<void>> writing = write(socket, message);
        auto sent = co_await with_deadline(self.parts_.clock, response_deadline, "a response", std::move(writing));
        co_return sent.has_value();
    }

    /// Piece by piece, so that memory does not grow with it; each has response_deadline. One that fails ends the connection
    /// before all of it has come, which the peer sees by the length it was told.
    static Task<bool> send_stream(Server& self, Socket& socket, Response response, SendOptions options) {
        http::response<http::empty_body> head{static_cast<http::status>(response.status), 11};
        head.set(http::field::content_type, response.content_type);
        head.set(http::field::server, "vtpmd/" VTPMD_VERSION);
        head.content_length(response.stream->size());
        head.keep_alive(options.keep_alive);
        http::response_serializer<http::empty_body> serializer{head};
        Task<Result<void>> writing = write_head(socket, serializer);
        auto sent = co_await with_deadline(self.parts_.clock, response_deadline, "a response", std::move(writing));
        Bytes piece(stream_piece);
        while (sent) {
            auto read = co_await response.stream->read(piece);
            if (!read) {
                self.parts_.log.error("a stream to management ends before its time: {}", read.error().message);
                co_return false;
            }
            if (*read == 0) {
                co_return true;
            }
            Task<Result<void>> next = write_piece(socket, ByteView(piece).first(*read));
            sent = co_await with_deadline(self.parts_.clock, response_deadline, "a response", std::move(next));
        }
        co_return false;
    }

    static Task<Result<void>> write_head(Socket& socket, http::response_serializer<http::empty_body>& serializer) {
        auto [ec, n] = co_await http::async_write_header(socket, serializer, use_tuple);
        (void)n;
        if (ec) {
            co_return make_error(Errc::closed, "{}", ec.message());
        }
        co_return Result<void>{};
    }

    static Task<Result<void>> write_piece(Socket& socket, ByteView piece) {
        auto [ec, n] = co_await asio::async_write(socket, asio::buffer(piece.data(), piece.size()), use_tuple);
        (void)n;
        if (ec) {
            co_return make_error(Errc::closed, "{}", ec.message());
        }
        co_return Result<void>{};
    }

    static Task<Result<void>> write(Socket& socket, http::response<http::string_body>& message) {
        auto [ec, n] = co_await http::async_write(socket, message, use_tuple);
        (void)n;
        if (ec) {
            co_return make_error(Errc::closed, "{}", ec.message());
        }
        co_return Result<void>{};
    }

    manager::ManagementParts parts_;
    Protocol::acceptor acceptor_;
    RateLimit refusals_;
    RateLimit changes_{{.burst = 500, .interval = std::chrono::seconds{100}}};
    std::size_t full_ = 0;      ///< connections of peers with full rights
    std::size_t others_ = 0;    ///< of those who may only read
    std::size_t strangers_ = 0; ///< of those who are told that they have no right
    TaskGroup sessions_;        ///< one task a connection
    TaskGroup work_;            ///< requests, which go on though their connection ends
};

} // namespace

Result<std::unique_ptr<manager::Management>> make_management(manager::ManagementParts parts) {
    int domain = 0;
    int accepts = 0;
    socklen_t size = sizeof domain;
    const int fd = parts.listening.get();
    if (::getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &domain, &size) != 0 || domain != AF_UNIX ||
        ::getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &accepts, &size) != 0 || accepts == 0) {
        return make_error(Errc::usage, "descriptor {} (management) is not a listening Unix socket", fd);
    }
    Protocol::acceptor acceptor(parts.executor);
    error_code ec;
    acceptor.assign(Protocol(), fd, ec);
    if (ec) {
        return errno_error(ec.value(), "the management socket");
    }
    (void)parts.listening.release();
    return std::unique_ptr<manager::Management>(std::make_unique<Server>(std::move(acceptor), std::move(parts)));
}

} // namespace vtpmd::api
