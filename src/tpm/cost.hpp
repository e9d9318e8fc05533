// How long a command may take, which decides where it runs: a fast one on the loop thread, because a hop to another
// thread costs more than the command does; a long one on the worker thread, where it can be cancelled.
#pragma once

#include "tpm/version.hpp"
#include "util/bytes.hpp"

#include <cstdint>

namespace vtpmd::tpm {

enum class Cost : std::uint8_t {
    fast,  ///< 0.2-50 us: hashes, HMACs, NV, sessions, a public RSA operation
    long_, ///< makes or uses a private key, tests itself, or can wrap a command that does: 0.1 ms to seconds
};

/// By ordinal or command code alone; a code that is not known is fast, since the TPM refuses it at once.
[[nodiscard]] Cost cost(TpmVersion version, std::uint32_t code) noexcept;
/// By the whole command: TPM2_StartAuthSession is long only if its salt must be decrypted. A malformed command is fast.
[[nodiscard]] Cost cost(TpmVersion version, ByteView command) noexcept;

/// The five TPM 1.2 ordinals of the maintenance feature (TPM_ORD_CreateMaintenanceArchive and its like, 0x2C-0x30), by
/// which a manufacturer could copy a TPM's secrets: refused unless the operator says otherwise.
/// TPM Main part 3 section 12.
[[nodiscard]] bool is_maintenance_ordinal(std::uint32_t ordinal) noexcept;

} // namespace vtpmd::tpm
