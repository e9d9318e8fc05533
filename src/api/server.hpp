// HTTP/1.1 on a Unix socket. Who may do what is decided by the kernel's word on the peer, when it connects: root, the
// manager's own user and the members of one group everything; those of another group only GET; others nothing.
//
// A request has `request_deadline` from one's end to the next one's, so that slow senders and idle connections go; each
// kind of peer may have so many connections, so that readers cannot keep root out.
#pragma once

#include "manager/management/control.hpp"

namespace vtpmd::api {

inline constexpr Clock::duration request_deadline = std::chrono::seconds(30);
inline constexpr Clock::duration response_deadline = std::chrono::seconds(30);
inline constexpr std::size_t full_connections = 512;
inline constexpr std::size_t read_connections = 128;

/// Errc::usage if the descriptor is not a listening Unix socket.
[[nodiscard]] Result<std::unique_ptr<manager::Management>> make_management(manager::ManagementParts parts);

} // namespace vtpmd::api
