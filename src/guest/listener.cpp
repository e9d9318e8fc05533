#include "guest/listener.hpp"

#include "util/unix_socket.hpp"

#include <arpa/inet.h>
#include <cerrno>
#include <cstring>
#include <grp.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <vector>

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

Result<void> give_to_group(const std::string& path, const std::string& group) {
    std::vector<char> buffer(16384);
    ::group entry{};
    ::group* found = nullptr;
    const int rc = ::getgrnam_r(group.c_str(), &entry, buffer.data(), buffer.size(), &found);
    if (found == nullptr) {
        return make_error(Errc::usage, "there is no group '{}' to give {} to{}", group, path,
                          rc == 0 ? "" : std::string(": ") + std::strerror(rc));
    }
    if (::chown(path.c_str(), static_cast<uid_t>(-1), found->gr_gid) != 0 || ::chmod(path.c_str(), 0660) != 0) {
        return errno_error(errno, path + ": giving it to group " + group);
    }
    return {};
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
    const sockaddr_un address = unix_address(path);
    const mode_t before = ::umask(0177); // never, not even for a moment, open to others
    const int bound = ::bind(fd.get(), generic(address), sizeof address);
    const int err = errno;
    ::umask(before);
    if (bound != 0) {
        Error e = errno_error(err, path);
        if (err == ENOENT) {
            e.message += " (its directory must be there)";
        }
        return e;
    }
    Listener listener(std::move(fd), path, path);
    if (!group.empty()) {
        if (auto given = give_to_group(path, group); !given) {
            return std::move(given).error();
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

Result<Listener> adopt_listener(UniqueFd fd, std::string name) {
    int listening = 0;
    int type = 0;
    socklen_t size = sizeof listening;
    if (::getsockopt(fd.get(), SOL_SOCKET, SO_ACCEPTCONN, &listening, &size) != 0 || listening == 0 ||
        ::getsockopt(fd.get(), SOL_SOCKET, SO_TYPE, &type, &size) != 0 || type != SOCK_STREAM) {
        return make_error(Errc::usage, "{}: the descriptor passed is not a listening stream socket", name);
    }
    sockaddr_storage address{};
    socklen_t length = sizeof address;
    if (::getsockname(fd.get(), reinterpret_cast<sockaddr*>(&address), &length) != 0) {
        return errno_error(errno, name);
    }
    if (address.ss_family == AF_INET) {
        sockaddr_in in{};
        std::memcpy(&in, &address, sizeof in);
        if ((ntohl(in.sin_addr.s_addr) >> 24) != 127) {
            return make_error(Errc::usage, "{}: a TCP socket passed for a guest must listen on a loopback address",
                              name);
        }
    } else if (address.ss_family != AF_UNIX) {
        return make_error(Errc::usage, "{}: the socket passed is neither a Unix socket nor TCP on 127.0.0.1", name);
    }
    return Listener(std::move(fd), {}, std::move(name));
}

} // namespace vtpmd::guest
