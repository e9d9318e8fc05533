// The ten bytes that every TPM command and response begins with, of both families, and the error response, which is
// nothing but those ten bytes.
#pragma once

#include "tpm/codes.hpp"
#include "tpm/version.hpp"
#include "util/bytes.hpp"
#include "util/result.hpp"

#include <cstdint>

namespace vtpmd::tpm {

/// Tag u16, size u32 (of the whole packet), ordinal / command code / response code u32, big-endian.
/// TPM 1.2 Main part 3 section 3; TPM 2.0 Library part 1 section 18.2 and 18.3.
inline constexpr std::size_t header_size = 10;
/// Longest command or response: the buffer of TIS, of xen's ring (4088) and of libtpms.
inline constexpr std::size_t packet_limit = 4096;

struct Header {
    std::uint16_t tag = 0;
    std::uint32_t size = 0;
    std::uint32_t code = 0; ///< ordinal or command code in a command, return code in a response
    friend bool operator==(const Header&, const Header&) = default;
};

/// Reads the header and checks that the size in it is the packet's. Errc::protocol, too_large.
[[nodiscard]] Result<Header> parse_header(ByteView packet);
/// Like parse_header(), but for a peek at a packet that may be malformed: zeros for what is not there.
[[nodiscard]] Header peek_header(ByteView packet) noexcept;

/// True if `tag` begins a command of that family (with or without authorisation).
[[nodiscard]] bool is_command_tag(TpmVersion version, std::uint16_t tag) noexcept;

/// Why a command is refused before (or instead of) reaching the TPM; each family has its code for it.
enum class Refusal : std::uint8_t {
    failure,      ///< TPM_FAIL / TPM_RC_FAILURE
    bad_size,     ///< TPM_BAD_PARAM_SIZE / TPM_RC_COMMAND_SIZE
    bad_tag,      ///< TPM_BADTAG / TPM_RC_BAD_TAG
    bad_ordinal,  ///< TPM_BAD_ORDINAL / TPM_RC_COMMAND_CODE
    disabled,     ///< TPM_DISABLED_CMD / TPM_RC_COMMAND_CODE
    bad_locality, ///< TPM_BAD_LOCALITY / TPM_RC_LOCALITY
    not_started,  ///< TPM_INVALID_POSTINIT / TPM_RC_INITIALIZE
    retry,        ///< TPM_RETRY / TPM_RC_RETRY: the same command can be sent again
    canceled,     ///< TPM_FAIL / TPM_RC_CANCELED
};
[[nodiscard]] std::uint32_t refusal_code(TpmVersion version, Refusal reason) noexcept;

/// A ten-byte response with this return code. TPM 2.0's TPM_RC_BAD_TAG comes with TPM 1.2's tag, as part 3 section 5.2
/// has it: whoever sent that tag may speak 1.2 only.
[[nodiscard]] Bytes error_response(TpmVersion version, std::uint32_t code);
[[nodiscard]] Bytes error_response(TpmVersion version, Refusal reason);

/// True if the packet is a header whose size is the packet's, with a response tag of that family.
[[nodiscard]] bool is_well_formed_response(TpmVersion version, ByteView packet) noexcept;

} // namespace vtpmd::tpm
