// How an instance reaches its manager: first by the socket it inherited, then by path.
#pragma once

#include "instance/options.hpp"
#include "proto/link/client.hpp"

#include <optional>

namespace vtpmd::instance {

/// The inherited descriptor, if there is one, is this process's from now on. Errc::usage: it is not a connected Unix socket.
[[nodiscard]] Result<proto::ManagerClient::Connect> manager_connector(ManagerAddress address,
                                                                      asio::any_io_executor executor, Clock& clock);

/// How it makes the connection that the manager asks on; nullopt: there is no path to one (only what was inherited, or a ring).
[[nodiscard]] std::optional<proto::ManagerClient::Connect> question_connector(const ManagerAddress& address,
                                                                              Clock& clock);

} // namespace vtpmd::instance
