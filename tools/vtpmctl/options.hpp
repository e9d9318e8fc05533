// What the command line gave to a command, and the files that it names.
#pragma once

#include "util/bytes.hpp"

#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace vtpmctl {

/// Ends the program: an exit status of sysexits(3), and what to tell.
struct Failure {
    int status;
    std::string message;
};
[[noreturn]] void fail(int status, std::string message);

struct Options {
    std::string command; ///< as the table names it: "group create"
    std::string socket = "/run/vtpmd/api.sock";
    std::map<std::string, std::vector<std::string>> values; ///< by name without the dashes; of a flag one empty text
    std::vector<std::string> words;                         ///< after those of the command

    [[nodiscard]] bool has(const std::string& name) const { return values.contains(name); }
    /// The only value; nullopt if the option was not given.
    [[nodiscard]] std::optional<std::string> one(const std::string& name) const;
    /// The only value of an option that this command cannot do without.
    [[nodiscard]] std::string needed(const std::string& name, std::string_view what) const;
    [[nodiscard]] std::vector<std::string> all(const std::string& name) const;
    /// Ends the program: `what` is wrong with this command's line.
    [[noreturn]] void refuse(std::string_view what) const;
};

/// At most 1 MiB.
[[nodiscard]] std::string read_file(const std::string& path);
void write_file(const std::string& path, vtpmd::ByteView content);

} // namespace vtpmctl
