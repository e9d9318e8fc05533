// What an instance keeps inside its encrypted image: libtpms' blobs in an envelope of ours.
//
//   u32 magic "VTPM" (0x5654504D)   u16 version (1 to 3)   u8 TPM version (1: 1.2, 2: 2.0)   u8 0
//   u32 n, n bytes: permanent state (never empty)
//   u32 n, n bytes: save state (TPM_SaveState, TPM2_Shutdown(STATE)); 0: none
//   u32 n, n bytes: volatile state: registers that were stored (CMD_STORE_VOLATILE, a Xen guest's end), or given out; 0: none
//   version 2 and 3:
//   u32 n, n bytes: of a state that came from another host and may not run yet, what to show there (handover.hpp); 0: it may
//   version 3:
//   u32 n, n bytes: of the state that was given out last, and nothing has run since (life.hpp): u8 the power that it was given
//                   out of (1 on, 2 started, 3 shut down, 4 registers stored); if 2, the registers above are those, to be shut down
//                   in order unless that state comes back; then the SHA-256 of the permanent, the volatile and the saved state,
//                   32 bytes each
//
// Big-endian. Nothing follows. The lowest version that has room for what there is is written; programs that know lower ones only must
// not run the rest.
#pragma once

#include "engine/engine.hpp"
#include "instance/life.hpp"

namespace vtpmd::instance {

[[nodiscard]] SecretBytes encode_state(TpmVersion version, const EngineState& state);

/// Errc::version for an envelope of a later version, mismatch for another TPM family's, corrupt for anything else that it
/// cannot be.
[[nodiscard]] Result<EngineState> decode_state(TpmVersion version, ByteView blob);

/// EngineState::given_out; Errc::corrupt for anything that is not one.
[[nodiscard]] SecretBytes encode_given_out(const GivenOut& given);
[[nodiscard]] Result<GivenOut> decode_given_out(ByteView blob);

} // namespace vtpmd::instance
