#include "util/unix_socket.hpp"

#include "util/fd.hpp"
#include "util/text.hpp"

#include <algorithm>
#include <cerrno>
#include <fcntl.h>
#include <filesystem>
#include <grp.h>
#include <limits>
#include <poll.h>
#include <pwd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

namespace vtpmd {

namespace {

constexpr auto shortage_pause = std::chrono::milliseconds(200);

bool is_shortage(const error_code& ec) {
    return ec == asio::error::no_descriptors || ec == asio::error::no_buffer_space || ec == asio::error::no_memory ||
           ec.value() == ENFILE || ec.value() == ECONNABORTED;
}

} // namespace

std::optional<gid_t> find_group(const std::string& name) {
    struct group entry {};
    struct group* found = nullptr;
    std::vector<char> buffer(16384);
    if (::getgrnam_r(name.c_str(), &entry, buffer.data(), buffer.size(), &found) == 0 && found != nullptr) {
        return found->gr_gid;
    }
    const auto number = parse_number(name, std::numeric_limits<gid_t>::max() - 1);
    return number ? std::optional(static_cast<gid_t>(*number)) : std::nullopt;
}

std::optional<uid_t> find_user(const std::string& name) {
    struct passwd entry {};
    struct passwd* found = nullptr;
    std::vector<char> buffer(16384);
    if (::getpwnam_r(name.c_str(), &entry, buffer.data(), buffer.size(), &found) == 0 && found != nullptr) {
        return found->pw_uid;
    }
    const auto number = parse_number(name, std::numeric_limits<uid_t>::max() - 1);
    return number ? std::optional(static_cast<uid_t>(*number)) : std::nullopt;
}

std::vector<gid_t> peer_groups(int fd) {
    std::vector<gid_t> groups(64);
    for (int attempt = 0; attempt < 2; ++attempt) {
        auto size = static_cast<socklen_t>(groups.size() * sizeof(gid_t));
        if (::getsockopt(fd, SOL_SOCKET, SO_PEERGROUPS, groups.data(), &size) == 0) {
            groups.resize(size / sizeof(gid_t));
            return groups;
        }
        if (errno != ERANGE) {
            break;
        }
        groups.resize(size / sizeof(gid_t));
    }
    return {};
}

bool peer_has_ended(int fd) {
    ucred peer{};
    socklen_t size = sizeof peer;
    if (::getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &size) != 0 || peer.pid <= 0) {
        return false;
    }
    const UniqueFd process(static_cast<int>(::syscall(SYS_pidfd_open, peer.pid, 0)));
    if (!process) {
        return errno == ESRCH;
    }
    pollfd ended{
        .fd = process.get(), .events = POLLIN, .revents = 0}; // readable once it has, also before it was waited for
    return ::poll(&ended, 1, 0) == 1;
}

int give_socket(const SocketFile& file) {
    const std::filesystem::path path(file.path);
    const std::string parent = path.has_parent_path() ? path.parent_path().string() : ".";
    const UniqueFd folder(::open(parent.c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC));
    const UniqueFd made(folder ? ::openat(folder.get(), path.filename().c_str(), O_PATH | O_NOFOLLOW | O_CLOEXEC) : -1);
    struct stat st {};
    if (!made || ::fstat(made.get(), &st) != 0) {
        return errno;
    }
    if (!S_ISSOCK(st.st_mode) || st.st_uid != ::geteuid()) {
        return EPERM; // somebody has put another one there
    }
    return ::fchownat(made.get(), "", static_cast<uid_t>(-1), *file.group, AT_EMPTY_PATH) == 0 ? 0 : errno;
}

int bind_socket(int fd, const SocketFile& file) {
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    if (file.path.size() >= sizeof address.sun_path) {
        return ENAMETOOLONG;
    }
    std::ranges::copy(file.path, address.sun_path);
    const mode_t before = ::umask(0777 & ~file.mode);
    const int bound = ::bind(fd, reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0 ? 0 : errno;
    ::umask(before);
    return bound == 0 && file.group ? give_socket(file) : bound;
}

std::string who_can_replace(const std::string& path) {
    const std::filesystem::path of(path);
    const std::string parent = of.has_parent_path() ? of.parent_path().string() : ".";
    struct stat st {};
    if (::stat(parent.c_str(), &st) != 0) {
        return {};
    }
    if (st.st_uid != 0 && st.st_uid != ::geteuid()) {
        return fmt::format("user {}, whose folder {} is,", st.st_uid, parent);
    }
    const bool own_only = (st.st_mode & S_ISVTX) != 0; // as in /tmp
    if ((st.st_mode & S_IWOTH) != 0 && !own_only) {
        return fmt::format("everybody, who may write into {},", parent);
    }
    if ((st.st_mode & S_IWGRP) != 0 && !own_only && st.st_gid != 0) {
        return fmt::format("group {}, which may write into {},", st.st_gid, parent);
    }
    return {};
}

void warn_of_folder(const Log& log, const std::string& path) {
    if (const std::string who = who_can_replace(path); !who.empty()) {
        log.warning("{}: {} can put another socket in its place", path, who);
    }
}

std::string socket_path(int fd) {
    sockaddr_un address{};
    socklen_t size = sizeof address;
    if (::getsockname(fd, reinterpret_cast<sockaddr*>(&address), &size) != 0 || address.sun_family != AF_UNIX ||
        size <= offsetof(sockaddr_un, sun_path) || address.sun_path[0] != '/') {
        return {};
    }
    const std::string_view path(address.sun_path, size - offsetof(sockaddr_un, sun_path));
    return std::string(path.substr(0, path.find('\0')));
}

bool is_socket(const std::string& path) {
    struct stat st {};
    return ::lstat(path.c_str(), &st) == 0 && S_ISSOCK(st.st_mode);
}

void close_on_exec(int fd) { (void)::fcntl(fd, F_SETFD, FD_CLOEXEC); }

Task<> accept_each(asio::local::stream_protocol::acceptor& acceptor, Clock& clock, const Log& log, std::string whom,
                   std::function<void(asio::local::stream_protocol::socket)> admit) {
    RateLimit shortages;
    for (;;) {
        auto [ec, socket] = co_await acceptor.async_accept(use_tuple);
        if (ec == asio::error::operation_aborted) {
            co_return;
        }
        if (is_shortage(ec)) {
            log.error_limited(shortages, clock.now(), "accepting {}: {}; waiting", whom, ec.message());
            if (auto stopped = co_await clock.sleep_for(shortage_pause)) {
                co_return;
            }
            continue;
        }
        if (ec) {
            throw boost::system::system_error(ec, "accepting " + whom);
        }
        close_on_exec(socket.native_handle()); // Asio calls accept(2)
        admit(std::move(socket));
    }
}

} // namespace vtpmd
