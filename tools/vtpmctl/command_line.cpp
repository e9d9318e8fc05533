#include "command_line.hpp"

#include "help.hpp"
#include "util/nearest.hpp"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <sysexits.h>

namespace vtpmctl {

using vtpmd::nearest;

namespace {

bool is_option(std::string_view word) { return word.size() > 1 && word.starts_with('-'); }

std::string_view name_in(std::string_view word) {
    return word.starts_with("--") ? word.substr(2, word.find('=') - std::min<std::size_t>(2, word.size())) : "";
}

/// Whether an option of this name takes a value, with whichever command. (No two commands differ in that: a test looks.)
bool takes_value(std::string_view name) {
    auto does = [name](const Option& o) { return o.name == name && !o.value.empty(); };
    return std::ranges::any_of(common_options(), does) ||
           std::ranges::any_of(commands(), [&](const Command& c) { return std::ranges::any_of(c.options, does); });
}

/// Where the first word that is neither an option nor the value of one stands, from `at` on.
std::size_t next_word(const std::vector<std::string>& args, std::size_t at) {
    while (at < args.size() && is_option(args[at]) && args[at] != "--") {
        const bool separate = args[at].find('=') == std::string::npos && takes_value(name_in(args[at]));
        at += separate ? 2 : 1;
    }
    return std::min(at, args.size());
}

bool is_family(std::string_view word) {
    return std::ranges::any_of(commands(), [word](const Command& c) {
        return c.name.starts_with(word) && c.name.substr(word.size()).starts_with(' ');
    });
}

const Command* find_command(std::string_view name) {
    const auto it = std::ranges::find(commands(), name, &Command::name);
    return it == commands().end() ? nullptr : &*it;
}

[[noreturn]] void refuse_command(const std::string& name) {
    std::vector<std::string_view> names;
    for (const Command& c : commands()) {
        names.push_back(c.name);
    }
    const std::string_view meant = nearest(name, names);
    fail(EX_USAGE, fmt::format("there is no command '{}'; {}see vtpmctl --help", name,
                               meant.empty() ? "" : fmt::format("did you mean {}? ", meant)));
}

[[noreturn]] void refuse_family(std::string_view word) {
    std::vector<std::string_view> rest;
    for (const Command& c : commands()) {
        if (c.name.starts_with(word) && c.name.substr(word.size()).starts_with(' ')) {
            rest.push_back(c.name.substr(word.size() + 1));
        }
    }
    fail(EX_USAGE, fmt::format("{} takes one of: {}; see vtpmctl {} --help", word, fmt::join(rest, ", "), word));
}

/// An option that the command does not have: one of its own that is spelt nearly so, or the commands that have it.
[[noreturn]] void refuse_option(const Command& command, const std::string& word) {
    const std::string_view name = name_in(word);
    std::vector<std::string_view> own;
    for (const Option& o : command.options) {
        own.push_back(o.name);
    }
    std::string meant(nearest(name, own));
    if (!meant.empty()) {
        meant = fmt::format("; did you mean --{}?", meant);
    } else {
        constexpr std::size_t told = 3;
        std::vector<std::string_view> others;
        for (const Command& c : commands()) {
            if (std::ranges::count(c.options, name, &Option::name) != 0) {
                others.push_back(c.name);
            }
        }
        const bool more = others.size() > told;
        others.resize(std::min(others.size(), told));
        meant = others.empty()
                    ? ";"
                    : fmt::format("; did you mean vtpmctl {}{}?", fmt::join(others, ", "), more ? ", ..." : "");
    }
    fail(EX_USAGE, fmt::format("{} has no {}{} see vtpmctl {} --help", command.name, word.substr(0, word.find('=')),
                               meant, command.name));
}

class Parser {
  public:
    explicit Parser(const Command& command)
        : command_(command) {
        app_.set_help_flag(); // the texts are our own
        app_.allow_extras();  // so are the refusals
        for (const auto* options : {&command.options, &common_options()}) {
            for (const Option& o : *options) {
                add(o);
            }
        }
        for (std::size_t i = 0; i < command.words.most; ++i) {
            words_.push_back(app_.add_option(fmt::format("word{}", i))->expected(1));
        }
    }

