#include "http_client.hpp"

#include <algorithm>
#include <array>
#include <boost/beast/core.hpp>
#include <boost/beast/http.hpp>
#include <boost/json.hpp>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <fmt/format.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sysexits.h>
#include <unistd.h>

namespace vtpmctl {

namespace {

namespace beast = boost::beast;
namespace http = boost::beast::http;
namespace json = boost::json;
using boost::system::error_code;

constexpr int patience_seconds = 120;

/// A Unix socket as Beast reads and writes it. No event loop: vtpmctl works where io_uring is forbidden, too.
class UnixStream {
  public:
    explicit UnixStream(const std::string& path)
        : fd_(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
        sockaddr_un address{};
        address.sun_family = AF_UNIX;
        if (path.empty() || path.size() >= sizeof address.sun_path) {
            fail(EX_USAGE,
                 fmt::format("--socket={}: a path of 1 to {} bytes is needed", path, sizeof address.sun_path - 1));
        }
        std::copy(path.begin(), path.end(), address.sun_path);
        if (fd_ < 0 || ::connect(fd_, reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0) {
            refuse(path, errno);
        }
    }
    UnixStream(const UnixStream&) = delete;
    UnixStream& operator=(const UnixStream&) = delete;
    ~UnixStream() { ::close(fd_); }

    template <typename Buffers>
    std::size_t write_some(const Buffers& buffers, error_code& ec) {
        std::array<iovec, 16> pieces{};
        msghdr message{};
        message.msg_iov = pieces.data();
        for (const boost::asio::const_buffer b : beast::buffers_range_ref(buffers)) {
            if (message.msg_iovlen < pieces.size()) {
                pieces[message.msg_iovlen++] = {.iov_base = const_cast<void*>(b.data()), .iov_len = b.size()};
            }
        }
        return done(::sendmsg(fd_, &message, MSG_NOSIGNAL), ec);
    }
    template <typename Buffers>
    std::size_t read_some(const Buffers& buffers, error_code& ec) {
        for (const boost::asio::mutable_buffer b : beast::buffers_range_ref(buffers)) {
            if (b.size() == 0) {
                continue;
            }
            if (const int error = wait_for_answer(); error != 0) {
                ec.assign(error, boost::system::system_category());
                return 0;
            }
            const std::size_t n = done(::recv(fd_, b.data(), b.size(), 0), ec);
            if (!ec && n == 0) {
                ec = boost::asio::error::eof;
            }
            return n;
        }
        ec = {};
        return 0;
    }
    /// Beast's idea of a stream has these, too.
    template <typename Buffers>
    std::size_t write_some(const Buffers& buffers) {
        error_code ec;
        const std::size_t n = write_some(buffers, ec);
        return ec ? throw boost::system::system_error(ec) : n;
    }
    template <typename Buffers>
    std::size_t read_some(const Buffers& buffers) {
        error_code ec;
        const std::size_t n = read_some(buffers, ec);
        return ec ? throw boost::system::system_error(ec) : n;
    }

  private:
    static std::size_t done(ssize_t n, error_code& ec) {
        ec = {};
        if (n < 0) {
            ec.assign(errno, boost::system::system_category());
            return 0;
        }
        return static_cast<std::size_t>(n);
    }
    /// What takes long (a step of the TPM's counter, the end of an instance) says on a terminal that it goes on.
    /// Returns an errno; 0: there is something to read.
    [[nodiscard]] int wait_for_answer() const {
        const bool terminal = ::isatty(STDERR_FILENO) != 0;
        pollfd readable{.fd = fd_, .events = POLLIN, .revents = 0};
        int seconds = 0;
        int ready = 0;
        while (seconds < patience_seconds && (ready = ::poll(&readable, 1, 1000)) == 0) {
            ++seconds;
            if (terminal) {
                std::fprintf(stderr, "\rwaiting for the manager: %d s", seconds);
            }
        }
        const int error = ready > 0 ? 0 : ready < 0 ? errno : ETIMEDOUT;
        if (terminal && seconds != 0) {
            std::fputs("\r\x1b[K", stderr);
        }
        return error;
    }
    [[noreturn]] static void refuse(const std::string& path, int error) {
        if (error == EACCES || error == EPERM) {
            fail(EX_NOPERM, fmt::format("{}: you may not manage this host; ask as root or as a member of the manager's "
                                        "--api-group",
                                        path));
        }
        fail(EX_UNAVAILABLE,
             fmt::format("{}: {}; start the manager (systemctl start vtpmd-manager), or name its socket with --socket",
                         path, std::strerror(error)));
    }
    int fd_;
};

int exit_of(unsigned status, std::string_view code) {
    if (code == "exists") {
        return EX_CANTCREAT;
    }
    switch (status) {
    case 400:
    case 405:
    case 413:
        return EX_USAGE;
    case 403:
        return EX_NOPERM;
    case 404:
        return EX_NOINPUT;
    case 409:
    case 504:
        return EX_TEMPFAIL;
    case 410:
        return EX_DATAERR;
    case 501:
    case 502:
    case 503:
        return EX_UNAVAILABLE;
    case 507:
        return EX_IOERR;
    default:
        return EX_SOFTWARE;
    }
}

[[noreturn]] void refuse_answer(unsigned status, const std::string& body) {
    error_code ec;
    const json::value v = json::parse(body, ec);
    if (ec || !v.is_object() || !v.get_object().contains("message")) {
        fail(exit_of(status, ""), fmt::format("the manager answered {}; see its log", status));
    }
    const json::object& e = v.get_object();
    auto get = [&e](const char* name) { return std::string(e.at(name).as_string().c_str()); };
    fail(exit_of(status, get("code")), fmt::format("{}\n  what to do: {}", get("message"), get("action")));
}

class Exchange {
  public:
    Exchange(const Options& o, std::string_view method, std::string_view target, const std::string& body)
        : path_(o.socket)
        , stream_(o.socket) {
        parser_.body_limit(boost::none);
        http::request<http::string_body> request;
        request.method_string(method);
        request.target(target);
        request.set(http::field::host, "localhost");
        request.set(http::field::connection, "close");
        request.set(http::field::content_type, "application/json");
        request.body() = body;
        request.prepare_payload();
        request.content_length(body.size());
        error_code ec;
        (void)http::write(stream_, request, ec); // if that fails, there may be an answer all the same
        (void)http::read_header(stream_, buffer_, parser_, ec);
        check(ec);
    }
    [[nodiscard]] unsigned status() const { return parser_.get().result_int(); }
    [[nodiscard]] std::uint64_t length() const { return parser_.content_length().value_or(0); }

