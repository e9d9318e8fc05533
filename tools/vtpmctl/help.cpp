#include "help.hpp"

#include <algorithm>
#include <fmt/format.h>

namespace vtpmctl {

namespace {

constexpr std::size_t margin = 27; ///< where the texts begin
constexpr std::size_t width = 118;

constexpr std::string_view exit_status = R"(
Exit status: 0 done; 64 a command line that makes no sense; 65 a quote that was refused; 66 no such vTPM, group or file;
69 the manager is not there; 73 it exists already; 75 it is in use; 77 you may not; 65, 70, 74 what is stored or the manager
failed: the message says what to do.
)";

/// Broken between words; `column` is where it begins, `indent` where its further lines do.
std::string wrapped(std::string_view text, std::size_t column, std::size_t indent) {
    std::string out;
    for (bool first = true; !text.empty(); first = false) {
        const std::string_view word = text.substr(0, text.find(' '));
        text.remove_prefix(std::min(text.size(), word.size() + 1));
        if (!first && column + 1 + word.size() > width) {
            out += fmt::format("\n{:{}}", "", indent);
            column = indent;
        } else if (!first) {
            out += ' ';
            ++column;
        }
        out += word;
        column += word.size();
    }
    return out + "\n";
}

/// A name, and a text beside it.
std::string entry(std::string_view name, std::string_view text) {
    const bool fits = name.size() + 3 <= margin;
    return fmt::format("  {:<{}}", name, margin - 2) + (fits ? "" : fmt::format("\n{:{}}", "", margin)) +
           wrapped(text, margin, margin);
}

std::string spelt(const Option& o) {
    return o.value.empty() ? fmt::format("--{}", o.name) : fmt::format("--{}={}", o.name, o.value);
}

std::string called(const Command& c) {
    return c.words.shown.empty() ? std::string(c.name) : fmt::format("{} {}", c.name, c.words.shown);
}

std::string usage(const Command& c) {
    std::string line = called(c);
    for (const Option& o : c.options) {
        line += o.needed ? " " + spelt(o) : fmt::format(" [{}]{}", spelt(o), o.repeated ? "..." : "");
    }
    return line;
}

std::string rows_of(Section section) {
    std::string text;
    for (const Command& c : commands()) {
        if (c.section == section) {
            text += entry(called(c), c.help);
        }
    }
    return text;
}

std::string options_text(const std::vector<Option>& options) {
    std::string text;
    for (const Option& o : options) {
        text += entry(spelt(o) + (o.letter == 0 ? "" : fmt::format(", -{}", o.letter)), o.help);
    }
    return text;
}

} // namespace

std::string help_of_all() {
    std::string text = "vtpmctl " VTPMD_VERSION ": manages the virtual TPMs of this host's vtpmd\n\n"
                       "  vtpmctl [OPTION...] COMMAND\n"
                       "  vtpmctl COMMAND --help\n\n";
    text += rows_of(Section::vtpms) + rows_of(Section::groups) + rows_of(Section::host);
    text += "\n VTPM is a vTPM's UUID, or its name if no other has the same.\n\n"
            " Without a manager, on files alone:\n";
    text += rows_of(Section::files);
    text += "\nOptions of every command:\n" + options_text(common_options());
    text += entry("--version", "the program's version");
    return text + std::string(exit_status);
}

std::string help_of(const Command& command) {
    std::string text = wrapped("vtpmctl " + usage(command), 0, 4) + "\n" + wrapped(command.help, 0, 0) + "\n";
    if (!command.options.empty()) {
        text += "Options:\n" + options_text(command.options) + "\n";
    }
    return text + "Options of every command:\n" + options_text(common_options());
}

std::string help_of_family(std::string_view word) {
    std::string text = fmt::format("vtpmctl {} COMMAND\n\n", word);
    for (const Command& c : commands()) {
        if (c.name.starts_with(word) && c.name.substr(word.size()).starts_with(' ')) {
            text += entry(called(c), c.help);
        }
    }
    return text + fmt::format("\nvtpmctl {} COMMAND --help shows one of them.\n", word);
}

} // namespace vtpmctl
