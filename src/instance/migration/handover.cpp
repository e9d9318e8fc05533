#include "instance/migration/handover.hpp"

#include "proto/link/messages.hpp"
#include "proto/link/stream_channel.hpp"
#include "util/deadline.hpp"
#include "util/unix_socket.hpp"
#include "util/wire.hpp"

namespace vtpmd::instance {

namespace {

constexpr Clock::duration question_limit = std::chrono::seconds(5);
constexpr Clock::duration retry_pause = std::chrono::milliseconds(200);
constexpr std::size_t peer_limit = 64;

bool may_be_cured(Errc code) {
    switch (code) {
    case Errc::not_found: // the socket; what the old host refuses comes as permission
    case Errc::unavailable:
    case Errc::closed:
    case Errc::timed_out:
    case Errc::io:
    case Errc::protocol:
        return true;
    default:
        return false;
    }
}

Task<Result<void>> ask(std::string path, TakeRequest request, Clock& clock) {
    auto channel = co_await proto::connect_unix(path, clock);
    if (!channel) {
        co_return std::move(channel).error();
    }
    const Bytes frame = encode_take(request);
    auto sent = co_await (*channel)->send(frame);
    if (!sent) {
        co_return sent;
    }
    auto answer = co_await (*channel)->receive();
    if (!answer) {
        co_return std::move(answer).error();
    }
    auto body = proto::parse_response(*answer);
    if (!body) {
        co_return std::move(body).error();
    }
    co_return Result<void>{};
}

} // namespace

store::Digest handover_token(const std::array<store::Digest, 3>& blobs) {
    return store::sha256({blobs[0], blobs[1], blobs[2]});
}

Bytes encode_take(const TakeRequest& request) {
    WireWriter body;
    body.bytes(request.uuid.bytes).bytes(request.token);
    return proto::make_frame(proto::tag::request, take_ordinal, body.view());
}

Result<TakeRequest> parse_take(ByteView frame) {
    auto header = proto::parse_frame(frame);
    if (!header) {
        return std::move(header).error();
    }
    WireReader in(frame.subspan(proto::header_size));
    TakeRequest out;
    const ByteView uuid = in.bytes(out.uuid.bytes.size());
    const ByteView token = in.bytes(out.token.size());
    if (header->tag != proto::tag::request || header->code != take_ordinal || !in.expect_end()) {
        return make_error(Errc::protocol, "ordinal 0x{:x} with {} bytes instead of a vTPM's UUID and token",
                          header->code, frame.size());
    }
    std::copy(uuid.begin(), uuid.end(), out.uuid.bytes.begin());
    std::copy(token.begin(), token.end(), out.token.begin());
    return out;
}

Task<Result<void>> take_over(std::string path, TakeRequest request, Clock& clock, Clock::duration patience) {
    const Clock::time_point until = clock.now() + patience;
    for (;;) {
        Task<Result<void>> question = ask(path, request, clock);
        auto said = co_await with_deadline(clock, patience, path, std::move(question));
        if (said || !may_be_cured(said.error().code) || clock.now() >= until) {
            co_return said;
        }
        (void)co_await clock.sleep_for(retry_pause);
    }
}

HandoverServer::HandoverServer(asio::any_io_executor executor, guest::Listener listener, Decide decide, Clock& clock,
                               const Log& log)
    : listener_(std::move(listener))
    , acceptor_(executor)
    , decide_(std::move(decide))
    , clock_(clock)
    , log_(log)
    , group_(executor, log) {}

void HandoverServer::start() { group_.spawn("handover", accept_loop()); }

Task<> HandoverServer::stop() {
    group_.cancel();
    co_await group_.join();
}

Task<> HandoverServer::accept_loop() {
    acceptor_.assign(asio::local::stream_protocol(), listener_.take_fd().release());
    return accept_each(acceptor_, clock_, log_, "at --handover",
                       [this](asio::local::stream_protocol::socket socket) { admit(std::move(socket)); });
}

void HandoverServer::admit(asio::local::stream_protocol::socket socket) {
    if (peers_ >= peer_limit) {
        log_.warning_limited(limit_, clock_.now(), "--handover: a connection over the limit of {} was closed",
                             peer_limit);
        return;
    }
    proto::StreamOptions options;
    options.peer = listener_.name();
    ++peers_;
    group_.spawn("a peer of --handover",
                 converse(proto::make_stream_channel(std::move(socket), clock_, std::move(options))));
}

Task<> HandoverServer::converse(std::unique_ptr<proto::Channel> channel) {
    co_await asio::this_coro::throw_if_cancelled(false);
    struct Leave {
        std::size_t& peers;
        ~Leave() { --peers; }
    } leave{peers_};
    auto answered = co_await answer_one(*channel);
    channel->close();
    if (answered || answered.error().code == Errc::canceled) {
        co_return;
    }
    log_.warning_limited(limit_, clock_.now(), "--handover: {}", answered.error().message);
}

Task<Result<void>> HandoverServer::answer_one(proto::Channel& channel) {
    auto frame = co_await with_deadline(clock_, question_limit, "the new host's question", channel.receive());
    if (!frame) {
        co_return std::move(frame).error();
    }
    auto request = parse_take(*frame);
    Result<void> said;
    if (request) {
        said = co_await decide_(std::move(*request));
    } else {
        said = std::move(request).error();
    }
    // Whatever the reason: nothing that asking again would cure.
    const Bytes answer =
        said ? proto::encode_success() : proto::encode_hello_error(Error{Errc::permission, said.error().message});
    auto sent = co_await with_deadline(clock_, question_limit, "the new host", channel.send(answer));
    co_return said ? std::move(sent) : std::move(said);
}

} // namespace vtpmd::instance
