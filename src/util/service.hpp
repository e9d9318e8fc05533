// The service manager's side of a daemon: sd_notify(3) and sd_listen_fds(3). Without systemd they do nothing.
#pragma once

#include "util/fd.hpp"

#include <string>
#include <vector>

namespace vtpmd {

/// READY=1, with a status text for `systemctl status`.
void notify_ready(const std::string& status);
/// STATUS= alone: what goes wrong.
void notify_status(const std::string& status);
/// STOPPING=1.
void notify_stopping();

struct PassedSocket {
    UniqueFd fd;
    std::string name; ///< FileDescriptorName= of the socket unit; "unknown" if it has none
};
/// The listening sockets that were passed, once; they are close-on-exec afterwards. Empty without socket activation.
[[nodiscard]] std::vector<PassedSocket> take_passed_sockets();

} // namespace vtpmd
