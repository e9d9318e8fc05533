// The endorsement key of a TPM 2.0: it is derived from a seed whenever it is asked for, always the same.
#pragma once

#include "engine/engine.hpp"

namespace vtpmd::instance {

/// TPM2_CreatePrimary by the default RSA-2048 template (TCG EK Credential Profile for TPM 2.0, template L-1); the modulus. Takes
/// up to some seconds; the key does not stay loaded. Errc::permission: the endorsement hierarchy has an authorisation, or
/// is disabled; unavailable: the TPM has no room for one more object.
[[nodiscard]] Result<Bytes> make_endorsement_key_20(Engine& engine);

} // namespace vtpmd::instance
