// A channel carries whole TPM-style frames (u16 tag, u32 size, u32 ordinal or status, body; big-endian) between a vTPM
// and its manager. There are two kinds: a stream socket and a Xen ring.
#pragma once

#include "util/asio.hpp"
#include "util/bytes.hpp"
#include "util/result.hpp"

#include <string>

namespace vtpmd::proto {

/// Longest frame either side sends or takes (a ring page carries 4088).
inline constexpr std::size_t frame_limit = 4096;
inline constexpr std::size_t header_size = 10;

class Channel {
  public:
    virtual ~Channel() = default;
    /// One whole frame, header included, at most frame_limit bytes. Errc::closed at a clean end between frames,
    /// Errc::protocol for a size under 10 or over the limit, or an end inside a frame.
    virtual Task<Result<Bytes>> receive() = 0;
    virtual Task<Result<void>> send(ByteView frame) = 0;
    /// Ends pending and later calls with Errc::closed.
    virtual void close() = 0;
    /// For messages: "unix peer pid 12 uid 0", "domain 3 handle 0".
    [[nodiscard]] virtual std::string peer() const = 0;
};

} // namespace vtpmd::proto
