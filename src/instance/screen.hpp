// What is refused before the TPM sees it: pure.
#pragma once

#include "tpm/header.hpp"

#include <optional>

namespace vtpmd::instance {

struct ScreenPolicy {
    TpmVersion version = TpmVersion::tpm20;
    bool maintenance_commands = false; ///< TPM 1.2 maintenance ordinals are let through
};

/// Why this command is refused; nullopt: it may go on to the TPM.
[[nodiscard]] std::optional<tpm::Refusal> screen(const ScreenPolicy& policy, ByteView command, std::uint8_t locality);

} // namespace vtpmd::instance
