// Gives a TPM's PCRs values from outside before its guest's first command (--hwinitpcrs): the host's measurements, as
// the hardware TPM has them, become the vTPM's. No TPM command can do that, so the running TPM's volatile state is
// edited: the PCR is first extended with something random, so that its value is found in the blob beyond doubt, then
// the value is replaced and the TPM started again with the edited blob. Nothing permanent is touched.
#pragma once

#include "engine/engine.hpp"
#include "util/bytes.hpp"
#include "util/result.hpp"

#include <cstdint>
#include <span>

namespace vtpmd {

/// One PCR of one bank, as it shall be.
struct PcrPreset {
    std::uint16_t alg = 0; ///< TPM_ALG_ID of the bank; TPM 1.2 has TPM_ALG_SHA1 only
    unsigned index = 0;    ///< 0-23
    Bytes digest;          ///< as long as the algorithm's digest
};

/// The engine runs and has had its TPM_Startup / TPM2_Startup; afterwards it runs with the PCRs set and needs no other
/// Startup. Presets for banks that this TPM has not are left out; returns how many were set. TPM 2.0's PCR update
/// counter steps as for one extend of each PCR named. Sessions and keys that are loaded survive. Errc::usage: an index
/// or digest size that makes no sense, the same PCR twice, or a bank unknown to this program; Errc::tpm: the TPM
/// refuses the extend (not started, or this PCR cannot be extended); Errc::corrupt: a value is not in the volatile
/// state exactly once. After an error the TPM runs, or is powered off if it would not start again: its PCRs are then
/// not to be trusted, so start it anew.
[[nodiscard]] Result<unsigned> preset_pcrs(Engine& engine, std::span<const PcrPreset> presets);

} // namespace vtpmd
