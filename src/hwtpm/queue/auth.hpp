// Spellings of authorisation values on the command line. Pure.
#pragma once

#include "tpm/version.hpp"
#include "util/result.hpp"
#include "util/secret_bytes.hpp"

#include <string_view>

namespace vtpmd::hwtpm {

/// `well-known`: 20 zero bytes on TPM 1.2, empty on 2.0. `hash:HEX`: these bytes (20 on 1.2, up to 32 on 2.0).
/// `text:STR`: SHA-1 of STR on 1.2 (as tpm-tools make it), STR itself on 2.0 (as tpm2-tools do). Trailing zeros of a
/// 2.0 value are dropped, as the TPM does. Errc::usage names `option`, never the value.
[[nodiscard]] Result<SecretBytes> parse_auth(std::string_view option, std::string_view text, TpmVersion version);

} // namespace vtpmd::hwtpm
