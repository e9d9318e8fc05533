// The command line against the table: each command takes its own options and no other's.
#pragma once

#include "table.hpp"

#include <string>
#include <string_view>
#include <variant>
#include <vector>

namespace vtpmctl {

struct Call {
    const Command* command;
    Options options;
};

/// What to do, or a text to print. What makes no sense ends the program, with what was probably meant.
[[nodiscard]] std::variant<Call, std::string> parse(const std::vector<std::string>& args);

} // namespace vtpmctl
