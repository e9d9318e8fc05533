// What the control channel's commands do (the table is in control_codec.hpp).
#pragma once

#include "guest/control_codec.hpp"
#include "guest/tpm_service.hpp"

namespace vtpmd::guest {

/// What an endpoint's control channel sets for its data channel.
struct EndpointState {
    std::uint8_t locality = 0;    ///< of the commands on the data channel
    bool state_blobs = true;      ///< the peer is this host's device model: it may have the state in clear
    bool data_descriptor = false; ///< SET_DATAFD is served, by whoever has the connection (not by carry_out())
};

/// Carries out one request and says what to answer. SHUTDOWN only says yes: the caller sends that and then calls
/// TpmService::shutdown(). `peer`: the connection that it came over. A request that this run state does not allow is
/// TPM_BAD_ORDINAL.
Task<Bytes> carry_out(ControlRequest request, TpmService& service, EndpointState& endpoint, ControlPeer peer);

/// What GET_CAPABILITY says: the commands that are really served.
[[nodiscard]] std::uint32_t control_capabilities(const EndpointState& endpoint) noexcept;

} // namespace vtpmd::guest
