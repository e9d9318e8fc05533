// Whose a TCP connection of this host is: there are no credentials on one, but the kernel tells the user of the socket
// at its other end (sock_diag(7)). Only while that socket is open: of one that was closed it says root.
#pragma once

#include "util/fd.hpp"
#include "util/result.hpp"

#include <set>
#include <sys/types.h>

namespace vtpmd::guest {

/// Who may connect.
struct TcpPeers {
    bool anyone = false;
    std::set<uid_t> users; ///< besides root and this process's own at its start
};

class TcpGate {
  public:
    /// Before the sandbox, in which no such socket can be made.
    explicit TcpGate(TcpPeers peers);
    /// Errc::permission: it is another user's; unavailable: it cannot be told.
    [[nodiscard]] Result<void> admits(int connection) const;

  private:
    TcpPeers peers_;
    UniqueFd diagnosis_; ///< none: anyone may
};

/// Of the socket at the other end of a TCP connection. Errc::unavailable.
[[nodiscard]] Result<uid_t> tcp_peer_user(int diagnosis, int connection);

} // namespace vtpmd::guest
