// How long the drivers of guests wait for an answer: pure.
#pragma once

#include "tpm/version.hpp"

#include <cstdint>

namespace vtpmd::tpm {

/// True if the driver of a common guest waits at least 30 s for the answer to this command. Linux gives a TPM 2.0 two
/// minutes for each command but those with a time of their own in the PC Client Platform TPM Profile (20 ms to 2 s;
/// drivers/char/tpm/tpm2-cmd.c); a TPM 1.2 is waited for as long as it asks for, and libtpms asks for 50 s and more
/// (TPM_CAP_PROP_DURATION).
[[nodiscard]] bool driver_is_patient(TpmVersion version, std::uint32_t code) noexcept;

} // namespace vtpmd::tpm
