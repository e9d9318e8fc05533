// How an instance reaches its manager: first by the socket it inherited, then by path.
#pragma once

#include "instance/options.hpp"
#include "proto/client.hpp"

namespace vtpmd::instance {

/// The inherited descriptor, if there is one, is this process's from now on. Errc::usage: it is not a connected Unix socket.
[[nodiscard]] Result<proto::ManagerClient::Connect> manager_connector(ManagerAddress address,
                                                                      asio::any_io_executor executor, Clock& clock);

} // namespace vtpmd::instance
