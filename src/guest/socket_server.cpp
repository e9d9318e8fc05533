#include "guest/socket_server.hpp"

#include "tpm/header.hpp"
#include "util/secret_bytes.hpp"
#include "util/unix_socket.hpp"

#include <algorithm>
#include <sys/socket.h>

namespace vtpmd::guest {

namespace {

constexpr Clock::duration stop_step = std::chrono::milliseconds(5);

/// A TPM command's length, by its header.
Result<std::size_t> command_size(ByteView so_far) {
    if (so_far.size() < tpm::header_size) {
        return tpm::header_size;
    }
    const std::uint32_t size = tpm::peek_header(so_far).size;
    if (size < tpm::header_size || size > command_limit) {
        return make_error(Errc::too_large, "a command says it has {} bytes; {} to {} are taken", size, tpm::header_size,
                          command_limit);
    }
    return size;
}

bool out_of_resources(const error_code& ec) {
    return ec.value() == EMFILE || ec.value() == ENFILE || ec.value() == ENOBUFS || ec.value() == ENOMEM;
}

/// The connection went away before it was accepted, or a network error of its own: accept(2) says to go on.
bool peer_trouble(const error_code& ec) {
    switch (ec.value()) {
    case ECONNABORTED:
    case ECONNRESET:
    case EPROTO:
    case EINTR:
    case EAGAIN:
    case ENETDOWN:
    case EHOSTDOWN:
    case EHOSTUNREACH:
    case ENETUNREACH:
    case ENOPROTOOPT:
    case EPERM:
        return true;
    default:
        return false;
    }
}

int family_of(int fd) {
    int family = AF_UNIX;
    socklen_t size = sizeof family;
    (void)::getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &family, &size);
    return family;
}

} // namespace

Result<SocketListeners> open_listeners(const Endpoint& endpoint, const std::string& group) {
    auto pair = [](Result<Listener> commands, auto open_control) -> Result<SocketListeners> {
        if (!commands) {
            return std::move(commands).error();
        }
        Result<Listener> control = open_control();
        if (!control) {
            return std::move(control).error();
        }
        return SocketListeners{std::move(*commands), std::move(*control)};
    };
    if (const auto* q = std::get_if<QemuEndpoint>(&endpoint)) {
        auto control = listen_unix(q->path, group);
        if (!control) {
            return std::move(control).error();
        }
        return SocketListeners{std::nullopt, std::move(*control)};
    }
    if (const auto* u = std::get_if<UnixEndpoint>(&endpoint)) {
        return pair(listen_unix(u->path, group), [&] { return listen_unix(u->control_path(), group); });
    }
    if (const auto* t = std::get_if<TcpEndpoint>(&endpoint)) {
        return pair(listen_tcp(t->port), [&] { return listen_tcp(static_cast<std::uint16_t>(t->port + 1)); });
    }
    return make_error(Errc::unsupported, "{} is not a socket endpoint", to_string(endpoint));
}

void guard(SocketListeners& listeners, const TcpPeers& peers) {
    for (const auto* listener : {&listeners.commands, &listeners.control}) {
        if (*listener && family_of((*listener)->fd()) != AF_UNIX && !listeners.gate) {
            listeners.gate.emplace(peers);
        }
    }
}

SocketServer::SocketServer(asio::any_io_executor executor, SocketServerOptions options, SocketListeners listeners,
                           TpmService& service, Clock& clock, const Log& log)
    : executor_(executor)
    , options_(std::move(options))
    , service_(service)
    , clock_(clock)
    , log_(log)
    , listeners_(std::move(listeners))
    , accepting_(executor, log)
    , group_(executor, log) {
    auto acceptor_of = [&](Listener& listener) {
        UniqueFd fd = listener.take_fd();
        Acceptor acceptor(executor_);
        acceptor.assign(asio::generic::stream_protocol(family_of(fd.get()), 0), fd.get());
        (void)fd.release();
        return acceptor;
    };
    state_.state_blobs = options_.state_blobs;
    state_.data_descriptor = !listeners_.commands && !listeners_.commands_connection;
    if (listeners_.commands) {
        commands_.acceptor.emplace(acceptor_of(*listeners_.commands));
    }
    if (listeners_.control) {
        control_.acceptor.emplace(acceptor_of(*listeners_.control));
    }
}

