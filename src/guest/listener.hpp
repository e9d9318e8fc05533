// Listening sockets for guests: made here, or passed by the service manager.
#pragma once

#include "util/fd.hpp"
#include "util/result.hpp"

#include <cstdint>
#include <string>

namespace vtpmd::guest {

/// A bound and listening socket; removes the file it made when it goes.
class Listener {
  public:
    Listener() = default;
    Listener(UniqueFd fd, std::string made_path, std::string name);
    Listener(Listener&& other) noexcept;
    Listener& operator=(Listener&&) noexcept = delete;
    Listener(const Listener&) = delete;
    Listener& operator=(const Listener&) = delete;
    ~Listener();

    [[nodiscard]] int fd() const noexcept { return fd_.get(); }
    /// The accept loop takes the descriptor; the file is still removed at the end.
    [[nodiscard]] UniqueFd take_fd() noexcept { return std::move(fd_); }
    /// For messages.
    [[nodiscard]] const std::string& name() const noexcept { return name_; }

  private:
    UniqueFd fd_;
    std::string made_path_; ///< empty: not ours to remove
    std::uint64_t inode_ = 0;
    std::string name_;
};

/// At `path`, mode 0600, or 0660 with `group`. A socket file that nobody listens on is replaced. Errc::busy: somebody
/// listens there; exists: it is not a socket; not_found, permission: the directory.
[[nodiscard]] Result<Listener> listen_unix(const std::string& path, const std::string& group);
/// On 127.0.0.1. Errc::busy: the port is in use.
[[nodiscard]] Result<Listener> listen_tcp(std::uint16_t port);
/// A socket that was passed. Errc::usage if it is not a listening stream socket, Unix or on a loopback address. With
/// `remove` the file of a Unix socket is removed at the end.
[[nodiscard]] Result<Listener> adopt_listener(UniqueFd fd, std::string name, bool remove = false);
/// Whether it is a connected stream socket.
[[nodiscard]] bool is_connection(int fd);
/// Whether the kernel says who is at the other end: a Unix socket.
[[nodiscard]] bool is_unix(int fd);

} // namespace vtpmd::guest
