// What both listeners ask of the operating system about their sockets and the peers there.
#pragma once

#include "util/asio.hpp"

#include <optional>
#include <string>
#include <sys/types.h>
#include <vector>

namespace vtpmd {

/// A group of this host by its name.
[[nodiscard]] std::optional<gid_t> find_group(const std::string& name);
/// SO_PEERGROUPS (socket(7)); empty if the kernel does not say.
[[nodiscard]] std::vector<gid_t> peer_groups(int fd);
/// Whether the process at the other end, which called listen() or socketpair(), has ended: the kernel holds the socket open for a
/// while where it still works on what a killed process asked of a disk. False if it cannot be told (another PID namespace).
[[nodiscard]] bool peer_has_ended(int fd);
/// What makes accept() fail for a while only: want of descriptors or memory, a peer that left at once.
[[nodiscard]] bool is_accept_shortage(const error_code& ec);

} // namespace vtpmd
