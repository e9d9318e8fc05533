// What a command can do to the state that outlives a power cycle: pure. What can change it is refused, before it
// runs, while nothing can be made durable.
//
// A command that is not in the list of those that leave it alone is taken as one that changes it. What may change it
// besides, whatever the command: a failed authorisation that is counted, the first use of a counted authorisation, a
// command that is audited, the clock every 70 minutes. That shows when it has run (Engine::has_staged).
#pragma once

#include "tpm/version.hpp"
#include "util/bytes.hpp"

#include <cstdint>

namespace vtpmd::tpm {

enum class Effect : std::uint8_t {
    none,      ///< registers, sessions, loaded keys at most
    permanent, ///< NV, owner, keys, counters, the order of shutdown: can change them
};

[[nodiscard]] Effect effect(TpmVersion version, std::uint32_t code) noexcept;

/// The answer to a command that was refused because nothing can be made durable: TPM_RETRY (Main 2 section 16), which
/// asks for the same again later; TPM_RC_NV_UNAVAILABLE (Library 2 section 6.6.3).
[[nodiscard]] constexpr std::uint32_t not_durable_code(TpmVersion version) noexcept {
    return version == TpmVersion::tpm12 ? 0x800 : 0x923;
}

/// True if the command carries an authorisation, so that a wrong guess may be counted.
[[nodiscard]] bool is_authorised(TpmVersion version, ByteView command) noexcept;

} // namespace vtpmd::tpm
