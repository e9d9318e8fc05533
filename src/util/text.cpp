#include "util/text.hpp"

#include "util/utf8.hpp"

#include <algorithm>
#include <charconv>

namespace vtpmd {

namespace {
int nibble(char c) {
    if (c >= '0' && c <= '9') {
        return c - '0';
    }
    if (c >= 'a' && c <= 'f') {
        return c - 'a' + 10;
    }
    if (c >= 'A' && c <= 'F') {
        return c - 'A' + 10;
    }
    return -1;
}
} // namespace

std::string to_hex(ByteView bytes) {
    static constexpr std::string_view digits = "0123456789abcdef";
    std::string out;
    out.reserve(bytes.size() * 2);
    for (std::byte b : bytes) {
        auto v = std::to_integer<unsigned>(b);
        out += digits[v >> 4U];
        out += digits[v & 15U];
    }
    return out;
}

Result<Bytes> from_hex(std::string_view text) {
    if (text.size() % 2 != 0) {
        return make_error(Errc::usage, "hexadecimal text has an odd number of digits ({})", text.size());
    }
    Bytes out;
    out.reserve(text.size() / 2);
    for (std::size_t i = 0; i < text.size(); i += 2) {
        int hi = nibble(text[i]);
        int lo = nibble(text[i + 1]);
        if (hi < 0 || lo < 0) {
            return make_error(Errc::usage, "not a hexadecimal digit at position {}", hi < 0 ? i : i + 1);
        }
        out.push_back(static_cast<std::byte>(hi * 16 + lo));
    }
    return out;
}

Result<std::uint64_t> parse_number(std::string_view text, std::uint64_t max) {
    std::uint64_t value = 0;
    std::string_view digits = text;
    int base = 10;
    if (digits.starts_with("0x") || digits.starts_with("0X")) {
        digits.remove_prefix(2);
        base = 16;
    }
    auto [end, err] = std::from_chars(digits.data(), digits.data() + digits.size(), value, base);
    if (err == std::errc::result_out_of_range || (err == std::errc() && value > max)) {
        return make_error(Errc::usage, "'{}' is over the limit of {}", printable(text), max);
    }
    if (err != std::errc() || end != digits.data() + digits.size()) {
        return make_error(Errc::usage, "'{}' is not a number", printable(text));
    }
    return value;
}

std::vector<std::string_view> split(std::string_view text, char separator) {
    std::vector<std::string_view> parts;
    std::size_t from = 0;
    for (;;) {
        std::size_t at = text.find(separator, from);
        if (at == std::string_view::npos) {
            parts.push_back(text.substr(from));
            return parts;
        }
        parts.push_back(text.substr(from, at - from));
        from = at + 1;
    }
}

std::string printable(std::string_view text, std::size_t limit) {
    std::string out;
    while (!text.empty()) {
        const std::size_t size = first_printable(text);
        const auto part = size > 0 ? std::string(text.substr(0, size))
                                   : fmt::format("\\x{:02x}", static_cast<unsigned char>(text.front()));
        if (out.size() + part.size() > limit) {
            return out + "...";
        }
        out += part;
        text.remove_prefix(std::max<std::size_t>(size, 1));
    }
    return out;
}

} // namespace vtpmd
