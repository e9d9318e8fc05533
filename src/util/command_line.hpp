// Command line and configuration file of one mode: a table of options, their help text, and the values found.
//
// The command line wins over the file; an option given on the command line replaces all of the file's values for it.
// The old spellings of Xen's stub domains (owner_auth=..., hwinitpcrs=...) are accepted as key=value words.
#pragma once

#include "util/result.hpp"

#include <map>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace vtpmd {

struct OptionSpec {
    std::string_view name;     ///< without the dashes
    std::string_view argument; ///< what --help calls the value; empty for a switch
    std::string_view help;
    bool repeatable = false;
    std::string_view old_spelling = {}; ///< as a key=value word, if it is not the name with '_' for '-'
};

class CommandLine {
  public:
    struct Source {
        std::span<const OptionSpec> specs;
        std::vector<std::string> arguments; ///< without the program's name
        std::string default_config;         ///< read if it exists and --config does not name another
    };
    /// Errc::usage with one line that names the option and what to do.
    static Result<CommandLine> parse(const Source& source);

    [[nodiscard]] bool has(std::string_view name) const;
    [[nodiscard]] std::optional<std::string> get(std::string_view name) const;
    [[nodiscard]] std::string get_or(std::string_view name, std::string_view fallback) const;
    [[nodiscard]] std::vector<std::string> all(std::string_view name) const;
    /// Whether what is said of it is the configuration file's, which speaks of all that read it, and not of this one.
    [[nodiscard]] bool is_from_file(std::string_view name) const;
    /// A switch: present, or =true/yes/1/on; =false/no/0/off switches it off (over the file).
    [[nodiscard]] Result<bool> flag(std::string_view name) const;

    /// The options as --help shows them.
    static std::string help(std::span<const OptionSpec> specs);

  private:
    std::map<std::string, std::vector<std::string>, std::less<>> values_;
    std::set<std::string, std::less<>> from_file_;
};

} // namespace vtpmd