    [[nodiscard]] Options parse(std::vector<std::string> args) {
        std::ranges::reverse(args); // as CLI11 wants them
        try {
            app_.parse(std::move(args));
        } catch (const CLI::ArgumentMismatch& e) {
            const std::string what = e.what();
            const bool flag = what.find("flag") != std::string::npos;
            const std::size_t name = what.find_first_not_of('-');
            fail(EX_USAGE,
                 fmt::format("--{} {}; see vtpmctl {} --help", what.substr(name, what.find_first_of(": ") - name),
                             flag ? "takes no value" : "needs a value", command_.name));
        } catch (const CLI::ParseError& e) {
            fail(EX_USAGE, fmt::format("{}: {}; see vtpmctl {} --help", command_.name, e.what(), command_.name));
        }
        Options out{.command = std::string(command_.name)};
        for (const auto& [option, parsed] : options_) {
            if (parsed->count() > 1 && !option->repeated && !option->value.empty()) {
                out.refuse(fmt::format("takes one --{}, and it is given twice", option->name));
            }
            if (parsed->count() != 0) {
                out.values[std::string(option->name)] = parsed->results();
            }
        }
        take_words(out);
        return out;
    }

  private:
    void add(const Option& o) {
        const std::string names =
            o.letter == 0 ? fmt::format("--{}", o.name) : fmt::format("-{},--{}", o.letter, o.name);
        options_.emplace_back(&o, o.value.empty() ? app_.add_flag(names)->disable_flag_override()
                                                  : app_.add_option(names)->expected(1)->allow_extra_args(false));
        options_.back().second->multi_option_policy(CLI::MultiOptionPolicy::TakeAll);
    }
    void take_words(Options& out) const {
        for (const CLI::Option* word : words_) {
            if (word->count() != 0) {
                out.words.push_back(word->results().front());
            }
        }
        for (const std::string& left : app_.remaining()) {
            if (is_option(left) && left != "--") {
                refuse_option(command_, left);
            }
            if (left != "--") {
                out.words.push_back(left);
            }
        }
        if (out.has("help")) {
            return;
        }
        if (out.words.size() < command_.words.least || out.words.size() > command_.words.most) {
            out.refuse(command_.words.otherwise);
        }
        for (const Option& o : command_.options) {
            if (o.needed) {
                (void)out.needed(std::string(o.name), o.help);
            }
        }
        if (auto path = out.one("socket")) {
            out.socket = path->starts_with("unix:") ? path->substr(5) : *path;
        }
    }

    const Command& command_;
    CLI::App app_;
    std::vector<std::pair<const Option*, CLI::Option*>> options_;
    std::vector<CLI::Option*> words_;
};

} // namespace

std::variant<Call, std::string> parse(const std::vector<std::string>& args) {
    std::vector<std::string> rest = args;
    const bool help = std::ranges::count(args, "--help") + std::ranges::count(args, "-h") != 0;
    if (!help && std::ranges::count(args, "--version") != 0) {
        return std::string("vtpmctl " VTPMD_VERSION "\n");
    }
    std::size_t at = next_word(rest, 0);
    if (at == rest.size() || rest[at] == "--") {
        if (help) {
            return help_of_all();
        }
        for (const std::string& word : rest) {
            if (is_option(word) && !takes_value(name_in(word))) {
                fail(EX_USAGE, fmt::format("there is no option {}; see vtpmctl --help", word));
            }
        }
        fail(EX_USAGE, "say what to do: vtpmctl list, create, start, ...; see vtpmctl --help");
    }
    std::string name = rest[at];
    rest.erase(rest.begin() + static_cast<std::ptrdiff_t>(at));
    if (is_family(name)) {
        at = next_word(rest, at);
        if (at == rest.size() && help) {
            return help_of_family(name);
        }
        if (at == rest.size() || find_command(name + " " + rest[at]) == nullptr) {
            refuse_family(name);
        }
        name += " " + rest[at];
        rest.erase(rest.begin() + static_cast<std::ptrdiff_t>(at));
    }
    const Command* command = find_command(name);
    if (command == nullptr) {
        refuse_command(name);
    }
    Options options = Parser(*command).parse(std::move(rest));
    if (options.has("help")) {
        return help_of(*command);
    }
    return Call{.command = command, .options = std::move(options)};
}

} // namespace vtpmctl
