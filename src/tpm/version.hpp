// The two TPM families.
#pragma once

#include <cstdint>
#include <string_view>

namespace vtpmd {

enum class TpmVersion : std::uint8_t { tpm12 = 1, tpm20 = 2 };

[[nodiscard]] constexpr std::string_view to_string(TpmVersion v) noexcept {
    return v == TpmVersion::tpm12 ? "1.2" : "2.0";
}

} // namespace vtpmd
