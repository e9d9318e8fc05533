// What the specifications call their commands, for people and figures.
#pragma once

#include "tpm/version.hpp"

#include <cstdint>
#include <string_view>

namespace vtpmd::tpm {

/// "TPM_GetRandom" (Main part 3), "TPM2_GetRandom" (Library part 2, section 6.5.2), and the vendor commands that ours
/// have; empty: no command has this code in that family.
[[nodiscard]] std::string_view command_name(TpmVersion version, std::uint32_t code) noexcept;

} // namespace vtpmd::tpm
