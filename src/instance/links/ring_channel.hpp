// The way to a manager in another domain: the front end of a ring, `device/vtpm/HANDLE` of the own domain.
#pragma once

#include "proto/link/client.hpp"
#include "util/clock.hpp"
#include "xen/fabric.hpp"

namespace vtpmd::instance {

/// Connects anew each time: what was under way on an earlier ring is given up with it. `fabric` outlives the channels.
[[nodiscard]] proto::ManagerClient::Connect ring_connector(xen::Fabric& fabric, std::uint32_t handle);

} // namespace vtpmd::instance
