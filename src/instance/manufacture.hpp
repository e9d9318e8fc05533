// What a TPM's maker does before it is sold. A TPM 1.2 gets its endorsement key. A TPM 2.0 (which derives its own from a seed
// that libtpms makes) gets its PCR banks: libtpms makes it with all that it knows.
#pragma once

#include "engine/engine.hpp"
#include "util/worker.hpp"

#include <vector>

namespace vtpmd::instance {

/// TPM_CreateEndorsementKeyPair for RSA-2048. TPM Main part 3 section 14.1.
[[nodiscard]] Bytes create_ek_command(ByteView anti_replay);

/// Makes a fresh TPM and returns its state; the engine is powered off afterwards. `banks` (TPM_ALG_ID) are those that a
/// TPM 2.0 has from its first start on: Errc::unsupported if libtpms has not all of them. The key of a TPM 1.2 takes up to
/// some seconds on the worker. Errc::tpm: the TPM refuses a step.
Task<Result<EngineState>> manufacture(Engine& engine, Worker& worker, std::vector<std::uint16_t> banks);

} // namespace vtpmd::instance
