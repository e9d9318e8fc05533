// What an instance keeps inside its encrypted image: libtpms' blobs in an envelope of ours.
//
//   u32 magic "VTPM" (0x5654504D)   u16 version (1)   u8 TPM version (1: 1.2, 2: 2.0)   u8 0
//   u32 n, n bytes: permanent state (never empty)
//   u32 n, n bytes: save state (TPM_SaveState, TPM2_Shutdown(STATE)); 0: none
//   u32 n, n bytes: volatile state (CMD_STORE_VOLATILE); 0: none
//
// Big-endian. Nothing follows.
#pragma once

#include "engine/engine.hpp"

namespace vtpmd::instance {

[[nodiscard]] SecretBytes encode_state(TpmVersion version, const EngineState& state);

/// Errc::version for an envelope of a later version, mismatch for another TPM family's, corrupt for anything else that it
/// cannot be.
[[nodiscard]] Result<EngineState> decode_state(TpmVersion version, ByteView blob);

} // namespace vtpmd::instance
