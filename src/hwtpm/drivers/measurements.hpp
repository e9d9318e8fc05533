// The measured boot of an embedded TPM, simulated: what firmware would have extended before we started. Pure.
//
//   # PCR  digest (the length says the bank: 40 hexadecimal digits sha1, 64 sha256, 96 sha384, 128 sha512)
//   0 5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a   # firmware
// Lines are extended in their order.
#pragma once

#include "tpm/commands.hpp"

#include <string_view>
#include <vector>

namespace vtpmd::hwtpm {

struct Measurement {
    unsigned pcr = 0;
    tpm::HashValue value;
};
/// Errc::usage names the line.
[[nodiscard]] Result<std::vector<Measurement>> parse_measurements(std::string_view text);

} // namespace vtpmd::hwtpm
