// The command line, and the files that it names.
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

extern const std::string_view help_text;

struct Options {
    std::string socket = "/run/vtpmd/api.sock";
    bool json = false;
    bool yes = false;
    bool once = false;
    bool csr = false;
    std::map<std::string, std::vector<std::string>> values; ///< of the others, by name without the dashes
    std::vector<std::string> words;

    /// The only value; nullopt if the option was not given.
    [[nodiscard]] std::optional<std::string> one(const std::string& name) const;
    /// The only value of an option that this command cannot do without.
    [[nodiscard]] std::string needed(const std::string& name, std::string_view what) const;
    [[nodiscard]] std::vector<std::string> all(const std::string& name) const;
};
[[nodiscard]] Options parse(const std::vector<std::string>& args);

/// At most 1 MiB.
[[nodiscard]] std::string read_file(const std::string& path);
void write_file(const std::string& path, vtpmd::ByteView content);

} // namespace vtpmctl
