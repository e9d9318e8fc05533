// The frame of the manager protocol, which is the frame of a TPM command.
//
//   offset  size  field
//        0     2  tag      0x01C1 request, 0x01C2 management request, 0x01C4 response; 0x00C1, 0x8001 a TPM command
//        2     4  size     of the whole frame, these 10 bytes included
//        6     4  ordinal of a request, status of a response
//       10     -  body
//
// Big-endian. A frame is 10 to frame_limit (4096) bytes long.
#pragma once

#include "proto/link/channel.hpp"

namespace vtpmd::proto {

namespace tag {
inline constexpr std::uint16_t request = 0x01C1;
inline constexpr std::uint16_t management = 0x01C2;
inline constexpr std::uint16_t response = 0x01C4;
inline constexpr std::uint16_t tpm12_command = 0x00C1;  ///< TPM_TAG_RQU_COMMAND
inline constexpr std::uint16_t tpm12_response = 0x00C4; ///< TPM_TAG_RSP_COMMAND
inline constexpr std::uint16_t tpm20_command = 0x8001;  ///< TPM_ST_NO_SESSIONS, commands and responses alike
} // namespace tag

struct FrameHeader {
    std::uint16_t tag = 0;
    std::uint32_t size = 0; ///< of the whole frame
    std::uint32_t code = 0; ///< ordinal or status
};

/// The header in the first header_size bytes of `data`. Errc::protocol if `data` is shorter, or the size
/// field is under header_size or over frame_limit. The tag is not judged.
[[nodiscard]] Result<FrameHeader> parse_header(ByteView data);

/// A whole frame: its header if the size field is also the length of `frame`, Errc::protocol otherwise.
[[nodiscard]] Result<FrameHeader> parse_frame(ByteView frame);

/// Header and body. The body must fit (frame_limit); a longer one is a broken invariant.
[[nodiscard]] Bytes make_frame(std::uint16_t tag, std::uint32_t code, ByteView body = {});

/// What follows the header of a whole frame.
[[nodiscard]] inline ByteView body_of(ByteView frame) noexcept { return frame.subspan(header_size); }

} // namespace vtpmd::proto
