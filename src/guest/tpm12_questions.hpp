// What a TPM 2.0 on a Xen ring answers to TPM 1.2 commands. xen-tpmfront knows only TPM 1.2: before it lets anybody use
// /dev/tpm0 it asks for timeouts and durations (TPM_GetCapability), and a TPM 2.0 that is to work behind it must
// answer. Pure.
#pragma once

#include "util/bytes.hpp"

#include <optional>

namespace vtpmd::guest {

/// nullopt: not a TPM 1.2 command; it is the TPM's. Else the answer: TPM_CAP_PROP_TIS_TIMEOUT and TPM_CAP_PROP_DURATION
/// (Main part 2 section 21.2) in microseconds, long enough for a TPM that writes to a disk; every other command gets
/// TPM_BAD_ORDINAL, in TPM 1.2's form.
[[nodiscard]] std::optional<Bytes> answer_tpm12_question(ByteView command);

} // namespace vtpmd::guest
