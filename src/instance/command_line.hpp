// The instance's options as a table, and what their text means.
#pragma once

#include "instance/options.hpp"
#include "util/command_line.hpp"

#include <span>

namespace vtpmd::instance {

[[nodiscard]] std::span<const OptionSpec> option_specs();
/// Errc::usage names the option, what was found and what is expected. Takes over sockets passed by the service manager.
[[nodiscard]] Result<InstanceOptions> parse_options(const CommandLine& line);

} // namespace vtpmd::instance
