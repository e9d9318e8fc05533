// What stands on the command line or in files, as the library has it. What cannot be read ends the program.
#pragma once

#include "options.hpp"
#include "tpm/pcr_selection.hpp"
#include "util/result.hpp"
#include "util/uuid.hpp"

#include <fmt/format.h>
#include <sysexits.h>

namespace vtpmctl {

/// The value, or the end of the program with this status and what the value is for.
template <typename T>
T must(vtpmd::Result<T> result, std::string_view what, int status = EX_USAGE) {
    if (!result) {
        fail(status, fmt::format("{}: {}", what, result.error().message));
    }
    return std::move(*result);
}

/// BANK:INDEX=HEX, each.
[[nodiscard]] std::vector<vtpmd::hwtpm::PcrValue> pcrs_of(const Options& o, const std::string& name);
/// DER SubjectPublicKeyInfo of the PEM file that an option names.
[[nodiscard]] vtpmd::Bytes public_key_of(const Options& o, const std::string& name, std::string_view what);

} // namespace vtpmctl
