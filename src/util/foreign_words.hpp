// Words of another program's command line, translated into options of ours. Pure.
//
// Xen's stub domains are configured by words without dashes ("clear", "hwinitpcr=5"). A table says for each word which
// option takes its place, that it has no effect here, or why it is refused.
#pragma once

#include "util/command_line.hpp"
#include "util/result.hpp"

#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace vtpmd {

struct Translation {
    std::vector<std::string> arguments; ///< "--name=value"; none: the word has no effect
    std::vector<std::string> notices;   ///< what the operator should know, one line each
};

struct ForeignWord {
    std::string_view spelling; ///< a whole word, or one up to and with its '='
    /// What stands behind the '=', or nothing. Errc::usage says what takes the word's place.
    Result<Translation> (*translate)(std::string_view value);
};

/// `arguments` with the words of the table translated in place, and their notices in order. An argument that is the
/// value of an option before it ("--startup clear") is no word. What the table does not have stays as it is.
[[nodiscard]] Result<Translation> translate_words(std::span<const ForeignWord> table, std::span<const OptionSpec> specs,
                                                  const std::vector<std::string>& arguments);

} // namespace vtpmd
