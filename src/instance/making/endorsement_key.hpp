// The endorsement keys of a TPM 2.0: they are derived from a seed whenever they are asked for, always the same.
#pragma once

#include "engine/engine.hpp"
#include "proto/link/certify_messages.hpp"

namespace vtpmd::instance {

/// TPM2_CreatePrimary by the default template of the kind (TCG EK Credential Profile for TPM Family 2.0, templates L-1 and L-2): the
/// modulus, or x and y. RSA takes 50 ms, at times a second; the key does not stay loaded. Errc::permission: the endorsement hierarchy
/// has an authorisation, or is disabled; unavailable: the TPM has no room for one more object.
[[nodiscard]] Result<Bytes> make_endorsement_key_20(Engine& engine, proto::EkKind kind = proto::EkKind::rsa_2048);

} // namespace vtpmd::instance
