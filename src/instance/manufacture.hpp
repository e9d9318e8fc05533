// What a TPM's maker does before it is sold: a TPM 1.2 gets its endorsement key. (A TPM 2.0 derives its own from a seed that
// libtpms makes.)
#pragma once

#include "engine/engine.hpp"
#include "util/worker.hpp"

namespace vtpmd::instance {

/// TPM_CreateEndorsementKeyPair for RSA-2048. TPM Main part 3 section 14.1.
[[nodiscard]] Bytes create_ek_command(ByteView anti_replay);

/// Makes a fresh TPM 1.2 with an endorsement key and returns its state; the engine is powered off afterwards. The key takes
/// up to some seconds on the worker.
Task<Result<EngineState>> manufacture_tpm12(Engine& engine, Worker& worker);

} // namespace vtpmd::instance
