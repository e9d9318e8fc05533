// All commands of vtpmctl: what each takes, and what does it. CONTRIBUTING says how to add one.
#pragma once

#include "options.hpp"

#include <string_view>
#include <vector>

namespace vtpmctl {

struct Option {
    std::string_view name;  ///< without the dashes
    std::string_view value; ///< what stands behind the "=" in the help; empty: a flag
    std::string_view help;
    bool needed = false;   ///< the command cannot do without it
    bool repeated = false; ///< may be given several times
    char letter = 0;       ///< -y, if it has one
};

/// What follows a command's name.
struct Words {
    std::string_view shown; ///< in the help: "VTPM NAME"
    std::size_t least = 0;
    std::size_t most = 0;
    std::string_view otherwise; ///< behind the command's name, if there are more or less
};

/// Where a command stands in the help.
enum class Section { vtpms, groups, host, files };

struct Command {
    Section section;
    std::string_view name; ///< one word or several: "group create"
    Words words;
    std::string_view help;
    std::vector<Option> options; ///< its own; --socket and --help are every command's
    void (*run)(const Options&);
};

[[nodiscard]] const std::vector<Command>& commands();
/// Those that every command takes; --version is the program's.
[[nodiscard]] const std::vector<Option>& common_options();

} // namespace vtpmctl
