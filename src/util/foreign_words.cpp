#include "util/foreign_words.hpp"

#include <algorithm>

namespace vtpmd {

namespace {

/// True if `argument` is an option whose value is the next argument.
bool takes_next(std::span<const OptionSpec> specs, std::string_view argument) {
    return argument.starts_with("--") &&
           std::ranges::any_of(specs, [name = argument.substr(2)](const OptionSpec& spec) {
               return spec.name == name && !spec.argument.empty();
           });
}

const ForeignWord* find_word(std::span<const ForeignWord> table, std::string_view argument) {
    const auto equals = argument.find('=');
    const std::string_view key = equals == std::string_view::npos ? argument : argument.substr(0, equals + 1);
    const auto found = std::ranges::find(table, key, &ForeignWord::spelling);
    return found == table.end() ? nullptr : &*found;
}

} // namespace

Result<Translation> translate_words(std::span<const ForeignWord> table, std::span<const OptionSpec> specs,
                                    const std::vector<std::string>& arguments) {
    Translation out;
    bool is_value = false;
    for (const std::string& argument : arguments) {
        const ForeignWord* word = is_value ? nullptr : find_word(table, argument);
        is_value = !is_value && takes_next(specs, argument);
        if (word == nullptr) {
            out.arguments.push_back(argument);
            continue;
        }
        const std::string_view value = std::string_view(argument).substr(word->spelling.size());
        auto translated = word->translate(value);
        if (!translated) {
            return translated.error();
        }
        out.arguments.insert(out.arguments.end(), translated->arguments.begin(), translated->arguments.end());
        out.notices.insert(out.notices.end(), translated->notices.begin(), translated->notices.end());
    }
    return out;
}

} // namespace vtpmd
