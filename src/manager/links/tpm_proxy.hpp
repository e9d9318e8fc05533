// The few TPM commands that a vTPM may pass to the hardware TPM: randomness and PCR values, in either family's words, whatever
// family the hardware is of. The command is parsed and the answer written here; the hardware never sees a vTPM's bytes.
//
//   TPM_GetRandom    Main part 3 section 13.6    at most 2048 bytes an answer
//   TPM_PcrRead      Main part 3 section 16.2    the SHA-1 bank; TPM_BADINDEX without one
//   TPM_Extend       Main part 3 section 16.1    the SHA-1 bank, for the administrator's vTPM only
//   TPM2_GetRandom   Library part 3 section 16.1 at most 64 bytes an answer
//   TPM2_PCR_Read    Library part 3 section 22.4 at most 8 values an answer; the update counter is always 0
#pragma once

#include "hwtpm/root_of_trust.hpp"

namespace vtpmd::manager {

enum class PeerRight { vtpm, administrator };

/// Always a well-formed TPM response in the command's family; anything but those is TPM_BAD_ORDINAL or
/// TPM_RC_COMMAND_CODE, as is TPM_Extend for a vTPM like any other. An error is the hardware's.
Task<Result<Bytes>> run_tpm_command(hwtpm::RootOfTrust& root, Bytes command, PeerRight right);

} // namespace vtpmd::manager
