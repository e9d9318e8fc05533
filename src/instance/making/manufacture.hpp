// What a TPM's maker does before it is sold. A TPM 1.2 gets its endorsement key. A TPM 2.0 (which derives its own from a seed
// that libtpms makes) gets its PCR banks: libtpms makes it with all that it knows. Both get their keys' certificates
// (ek_certificates.hpp), so that the first state that is saved has all of it.
#pragma once

#include "engine/engine.hpp"
#include "proto/link/client.hpp"
#include "util/log.hpp"
#include "util/worker.hpp"

#include <vector>

namespace vtpmd::instance {

/// TPM_CreateEndorsementKeyPair for RSA-2048. TPM Main part 3 section 14.1.
[[nodiscard]] Bytes create_ek_command(ByteView anti_replay);

struct NewTpm {
    /// PCR banks (TPM_ALG_ID) that a TPM 2.0 has from its first start on; none: all that libtpms has.
    std::vector<std::uint16_t> banks;
    /// Who certifies its endorsement keys; nullptr: nobody. Outlives the task.
    proto::ManagerClient* certifier = nullptr;
};

/// Makes a fresh TPM and returns its state; the engine is powered off afterwards, however it ends. Keys of RSA are made
/// on the worker, that of a TPM 1.2 in up to some seconds. A manager that gives no certificates (Errc::unsupported) is logged, and the TPM goes without; any other
/// refusal of its is the error. Errc::unsupported: libtpms has not all of the banks; tpm: the TPM refuses a step.
Task<Result<EngineState>> manufacture(Engine& engine, Worker& worker, NewTpm wanted, const Log& log);

} // namespace vtpmd::instance
