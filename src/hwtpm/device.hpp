// A TPM as the hardware thread sees it: one command, one response, nothing else. The drivers (swtpm's socket, the
// kernel's device, the registers, libtpms in the process) stand behind it, and so do the decorators that retry, record
// or misbehave.
//
// A device is opened and then used by one thread at a time; only cancel() may come from another.
#pragma once

#include "util/bytes.hpp"
#include "util/result.hpp"

#include <chrono>
#include <memory>
#include <string>

namespace vtpmd::hwtpm {

inline constexpr std::size_t tpm_header_size =
    10; ///< tag, size, code (TPM 1.2 part 2 section 6.1; TPM 2.0 part 1 section 18)
inline constexpr std::size_t tpm_buffer_limit = 4096; ///< largest command or response of any part we know

class TpmDevice {
  public:
    virtual ~TpmDevice() = default;

    /// For messages: "swtpm:unix:/run/tpm.sock".
    [[nodiscard]] virtual std::string description() const = 0;

    /// One whole command, one whole response whose size field is right. An error means that no answer came
    /// (Errc::timed_out, closed, io, protocol): whether the command was executed is unknown, sessions and transient
    /// objects may be gone, and the owner of the device starts it anew.
    virtual Result<Bytes> transmit(ByteView command, std::chrono::milliseconds limit) = 0;

    /// Before and after a batch of commands: requests and relinquishes the locality, finds out whether the TPM is still
    /// the one it was. Errc::closed: it was reset or the connection to it was lost since the last batch; call restart.
    virtual Result<void> claim() { return {}; }
    virtual void release() noexcept {}

    /// Brings a lost TPM back (connects again); its transient state is gone.
    virtual Result<void> restart() { return {}; }

    /// Asks a command in transmit() to end early. From any thread.
    virtual void cancel() noexcept {}

    /// True if nobody but us talks to this TPM while we hold it: left-over handles are ours to flush, and it gets a
    /// TPM2_Shutdown when we leave.
    [[nodiscard]] virtual bool exclusive() const = 0;
};

} // namespace vtpmd::hwtpm
