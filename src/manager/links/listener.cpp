#include "manager/links/listener.hpp"

#include "util/unix_socket.hpp"

#include <algorithm>
#include <cerrno>
#include <poll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

namespace vtpmd::manager {

namespace {

constexpr const char* group_name = "vtpmd";
constexpr int backlog = 1024;

/// True once the peer has closed or the connection broke, even with bytes still to be read.
bool peer_hung_up(int fd) {
    pollfd p{.fd = fd, .events = POLLRDHUP, .revents = 0};
    return ::poll(&p, 1, 0) == 1 && (p.revents & (POLLRDHUP | POLLHUP | POLLERR)) != 0;
}

Result<sockaddr_un> address_of(const std::string& path) {
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    if (path.empty() || path.size() >= sizeof address.sun_path) {
        return make_error(Errc::usage,
                          "{}: a socket's path has 1 to {} characters, this one has {}; choose a shorter one", path,
                          sizeof address.sun_path - 1, path.size());
    }
    std::copy(path.begin(), path.end(), address.sun_path);
    return address;
}

/// The C interface's view of an address.
const sockaddr* generic(const sockaddr_un& a) { return reinterpret_cast<const sockaddr*>(&a); }

/// Removes a socket that nobody listens on.
Result<void> clear_stale(const std::string& path, const sockaddr_un& address) {
    struct stat st {};
    if (::lstat(path.c_str(), &st) != 0) {
        return errno == ENOENT ? Result<void>() : Result<void>(errno_error(errno, path));
    }
    if (!S_ISSOCK(st.st_mode)) {
        return make_error(Errc::exists, "{}: is there already and is not a socket", path);
    }
    UniqueFd probe(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
    if (!probe) {
        return errno_error(errno, path);
    }
    const bool connected = ::connect(probe.get(), generic(address), sizeof address) == 0;
    if (connected && peer_has_ended(probe.get())) {
        return make_error(Errc::lingering,
                          "{}: a process that has ended holds it still, its last requests are not done", path);
    }
    if (connected || errno != ECONNREFUSED) {
        return make_error(Errc::busy, "{}: another process listens there; is a manager running already?", path);
    }
    if (::unlink(path.c_str()) != 0) {
        return errno_error(errno, path);
    }
    return {};
}

} // namespace

bool is_allowed(const AllowedPeers& allowed, const proto::PeerCredentials& peer,
                std::span<const gid_t> supplementary_groups) noexcept {
    if (peer.uid == 0 || peer.uid == allowed.own_uid) {
        return true;
    }
    return allowed.group &&
           (peer.gid == *allowed.group || std::ranges::count(supplementary_groups, *allowed.group) != 0);
}

AllowedPeers allowed_peers() { return {.own_uid = ::geteuid(), .group = find_group(group_name)}; }

Result<UniqueFd> listen_unix(const std::string& path, SocketReach reach) {
    auto address = address_of(path);
    if (!address) {
        return address.error();
    }
    if (auto cleared = clear_stale(path, *address); !cleared) {
        return cleared.error();
    }
    UniqueFd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
    if (!fd) {
        return errno_error(errno, path);
    }
    SocketFile file{.path = path};
    if (reach != SocketReach::owner) {
        file.mode = reach == SocketReach::group ? 0660 : 0666;
    }
    if (int err = bind_socket(fd.get(), file)) {
        return errno_error(err, path);
    }
    // Not the manager's to give where it does not run as root.
    if (reach == SocketReach::group) {
        file.group = find_group(group_name);
    }
    if (file.group) {
        if (int err = give_socket(file); err != 0 && err != EPERM) {
            return errno_error(err, path);
        }
    }
    if (::listen(fd.get(), backlog) != 0) {
        return errno_error(errno, path);
    }
    return fd;
}

Result<std::unique_ptr<Listener>> Listener::make(UniqueFd listening, Options options, Parts parts) {
    int domain = 0;
    int accepts = 0;
    socklen_t size = sizeof domain;
    if (::getsockopt(listening.get(), SOL_SOCKET, SO_DOMAIN, &domain, &size) != 0 || domain != AF_UNIX ||
        ::getsockopt(listening.get(), SOL_SOCKET, SO_ACCEPTCONN, &accepts, &size) != 0 || accepts == 0) {
        return make_error(Errc::usage, "descriptor {} is not a listening Unix socket", listening.get());
    }
    Protocol::acceptor acceptor(parts.executor);
    error_code ec;
    acceptor.assign(Protocol(), listening.get(), ec);
    if (ec) {
        return errno_error(ec.value(), "the listening socket");
    }
    (void)listening.release();
    return std::unique_ptr<Listener>(new Listener(std::move(acceptor), std::move(options), std::move(parts)));
}

Listener::Listener(Protocol::acceptor acceptor, Options options, Parts parts)
    : options_(std::move(options))
    , parts_(std::move(parts))
    , acceptor_(std::move(acceptor)) {}

Task<> Listener::run() {
    return accept_each(acceptor_, parts_.clock, parts_.log, "vTPMs",
                       [this](Protocol::socket socket) { admit(std::move(socket)); });
}

void Listener::admit(Protocol::socket socket) {
    ++parts_.service.counters().connections;
    auto peer = proto::peer_credentials(socket);
    if (!peer) {
        refuse("a peer", peer.error().message);
        return;
    }
    std::string who = fmt::format("unix peer pid {} uid {}", peer->pid, peer->uid);
    int fd = socket.native_handle(); // open as long as the session asks
    const ProcessHandle process = peer_process(fd);
    const std::optional<Uuid> spawned = options_.spawned_for ? options_.spawned_for(process) : std::nullopt;
    if (!spawned && options_.only_spawned) {
        refuse(who, "was not spawned by this manager");
        return;
    }
    if (!spawned && !is_allowed(options_.allowed, *peer, peer_groups(fd))) {
        refuse(who, "is neither root nor in the group vtpmd");
        return;
    }
    if (parts_.service.link_count() >= options_.connection_limit) {
        refuse(who, "there are too many connections");
        return;
    }
    const bool any = peer->uid == 0 || peer->uid == options_.allowed.own_uid;
    const std::optional<uid_t> user = spawned || any ? std::nullopt : std::optional(peer->uid);
    if (user && !parts_.service.admits(*user)) {
        refuse(who, "its user has too many connections");
        return;
    }
    proto::StreamOptions stream{.peer = std::move(who)};
    auto channel = proto::make_stream_channel(std::move(socket), parts_.clock, std::move(stream));
    LinkInfo link{
        .made_for = spawned, .peer_gone = [fd] { return peer_hung_up(fd); }, .process = process, .user = user};
    std::string name = channel->peer();
    parts_.links.spawn(std::move(name), parts_.service.serve(std::move(channel), std::move(link)));
}

void Listener::refuse(const std::string& who, std::string_view why) {
    ++parts_.service.counters().connections_refused;
    parts_.log.warning_limited(refusals_, parts_.clock.now(), "{}: refused: {}", who, why);
}

void serve_spawned_link(const Listener::Parts& parts, UniqueFd connected, const Uuid& uuid, pid_t pid) {
    int fd = connected.get();
    auto channel = proto::adopt_unix(parts.executor, std::move(connected), parts.clock,
                                     fmt::format("instance pid {} of vTPM {}", pid, uuid));
    if (!channel) {
        parts.log.error("vTPM {}: {}", uuid, channel.error().message);
        return;
    }
    LinkInfo link{.made_for = uuid, .peer_gone = [fd] { return peer_hung_up(fd); }};
    std::string name = (*channel)->peer();
    parts.links.spawn(std::move(name), parts.service.serve(std::move(*channel), std::move(link)));
}

} // namespace vtpmd::manager