    /// `take` gets the body as it comes. Returns how much of it came.
    std::uint64_t read(const std::function<void(std::string_view)>& take) {
        std::uint64_t size = 0;
        std::array<char, 65536> chunk{};
        while (!parser_.is_done()) {
            parser_.get().body().data = chunk.data();
            parser_.get().body().size = chunk.size();
            error_code ec;
            (void)http::read_some(stream_, buffer_, parser_, ec);
            const std::size_t n = chunk.size() - parser_.get().body().size;
            take({chunk.data(), n});
            size += n;
            if (ec == http::error::partial_message) {
                break;
            }
            if (ec != http::error::need_buffer) {
                check(ec);
            }
        }
        return size;
    }
    std::string read_all() {
        std::string body;
        check_length(read([&body](std::string_view piece) { body += piece; }));
        return body;
    }
    void check_length(std::uint64_t size) const {
        if (size != length()) {
            fail(EX_UNAVAILABLE, fmt::format("the manager sent {} of {} bytes; nothing is kept of them: see its log, "
                                             "and try again",
                                             size, length()));
        }
    }

  private:
    void check(const error_code& ec) const {
        if (!ec) {
            return;
        }
        if (ec.category() == boost::system::system_category()) {
            fail(EX_UNAVAILABLE, fmt::format("{}: no answer from the manager ({}); see its log: journalctl -u "
                                             "vtpmd-manager",
                                             path_, ec.message()));
        }
        fail(EX_PROTOCOL, fmt::format("{}: what answers there is not vtpmd; check --socket", path_));
    }

    const std::string& path_;
    UnixStream stream_;
    beast::flat_buffer buffer_;
    http::response_parser<http::buffer_body> parser_;
};

} // namespace

std::string ask(const Options& o, std::string_view method, std::string_view target, const std::string& body) {
    Exchange exchange(o, method, target, body);
    std::string answer = exchange.read_all();
    if (exchange.status() >= 300) {
        refuse_answer(exchange.status(), answer);
    }
    return answer;
}

void fetch(const Options& o, std::string_view method, std::string_view target, const Sink& sink) {
    Exchange exchange(o, method, target, "");
    if (exchange.status() >= 300) {
        refuse_answer(exchange.status(), exchange.read_all());
    }
    const std::uint64_t length = exchange.length();
    exchange.check_length(exchange.read([&](std::string_view piece) { sink(piece, length); }));
}

std::string encoded(std::string_view text) {
    std::string out;
    for (const char c : text) {
        const bool plain = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '-';
        out += plain ? std::string(1, c) : fmt::format("%{:02X}", static_cast<unsigned char>(c));
    }
    return out;
}

} // namespace vtpmctl
