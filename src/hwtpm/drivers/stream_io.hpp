// Whole reads and writes on a non-blocking descriptor with one deadline, for the hardware thread. A TPM's response
// frames
// itself: its size stands in the header.
#pragma once

#include "util/bytes.hpp"
#include "util/result.hpp"

#include <chrono>

namespace vtpmd::hwtpm {

using Deadline = std::chrono::steady_clock::time_point;

/// poll() until `events` or the deadline: Errc::timed_out. Hang-ups are left for the read or write to tell.
Result<void> wait_ready(int fd, short events, Deadline deadline, std::string_view what);
Result<void> write_all(int fd, ByteView data, Deadline deadline, std::string_view what);
/// Exactly into.size() bytes. Errc::closed at the end of the stream.
Result<void> read_all(int fd, MutByteView into, Deadline deadline, std::string_view what);
/// Header, then the rest; Errc::protocol for a size under 10 or over tpm_buffer_limit.
Result<Bytes> read_response(int fd, Deadline deadline, std::string_view what);
/// True if something can be read now: bytes that nobody asked for, or the peer's hang-up.
bool readable_now(int fd) noexcept;

} // namespace vtpmd::hwtpm