SocketServer::~SocketServer() = default;

void SocketServer::start() {
    if (commands_.acceptor) {
        accepting_.spawn(options_.name, accept_loop(commands_, &command_size, &SocketServer::converse_commands));
    }
    if (control_.acceptor) {
        accepting_.spawn(options_.name + " control",
                         accept_loop(control_, &control_size, &SocketServer::converse_control));
    }
    admit_passed(commands_, std::move(listeners_.commands_connection), &command_size, &SocketServer::converse_commands);
    admit_passed(control_, std::move(listeners_.control_connection), &control_size, &SocketServer::converse_control);
}

Task<> SocketServer::stop(Clock::duration patience) {
    stopping_ = true;
    accepting_.cancel();
    co_await accepting_.join();
    // New connections are refused from here on, and the files are gone before the TPM is.
    commands_.acceptor.reset();
    control_.acceptor.reset();
    for (Port* port : {&commands_, &control_}) {
        for (GuestStream& stream : port->open) {
            stream.finish();
        }
    }
    const Clock::time_point until = clock_.now() + patience;
    while (!group_.empty() && clock_.now() < until) {
        (void)co_await clock_.sleep_for(stop_step);
    }
    group_.cancel();
    co_await group_.join();
}

Task<> SocketServer::accept_loop(Port& port, GuestStream::Measure measure, Converse converse) {
    co_await asio::this_coro::throw_if_cancelled(false);
    for (;;) {
        StreamSocket socket(executor_);
        auto [ec] = co_await port.acceptor->async_accept(socket, use_tuple);
        if (ec == asio::error::operation_aborted || stopping_) {
            co_return;
        }
        if (ec && out_of_resources(ec)) {
            warn(fmt::format("accepting: {}; trying again", ec.message()));
            (void)co_await clock_.sleep_for(options_.accept_pause);
            continue;
        }
        if (ec && peer_trouble(ec)) {
            continue;
        }
        if (ec) {
            log_.error("{}: accepting failed for good: {}", options_.name, ec.message());
            service_.shutdown(); // deaf is worse than down: a service manager starts us again
            co_return;
        }
        close_on_exec(socket.native_handle());
        if (auto may = listeners_.gate && family_of(socket.native_handle()) != AF_UNIX
                           ? listeners_.gate->admits(socket.native_handle())
                           : Result<void>{};
            !may) {
            ++counters_.strangers;
            warn(fmt::format("a connection was closed: {}", may.error().message));
            continue;
        }
        if (!has_place(port)) {
            ++counters_.over_limit;
            warn(fmt::format("a connection over the limit of {} was closed", options_.connection_limit));
            continue;
        }
        ++counters_.accepted;
        admit(port, std::move(socket), measure, converse);
    }
}

bool SocketServer::has_place(Port& port) {
    if (port.open.size() < options_.connection_limit) {
        return true;
    }
    const auto silent = std::ranges::find_if(port.open, &GuestStream::was_silent);
    // Those that have to go are there for a moment yet.
    if (silent == port.open.end() || port.open.size() >= 2 * options_.connection_limit) {
        return false;
    }
    silent->finish();
    warn(fmt::format("more than {} connections: the oldest that has never said anything was closed",
                     options_.connection_limit));
    return true;
}

void SocketServer::admit(Port& port, StreamSocket socket, GuestStream::Measure measure, Converse converse) {
    const auto descriptors = &port == &control_ && state_.data_descriptor ? GuestStream::Descriptors::taken
                                                                          : GuestStream::Descriptors::refused;
    auto place = port.open.emplace(port.open.end(), std::move(socket), clock_, measure, descriptors, &room_);
    group_.spawn(options_.name + " connection", connection(port, place, converse));
}

