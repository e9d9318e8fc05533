// Commands of a TPM 2.0 by which its clock (TPMS_CLOCK_INFO.clock) is set or told, Library part 1 section 36.
#pragma once

#include "tpm/codes.hpp"

namespace vtpmd::tpm {

/// Set by TPM2_ClockSet; told by TPM2_ReadClock, by everything that is attested, and, bit by bit, by
/// TPM2_PolicyCounterTimer.
[[nodiscard]] constexpr bool tells_clock(std::uint32_t code) noexcept {
    constexpr std::uint32_t clock_set = 0x128;
    constexpr std::uint32_t policy_counter_timer = 0x16D;
    constexpr std::uint32_t read_clock = 0x181;
    switch (code) {
    case clock_set:
    case policy_counter_timer:
    case read_clock:
    case cc::get_time:
    case cc::quote:
    case cc::certify:
    case cc::certify_creation:
    case cc::nv_certify:
    case cc::get_session_audit_digest:
    case cc::get_command_audit_digest:
        return true;
    default:
        return false;
    }
}

} // namespace vtpmd::tpm
