// The texts of --help, from the table.
#pragma once

#include "table.hpp"

#include <string>

namespace vtpmctl {

/// All commands, and the options of all of them.
[[nodiscard]] std::string help_of_all();
/// One command alone.
[[nodiscard]] std::string help_of(const Command& command);
/// The commands that begin with this word: "group".
[[nodiscard]] std::string help_of_family(std::string_view word);

} // namespace vtpmctl