void SocketServer::admit_passed(Port& port, UniqueFd fd, GuestStream::Measure measure, Converse converse) {
    if (fd) {
        StreamSocket socket(executor_);
        socket.assign(asio::generic::stream_protocol(family_of(fd.get()), 0), fd.get());
        (void)fd.release();
        port.only_one = true;
        admit(port, std::move(socket), measure, converse);
    }
}

Task<> SocketServer::connection(Port& port, Place place, Converse converse) {
    struct Leave {
        Port& port;
        Place place;
        GuestStream*& data;
        ~Leave() {
            if (data == &*place) {
                data = nullptr;
            }
            port.open.erase(place);
        }
    } leave{port, place, data_};
    auto ended = co_await (this->*converse)(*place);
    if (&port == &control_ && !options_.sets_outlive_connections) {
        service_.control_gone(peer_of(*place));
    }
    if (device_model_ == &*place) {
        co_await device_model_gone();
    }
    if (options_.terminate && &port == &commands_ && !stopping_) {
        log_.info("{}: a connection for commands has ended; ending with it, as --terminate says", options_.name);
        service_.shutdown();
    } else if (port.only_one && !stopping_) {
        log_.info("{}: the connection that it was started with has ended; ending with it", options_.name);
        service_.shutdown();
    }
    if (ended || ended.error().code == Errc::closed || ended.error().code == Errc::canceled) {
        co_return;
    }
    if (ended.error().code == Errc::timed_out) {
        ++counters_.stalled;
    } else {
        ++counters_.malformed;
    }
    warn(ended.error().message);
}

Task<Result<void>> SocketServer::converse_commands(GuestStream& stream) {
    while (!stopping_) {
        auto command = co_await stream.receive();
        if (!command) {
            if (command.error().code == Errc::too_large) {
                // Where the next command would begin is unknown now: answer, and close.
                const Bytes refusal = tpm::error_response(service_.version(), tpm::Refusal::bad_size);
                (void)co_await stream.send(refusal);
            }
            co_return std::move(command).error();
        }
        ++counters_.commands;
        Bytes answer = co_await service_.execute(std::move(*command), state_.locality);
        auto sent = co_await stream.send(answer);
        cleanse(answer);
        if (!sent || options_.disconnect) {
            co_return sent;
        }
    }
    co_return Result<void>{};
}

Task<Result<void>> SocketServer::converse_control(GuestStream& stream) {
    while (!stopping_) {
        auto request = co_await stream.receive();
        if (!request) {
            if (request.error().code == Errc::too_large) {
                const Bytes refusal = control_answer(ControlResult::bad_parameter);
                (void)co_await stream.send(refusal);
            }
            co_return std::move(request).error();
        }
        ++counters_.control_requests;
        auto parsed = parse_control(*request);
        cleanse(*request);
        const bool shut_down = parsed && parsed->command == ControlCommand::shutdown;
        const std::size_t more = parsed ? parsed->more : 0;
        if (more == 0) {
            stream.drop_pending(); // see control_codec.hpp
        }
        Bytes answer;
        if (parsed) {
            answer = co_await control_request(stream, std::move(*parsed));
            if (more != 0) {
                auto all = co_await rest_of_hash_data(stream, more, std::move(answer));
                if (!all) {
                    co_return std::move(all).error();
                }
                answer = std::move(*all);
            }
        } else {
            warn(parsed.error().message);
            answer = control_answer(ControlResult::bad_ordinal);
        }
        auto sent = co_await stream.send(answer);
        cleanse(answer);
        if (shut_down) {
            log_.info("{}: told to shut down on the control channel", options_.name);
            service_.shutdown();
        }
        if (!sent) {
            co_return sent;
        }
    }
    co_return Result<void>{};
}

