#include "util/command_line.hpp"

#include "util/nearest.hpp"
#include "util/text.hpp"

#include <algorithm>
#include <boost/program_options.hpp>
#include <cerrno>
#include <fstream>
#include <unistd.h>

namespace vtpmd {

namespace po = boost::program_options;

namespace {

using Values = std::map<std::string, std::vector<std::string>, std::less<>>;

po::options_description describe(std::span<const OptionSpec> specs) {
    po::options_description description("options");
    description.add_options()("word", po::value<std::vector<std::string>>(), "");
    for (const OptionSpec& spec : specs) {
        auto* value = po::value<std::vector<std::string>>();
        if (spec.argument.empty()) {
            value->implicit_value({"true"}, "true");
        }
        description.add_options()(std::string(spec.name).c_str(), value, std::string(spec.help).c_str());
    }
    return description;
}

/// "owner_auth=x" -> ("owner-auth", "x"), if the key is a known spelling.
std::optional<std::pair<std::string, std::string>> old_word(std::span<const OptionSpec> specs, std::string_view word) {
    std::size_t eq = word.find('=');
    if (eq == std::string_view::npos || word.starts_with('-')) {
        return std::nullopt;
    }
    std::string key(word.substr(0, eq));
    std::replace(key.begin(), key.end(), '_', '-');
    for (const OptionSpec& spec : specs) {
        if (key == spec.name || (!spec.old_spelling.empty() && word.substr(0, eq) == spec.old_spelling)) {
            return std::pair{std::string(spec.name), std::string(word.substr(eq + 1))};
        }
    }
    return std::nullopt;
}

/// "; did you mean --store?", or ";".
std::string meant(std::span<const OptionSpec> specs, std::string_view name) {
    std::vector<std::string_view> names;
    for (const OptionSpec& spec : specs) {
        names.push_back(spec.name);
    }
    const std::string_view found = nearest(name, names);
    return found.empty() ? ";" : fmt::format("; did you mean {}?", found);
}

Result<Values> given_once(Values values, std::span<const OptionSpec> specs, std::string_view where) {
    for (const OptionSpec& spec : specs) {
        auto it = values.find(spec.name);
        if (it != values.end() && it->second.size() > 1 && !spec.repeatable) {
            return make_error(Errc::usage, "{}: --{} is given {} times; give it once", where, spec.name,
                              it->second.size());
        }
    }
    return values;
}

Result<Values> collect(const po::parsed_options& parsed, std::span<const OptionSpec> specs, std::string_view where) {
    Values out;
    for (const po::option& option : parsed.options) {
        if (option.string_key == "word") {
            auto word = old_word(specs, option.value.empty() ? "" : option.value.front());
            if (!word) {
                return make_error(Errc::usage, "'{}' is not an option; see --help",
                                  printable(option.value.empty() ? "" : option.value.front()));
            }
            out[word->first].push_back(word->second);
            continue;
        }
        auto& values = out[option.string_key];
        if (option.value.empty()) {
            values.emplace_back("true");
        }
        values.insert(values.end(), option.value.begin(), option.value.end());
    }
    return given_once(std::move(out), specs, where);
}

/// "--create" becomes "--create=true": a switch must not swallow the word that follows it.
std::vector<std::string> complete_switches(std::span<const OptionSpec> specs, std::vector<std::string> arguments) {
    for (std::string& argument : arguments) {
        for (const OptionSpec& spec : specs) {
            if (spec.argument.empty() && argument == "--" + std::string(spec.name)) {
                argument += "=true";
            }
        }
    }
    return arguments;
}

Result<Values> from_arguments(const CommandLine::Source& source, const po::options_description& description) {
    const std::vector<std::string> arguments = complete_switches(source.specs, source.arguments);
    po::positional_options_description words;
    words.add("word", -1);
    auto style = po::command_line_style::unix_style & ~po::command_line_style::allow_guessing &
                 ~po::command_line_style::allow_short;
    try {
        return collect(po::command_line_parser(arguments).options(description).positional(words).style(style).run(),
                       source.specs, "command line");
    } catch (const po::unknown_option& e) {
        const std::string given = e.get_option_name();
        std::string_view name = given;
        name.remove_prefix(std::min(name.size(), name.find_first_not_of('-')));
        return make_error(Errc::usage, "there is no option --{}{} see --help", printable(name),
                          meant(source.specs, name));
    } catch (const po::error& e) {
        return make_error(Errc::usage, "{}; see --help", e.what());
    }
}

std::string_view trimmed(std::string_view text) {
    constexpr std::string_view blank = " \t\r";
    const auto first = text.find_first_not_of(blank);
    return first == std::string_view::npos ? "" : text.substr(first, text.find_last_not_of(blank) - first + 1);
}

/// `name = value`, each in a line of its own; from `#` on it is a comment.
Result<Values> from_file(const std::string& path, const CommandLine::Source& source) {
    std::ifstream file(path);
    if (!file) {
        return errno_error(errno, fmt::format("configuration file {}", path));
    }
    Values out;
    std::string text;
    for (unsigned number = 1; std::getline(file, text); ++number) {
        constexpr std::string_view byte_order_mark = "\xEF\xBB\xBF";
        std::string_view line = text;
        if (number == 1 && line.starts_with(byte_order_mark)) {
            line.remove_prefix(byte_order_mark.size());
        }
        line = trimmed(line.substr(0, line.find('#')));
        if (line.empty()) {
            continue;
        }
        const auto equals = line.find('=');
        const std::string_view name = trimmed(line.substr(0, equals));
        if (equals == std::string_view::npos) {
            return make_error(Errc::usage, "configuration file {}, line {}: '{}' is not name = value", path, number,
                              printable(line));
        }
        if (std::ranges::find(source.specs, name, &OptionSpec::name) == source.specs.end()) {
            return make_error(Errc::usage, "configuration file {}, line {}: there is no option '{}'{} see --help", path,
                              number, printable(name), meant(source.specs, name));
        }
        out[std::string(name)].emplace_back(trimmed(line.substr(equals + 1)));
    }
    return given_once(std::move(out), source.specs, path);
}

} // namespace

Result<CommandLine> CommandLine::parse(const Source& source) {
    po::options_description description = describe(source.specs);
    auto arguments = from_arguments(source, description);
    if (!arguments) {
        return arguments.error();
    }
    CommandLine out;
    out.values_ = std::move(*arguments);
    std::string config = out.get_or("config", "");
    if (config.empty() && !source.default_config.empty() && ::access(source.default_config.c_str(), F_OK) == 0) {
        config = source.default_config;
    }
    if (!config.empty()) {
        auto file = from_file(config, source);
        if (!file) {
            return file.error();
        }
        for (auto& [name, values] : *file) {
            if (out.values_.try_emplace(name, std::move(values)).second) {
                out.from_file_.insert(name);
            }
        }
    }
    return out;
}

bool CommandLine::has(std::string_view name) const { return values_.find(name) != values_.end(); }

std::optional<std::string> CommandLine::get(std::string_view name) const {
    auto it = values_.find(name);
    if (it == values_.end() || it->second.empty()) {
        return std::nullopt;
    }
    return it->second.back();
}

std::string CommandLine::get_or(std::string_view name, std::string_view fallback) const {
    return get(name).value_or(std::string(fallback));
}

std::vector<std::string> CommandLine::all(std::string_view name) const {
    auto it = values_.find(name);
    return it == values_.end() ? std::vector<std::string>{} : it->second;
}

bool CommandLine::is_from_file(std::string_view name) const { return from_file_.contains(name); }

Result<bool> CommandLine::flag(std::string_view name) const {
    static constexpr std::string_view on[] = {"true", "yes", "1", "on"};
    static constexpr std::string_view off[] = {"false", "no", "0", "off"};
    auto value = get(name);
    if (!value) {
        return false;
    }
    if (std::find(std::begin(on), std::end(on), *value) != std::end(on)) {
        return true;
    }
    if (std::find(std::begin(off), std::end(off), *value) != std::end(off)) {
        return false;
    }
    return make_error(Errc::usage, "--{} is a switch: '{}' is neither yes nor no", name, printable(*value));
}

std::string CommandLine::help(std::span<const OptionSpec> specs) {
    constexpr std::size_t column = 30;
    constexpr std::size_t width = 100;
    std::string out;
    for (const OptionSpec& spec : specs) {
        std::string line = fmt::format("  --{}{}{}", spec.name, spec.argument.empty() ? "" : "=", spec.argument);
        if (line.size() >= column) {
            out += line + '\n';
            line.clear();
        }
        line.resize(column, ' ');
        for (std::string_view word : split(spec.help, ' ')) {
            if (line.size() + 1 + word.size() > width) {
                out += line + '\n';
                line = std::string(column, ' ');
            }
            line += line.back() == ' ' ? "" : " ";
            line += word;
        }
        out += line + '\n';
    }
    return out;
}

} // namespace vtpmd
