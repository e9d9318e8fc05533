#include "api/query.hpp"

#include "util/text.hpp"

#include <algorithm>

namespace vtpmd::api {

namespace {

Result<std::string> decoded(std::string_view text) {
    std::string out;
    for (std::size_t at = 0; at < text.size(); ++at) {
        if (text[at] != '%') {
            out += text[at];
            continue;
        }
        auto byte = from_hex(text.substr(at + 1, 2));
        if (!byte || byte->size() != 1) {
            return make_error(Errc::usage, "'{}': a percent sign needs two hexadecimal digits behind it",
                              printable(text));
        }
        out += std::to_integer<char>(byte->front());
        at += 2;
    }
    return out;
}

} // namespace

Result<boost::json::object> parse_query(std::string_view query, std::span<const Field> known) {
    boost::json::object out;
    for (const std::string_view part : split(query, '&')) {
        const std::size_t equals = part.find('=');
        const auto field = std::ranges::find(known, part.substr(0, equals), &Field::name);
        if (field == known.end() || equals == std::string_view::npos) {
            std::string names;
            for (const Field& f : known) {
                names += fmt::format("{}{}=", names.empty() ? "" : ", ", f.name);
            }
            return make_error(Errc::usage, "unknown query parameter \"{}\"; known here: {}", printable(part),
                              names.empty() ? "none" : names);
        }
        if (out.contains(field->name)) {
            return make_error(Errc::usage, "{}= is there twice", field->name);
        }
        auto value = decoded(part.substr(equals + 1));
        if (!value) {
            return in_context(value.error(), field->name);
        }
        out[field->name] = *value;
    }
    return out;
}

} // namespace vtpmd::api