/// What follows of a HASH_DATA. It is read to its end also if it is refused: else nobody would know where the next
/// request begins.
Task<Result<Bytes>> SocketServer::rest_of_hash_data(GuestStream& stream, std::size_t more, Bytes answer) {
    const Bytes success = control_answer(ControlResult::success);
    while (more != 0) {
        auto piece = co_await stream.receive_more(std::min(more, hash_data_piece));
        if (!piece) {
            co_return std::move(piece).error();
        }
        more -= piece->size();
        if (answer == success) {
            ControlRequest next{.command = ControlCommand::hash_data, .data = std::move(*piece)};
            answer = co_await control_request(stream, std::move(next));
        }
    }
    stream.drop_pending();
    co_return answer;
}

ControlPeer SocketServer::peer_of(const GuestStream& stream) const {
    return {options_.sets_outlive_connections ? static_cast<const void*>(this) : &stream};
}

Task<Bytes> SocketServer::control_request(GuestStream& stream, ControlRequest request) {
    if (request.command == ControlCommand::set_datafd && state_.data_descriptor) {
        return take_data_socket(stream);
    }
    if (request.command == ControlCommand::get_stateblob) {
        return give_blob(stream, std::move(request));
    }
    return carry_out(std::move(request), service_, state_, peer_of(stream));
}

/// The TPM's secrets, in clear: whoever looks at the log sees who has them.
Task<Bytes> SocketServer::give_blob(GuestStream& stream, ControlRequest request) {
    const std::uint32_t type = request.type;
    const bool begins = request.offset == 0;
    Bytes answer = co_await carry_out(std::move(request), service_, state_, peer_of(stream));
    const Bytes success = control_answer(ControlResult::success);
    if (begins && answer.size() > success.size() &&
        std::ranges::equal(ByteView(answer).first(success.size()), success)) {
        log_.warning_limited(blobs_, clock_.now(), "{}: the TPM's state (blob {}) was given out, in clear, to {}",
                             options_.name, type, stream.peer());
    }
    co_return answer;
}

/// SET_DATAFD: the socket that came beside the request is where commands come from, as long as this connection lasts.
Task<Bytes> SocketServer::take_data_socket(GuestStream& stream) {
    UniqueFd fd = stream.take_descriptor();
    int type = 0;
    socklen_t size = sizeof type;
    if (!fd || ::getsockopt(fd.get(), SOL_SOCKET, SO_TYPE, &type, &size) != 0 || type != SOCK_STREAM ||
        family_of(fd.get()) != AF_UNIX) {
        warn("SET_DATAFD without a Unix stream socket beside it");
        co_return control_answer(ControlResult::bad_parameter);
    }
    while (device_model_leaving_ && !stopping_) { // the one before was killed a moment ago
        (void)co_await clock_.sleep_for(stop_step);
    }
    if (device_model_ != nullptr || stopping_) {
        warn("SET_DATAFD, but a device model is there already");
        co_return control_answer(ControlResult::io_error);
    }
    StreamSocket socket(executor_);
    error_code ec;
    (void)socket.assign(asio::generic::stream_protocol(AF_UNIX, 0), fd.get(), ec);
    if (ec) {
        warn(fmt::format("SET_DATAFD: {}", ec.message()));
        co_return control_answer(ControlResult::io_error);
    }
    (void)fd.release();
    auto place = commands_.open.emplace(commands_.open.end(), std::move(socket), clock_, &command_size,
                                        GuestStream::Descriptors::refused, &room_);
    device_model_ = &stream;
    data_ = &*place;
    state_.locality = 0;
    group_.spawn(options_.name + " data", connection(commands_, place, &SocketServer::converse_commands));
    co_return control_answer(ControlResult::success);
}

Task<> SocketServer::device_model_gone() {
    device_model_leaving_ = true;
    if (data_ != nullptr) {
        data_->finish();
    }
    if (!stopping_) {
        service_.cancel(); // nobody waits for its answer
        auto off = co_await service_.stop();
        if (off) {
            log_.info("{}: the device model is gone", options_.name);
        } else {
            warn(off.error().message);
        }
    }
    device_model_ = nullptr;
    device_model_leaving_ = false;
}

void SocketServer::warn(std::string_view what) {
    log_.warning_limited(limit_, clock_.now(), "{}: {}", options_.name, what);
}

} // namespace vtpmd::guest
