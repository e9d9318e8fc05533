#include "util/utf8.hpp"

#include <algorithm>
#include <array>
#include <cstdint>

namespace vtpmd {

namespace {

struct Range {
    char32_t first;
    char32_t last;
};
/// Unicode's categories Cc, Cf, Zl, Zp, Zs but the space, Cs, and noncharacters of the basic plane.
constexpr auto unprintable = std::to_array<Range>({
    {0x00, 0x1F},       {0x7F, 0xA0},       {0xAD, 0xAD},       {0x600, 0x605},     {0x61C, 0x61C},
    {0x6DD, 0x6DD},     {0x70F, 0x70F},     {0x890, 0x891},     {0x8E2, 0x8E2},     {0x1680, 0x1680},
    {0x180E, 0x180E},   {0x2000, 0x200F},   {0x2028, 0x202F},   {0x205F, 0x206F},   {0x3000, 0x3000},
    {0xD800, 0xDFFF},   {0xFDD0, 0xFDEF},   {0xFEFF, 0xFEFF},   {0xFFF9, 0xFFFB},   {0x110BD, 0x110BD},
    {0x110CD, 0x110CD}, {0x13430, 0x1343F}, {0x1BCA0, 0x1BCA3}, {0x1D173, 0x1D17A}, {0xE0000, 0xE0FFF},
});

bool prints(char32_t c) {
    return c <= 0x10FFFF && (c & 0xFFFEU) != 0xFFFE &&
           std::ranges::none_of(unprintable, [c](const Range& r) { return r.first <= c && c <= r.last; });
}

/// Takes the first character; what is none is one that does not print.
char32_t take(std::string_view& text) {
    constexpr char32_t none = 0;
    const auto lead = static_cast<std::uint8_t>(text.front());
    text.remove_prefix(1);
    if (lead < 0x80) {
        return lead;
    }
    const unsigned more = lead >= 0xF0 && lead < 0xF8   ? 3
                          : lead >= 0xE0 && lead < 0xF0 ? 2
                          : lead >= 0xC0 && lead < 0xE0 ? 1
                                                        : 0;
    if (more == 0 || text.size() < more) {
        return none;
    }
    char32_t c = lead & (0x3FU >> more);
    for (unsigned i = 0; i < more; ++i) {
        const auto next = static_cast<std::uint8_t>(text.front());
        if ((next & 0xC0U) != 0x80U) {
            return none;
        }
        c = c << 6U | (next & 0x3FU);
        text.remove_prefix(1);
    }
    constexpr std::array<char32_t, 4> least = {0, 0x80, 0x800, 0x10000};
    return c < least[more] ? none : c;
}

} // namespace

std::size_t first_printable(std::string_view text) noexcept {
    std::string_view rest = text;
    return !text.empty() && prints(take(rest)) ? text.size() - rest.size() : 0;
}

bool is_printable_utf8(std::string_view text) noexcept {
    while (!text.empty()) {
        const std::size_t size = first_printable(text);
        if (size == 0) {
            return false;
        }
        text.remove_prefix(size);
    }
    return true;
}

} // namespace vtpmd
