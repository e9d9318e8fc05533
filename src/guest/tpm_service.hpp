// What every way in for a guest (sockets, rings, QEMU's control channel) needs of the TPM behind it. Implemented by
// instance/; faked in tests.
#pragma once

#include "tpm/version.hpp"
#include "util/asio.hpp"
#include "util/bytes.hpp"
#include "util/result.hpp"

#include <cstdint>
#include <optional>
#include <string>

namespace vtpmd::guest {

/// Longest TPM command or response (libtpms' buffer).
inline constexpr std::size_t command_limit = 4096;

/// A connection of a control channel, for as long as it lasts. The default is nobody's.
struct ControlPeer {
    const void* id = nullptr;
    friend bool operator==(const ControlPeer&, const ControlPeer&) = default;
};

class TpmService {
  public:
    virtual ~TpmService() = default;

    /// One command (already private memory, at most command_limit bytes), one answer: always a well-formed TPM
    /// response, an error response if it must be. What the command changed is durable before this returns. Concurrent
    /// calls queue.
    virtual Task<Bytes> execute(Bytes command, std::uint8_t locality) = 0;
    /// Asks the running command to end early.
    virtual void cancel() = 0;

    [[nodiscard]] virtual TpmVersion version() const = 0;
    [[nodiscard]] virtual bool running() const = 0;
    /// Another host has this TPM now: it does not run here any more.
    [[nodiscard]] virtual bool handed_over() const { return false; }

    /// Power cycle (CMD_INIT): PCRs reset, then TPM_Startup as the mode says; or, where volatile state was stored or
    /// set, back into that. As with swtpm `delete_volatile` says what becomes of stored state afterwards: here it is
    /// used up either way.
    /// `peer`: whose state is to be used, if it has set one.
    virtual Task<Result<void>> init(bool delete_volatile, ControlPeer peer) = 0;
    /// Power off (CMD_STOP, a device model that is gone): commands get an error until init(). A TPM in use is shut down
    /// in order.
    virtual Task<Result<void>> stop() = 0;
    /// Ends the instance in good order (CMD_SHUTDOWN).
    virtual void shutdown() = 0;

    virtual Task<Result<bool>> established() = 0;
    virtual Task<Result<void>> reset_established(std::uint8_t locality) = 0;
    virtual Task<Result<void>> hash_start() = 0;
    virtual Task<Result<void>> hash_data(Bytes data) = 0;
    virtual Task<Result<void>> hash_end() = 0;
    virtual Task<Result<void>> store_volatile() = 0;
    struct BufferSize {
        std::uint32_t size = 0, min = 0, max = 0;
    };
    /// Sets the buffer size that the TPM tells the guest of, while it is off (0: only asks).
    virtual Task<Result<BufferSize>> buffer_size(std::uint32_t wanted) = 0;
    /// TPMLIB_GetInfo's JSON.
    virtual Task<std::string> info(std::uint64_t flags) = 0;

    /// State blobs of the control channel: 1 permanent, 2 volatile, 3 save-state.
    virtual Task<Result<Bytes>> get_blob(std::uint32_t type) = 0;
    /// What is set is its connection's: it stands beside the TPM's own state until an INIT with it has succeeded.
    virtual Task<Result<void>> set_blob(std::uint32_t type, Bytes blob, ControlPeer peer) = 0;
    /// The connection has ended: what it has set is forgotten.
    virtual void control_gone(ControlPeer peer) = 0;
};

} // namespace vtpmd::guest
