// How a guest reaches an instance, as --guest names it.
#pragma once

#include "util/result.hpp"

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <variant>

namespace vtpmd::guest {

/// socket:unix:PATH. Commands at PATH, control at PATH.ctrl.
struct UnixEndpoint {
    std::string path;
    [[nodiscard]] std::string control_path() const { return path + ".ctrl"; }
    friend bool operator==(const UnixEndpoint&, const UnixEndpoint&) = default;
};

/// socket:tcp:[127.0.0.1:]PORT. Commands at PORT, control at PORT+1, on the loopback interface only: there is no
/// authentication on these connections.
struct TcpEndpoint {
    std::uint16_t port = 0;
    friend bool operator==(const TcpEndpoint&, const TcpEndpoint&) = default;
};

/// qemu:PATH. The control channel at PATH; the device model (QEMU, cloud-hypervisor) hands over the data descriptor on
/// it.
struct QemuEndpoint {
    std::string path;
    friend bool operator==(const QemuEndpoint&, const QemuEndpoint&) = default;
};

/// xen:DOMID[/HANDLE].
struct XenEndpoint {
    std::uint16_t domid = 0;
    std::uint32_t handle = 0;
    friend bool operator==(const XenEndpoint&, const XenEndpoint&) = default;
};

/// vtpmx. The host's kernel: a /dev/tpmN.
struct VtpmxEndpoint {
    friend bool operator==(const VtpmxEndpoint&, const VtpmxEndpoint&) = default;
};

/// fd:[commands=N][,control=M][,remove]. Sockets that whoever starts the instance has opened: each listens, or is one
/// connection, with whose end the instance ends. With control alone it is a device model's channel, as qemu:PATH. With
/// `remove` the files of listening Unix sockets are removed at the end.
struct PassedEndpoint {
    std::optional<int> commands;
    std::optional<int> control;
    bool remove = false;
    friend bool operator==(const PassedEndpoint&, const PassedEndpoint&) = default;
};

using Endpoint = std::variant<UnixEndpoint, TcpEndpoint, QemuEndpoint, XenEndpoint, VtpmxEndpoint, PassedEndpoint>;

/// Errc::usage with what is wrong and what is possible.
[[nodiscard]] Result<Endpoint> parse_endpoint(std::string_view text);
[[nodiscard]] std::string to_string(const Endpoint& endpoint);

} // namespace vtpmd::guest
