#include "guest/listener.hpp"

#include "util/unix_socket.hpp"

#include <arpa/inet.h>
#include <cerrno>
#include <cstring>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

namespace vtpmd::guest {

namespace {

constexpr int backlog = 128;

std::uint64_t inode_of(const std::string& path) {
    struct stat st {};
    return ::lstat(path.c_str(), &st) == 0 ? st.st_ino : 0;
}

sockaddr_un unix_address(const std::string& path) {
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    std::strncpy(address.sun_path, path.c_str(), sizeof address.sun_path - 1);
    return address;
}

const sockaddr* generic(const sockaddr_un& a) { return reinterpret_cast<const sockaddr*>(&a); }
const sockaddr* generic(const sockaddr_in& a) { return reinterpret_cast<const sockaddr*>(&a); }

/// The path is taken: by a socket that nobody listens on any more (removed), or by something to be told of.
Result<void> clear_stale(const std::string& path) {
    struct stat st {};
    if (::lstat(path.c_str(), &st) != 0) {
        return errno == ENOENT ? Result<void>{} : Result<void>(errno_error(errno, path));
    }
    if (!S_ISSOCK(st.st_mode)) {
        return make_error(Errc::exists, "{}: there is a file that is not a socket; remove it or choose another path",
                          path);
    }
    const UniqueFd probe(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
    const sockaddr_un address = unix_address(path);
    const bool connected = ::connect(probe.get(), generic(address), sizeof address) == 0;
    if (connected && peer_has_ended(probe.get())) {
        return make_error(Errc::lingering,
                          "{}: a process that has ended holds it still, its last requests are not done", path);
    }
    if (connected || errno == EAGAIN) {
        return make_error(
            Errc::busy,
            "{}: address in use: another process listens there; stop it or choose another path with --guest", path);
    }
    if (errno != ECONNREFUSED) {
        return errno_error(errno, path);
    }
    if (::unlink(path.c_str()) != 0 && errno != ENOENT) {
        return errno_error(errno, path + ": removing a stale socket");
    }
    return {};
}

/// -1 if the descriptor is no socket.
int option_of(int fd, int option) {
    int value = -1;
    socklen_t size = sizeof value;
    return ::getsockopt(fd, SOL_SOCKET, option, &value, &size) == 0 ? value : -1;
}

bool is_of_this_host(const sockaddr_storage& address) {
    if (address.ss_family == AF_INET) {
        sockaddr_in in{};
        std::memcpy(&in, &address, sizeof in);
        return (ntohl(in.sin_addr.s_addr) >> 24) == 127;
    }
    if (address.ss_family == AF_INET6) {
        sockaddr_in6 in{};
        std::memcpy(&in, &address, sizeof in);
        return IN6_IS_ADDR_LOOPBACK(&in.sin6_addr);
    }
    return address.ss_family == AF_UNIX;
}

} // namespace

Listener::Listener(UniqueFd fd, std::string made_path, std::string name)
    : fd_(std::move(fd))
    , made_path_(std::move(made_path))
    , inode_(made_path_.empty() ? 0 : inode_of(made_path_))
    , name_(std::move(name)) {}

Listener::Listener(Listener&& other) noexcept
    : fd_(std::move(other.fd_))
    , made_path_(std::exchange(other.made_path_, {}))
    , inode_(std::exchange(other.inode_, 0))
    , name_(std::move(other.name_)) {}

Listener::~Listener() {
    // Only our own file: another process may have replaced it.
    if (!made_path_.empty() && inode_ != 0 && inode_of(made_path_) == inode_) {
        (void)::unlink(made_path_.c_str());
    }
}

Result<Listener> listen_unix(const std::string& path, const std::string& group) {
    UniqueFd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
    if (!fd) {
        return errno_error(errno, path);
    }
    if (path.size() >= sizeof(sockaddr_un::sun_path)) {
        return make_error(Errc::usage, "{}: a socket's path has at most {} characters", path,
                          sizeof(sockaddr_un::sun_path) - 1);
    }
    if (auto free = clear_stale(path); !free) {
        return std::move(free).error();
    }
    SocketFile file{.path = path};
    if (!group.empty()) {
        file.mode = 0660;
        file.group = find_group(group);
        if (!file.group) {
            return make_error(Errc::usage, "there is no group '{}' to give {} to", group, path);
        }
    }
    if (const int err = bind_socket(fd.get(), {.path = path, .mode = file.mode})) {
        Error e = errno_error(err, path);
        if (err == ENOENT) {
            e.message += " (its directory must be there)";
        }
        return e;
    }
    Listener listener(std::move(fd), path, path);
    if (file.group) {
        if (const int err = give_socket(file)) {
            return errno_error(err, path + ": giving it to group " + group);
        }
    }
    if (::listen(listener.fd(), backlog) != 0) {
        return errno_error(errno, path);
    }
    return listener;
}

Result<Listener> listen_tcp(std::uint16_t port) {
    const std::string name = fmt::format("127.0.0.1:{}", port);
    UniqueFd fd(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    const int on = 1;
    if (!fd || ::setsockopt(fd.get(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof on) != 0) {
        return errno_error(errno, name);
    }
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(port);
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (::bind(fd.get(), generic(address), sizeof address) != 0 || ::listen(fd.get(), backlog) != 0) {
        const int err = errno;
        if (err == EADDRINUSE) {
            return make_error(Errc::busy,
                              "{}: address in use: choose another port with --guest (`ss -ltnp` shows whose it is)",
                              name);
        }
        return errno_error(err, name);
    }
    return Listener(std::move(fd), {}, name);
}

Result<Listener> adopt_listener(UniqueFd fd, std::string name, bool remove) {
    if (option_of(fd.get(), SO_ACCEPTCONN) != 1 || option_of(fd.get(), SO_TYPE) != SOCK_STREAM) {
        return make_error(Errc::usage, "{}: the descriptor passed is not a listening stream socket", name);
    }
    sockaddr_storage address{};
    socklen_t length = sizeof address;
    if (::getsockname(fd.get(), reinterpret_cast<sockaddr*>(&address), &length) != 0) {
        return errno_error(errno, name);
    }
    if (!is_of_this_host(address)) {
        return make_error(Errc::usage, "{}: the socket passed is neither a Unix socket nor TCP on a loopback address",
                          name);
    }
    std::string path;
    if (remove && address.ss_family == AF_UNIX) {
        sockaddr_un un{};
        std::memcpy(&un, &address, sizeof un);
        path.assign(un.sun_path, ::strnlen(un.sun_path, sizeof un.sun_path)); // empty: it has no file
    }
    return Listener(std::move(fd), std::move(path), std::move(name));
}

bool is_connection(int fd) {
    sockaddr_storage peer{};
    socklen_t length = sizeof peer;
    return option_of(fd, SO_TYPE) == SOCK_STREAM && option_of(fd, SO_ACCEPTCONN) == 0 &&
           ::getpeername(fd, reinterpret_cast<sockaddr*>(&peer), &length) == 0;
}

bool is_unix(int fd) { return option_of(fd, SO_DOMAIN) == AF_UNIX; }

} // namespace vtpmd::guest
