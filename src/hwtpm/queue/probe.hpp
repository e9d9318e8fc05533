// Which family of TPM answers.
#pragma once

#include "hwtpm/device.hpp"
#include "tpm/version.hpp"

namespace vtpmd::hwtpm {

/// Claims the device, asks a harmless TPM 2.0 question: a TPM 2.0 answers with a 2.0 tag, whatever it says; a TPM 1.2
/// with TPM_TAG_RSP_COMMAND and an error.
[[nodiscard]] Result<TpmVersion> probe_family(TpmDevice& device);

} // namespace vtpmd::hwtpm
