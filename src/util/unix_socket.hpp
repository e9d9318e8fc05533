// What listeners ask of the operating system about their sockets and the peers there, and how they accept.
#pragma once

#include "util/clock.hpp"
#include "util/log.hpp"

#include <functional>
#include <optional>
#include <string>
#include <sys/types.h>
#include <vector>

namespace vtpmd {

/// A group of this host by its name, or by its number, which need not have a name.
[[nodiscard]] std::optional<gid_t> find_group(const std::string& name);
/// The same for a user.
[[nodiscard]] std::optional<uid_t> find_user(const std::string& name);
/// SO_PEERGROUPS (socket(7)); empty if the kernel does not say.
[[nodiscard]] std::vector<gid_t> peer_groups(int fd);
/// Whether the process at the other end, which called listen() or socketpair(), has ended: the kernel holds the socket
/// open for a while where it still works on what a killed process asked of a disk. False if it cannot be told (another
/// PID namespace).
[[nodiscard]] bool peer_has_ended(int fd);

/// bind(2) to a path of at most 107 characters, with this mode from the first moment on and, if one is given, this
/// group. Nothing is done by the path afterwards, which whoever owns its folder could have given to another file
/// meanwhile. Nobody can connect before listen(). An error is the errno.
struct SocketFile {
    std::string path;
    mode_t mode = 0600;
    std::optional<gid_t> group = std::nullopt;
};
[[nodiscard]] int bind_socket(int fd, const SocketFile& file);
/// The second half of it: the socket that is at the path, which is ours, to its group; by a descriptor, so that nobody
/// exchanges it.
[[nodiscard]] int give_socket(const SocketFile& file);

/// Who, besides root and this process's user, can put another socket in the place of that at `path`, by the rights to
/// its folder; for people. Empty: nobody can.
[[nodiscard]] std::string who_can_replace(const std::string& path);

/// Says it in the log.
void warn_of_folder(const Log& log, const std::string& path);

/// Where a Unix socket was bound; empty: it has no path that others can use.
[[nodiscard]] std::string socket_path(int fd);
/// There is a socket at `path`.
[[nodiscard]] bool is_socket(const std::string& path);
/// For descriptors that other people's code makes: no program that this process starts has them.
void close_on_exec(int fd);

/// Accepts until cancelled, and hands each connection to `admit`. What makes accept() fail for a while only (want of
/// descriptors or memory, a peer that left at once) is waited out, and logged as "accepting `whom`"; anything else is
/// thrown. The references outlive the task, and so does what `admit` has.
Task<> accept_each(asio::local::stream_protocol::acceptor& acceptor, Clock& clock, const Log& log, std::string whom,
                   std::function<void(asio::local::stream_protocol::socket)> admit);

} // namespace vtpmd
