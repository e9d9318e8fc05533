#include "util/uuid.hpp"

#include "util/text.hpp"

#include <algorithm>
#include <stdexcept>
#include <sys/random.h>

namespace vtpmd {

Result<Uuid> parse_uuid(std::string_view text) {
    auto bad = [&] {
        return make_error(Errc::usage, "'{}' is not a UUID (expected xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx)",
                          printable(text, 60));
    };
    if (text.size() != 36 || text[8] != '-' || text[13] != '-' || text[18] != '-' || text[23] != '-') {
        return bad();
    }
    std::string digits;
    std::copy_if(text.begin(), text.end(), std::back_inserter(digits), [](char c) { return c != '-'; });
    auto bytes = from_hex(digits);
    if (!bytes || bytes->size() != 16) {
        return bad();
    }
    Uuid out;
    std::copy(bytes->begin(), bytes->end(), out.bytes.begin());
    return out;
}

std::string to_string(const Uuid& uuid) {
    // A list has tens of thousands of them: one pass, one allocation.
    constexpr std::string_view digits = "0123456789abcdef";
    std::string text(36, '-');
    std::size_t at = 0;
    for (const std::byte b : uuid.bytes) {
        const auto value = std::to_integer<unsigned>(b);
        text[at++] = digits[value >> 4U];
        text[at++] = digits[value & 0xfU];
        at += at == 8 || at == 13 || at == 18 || at == 23 ? 1 : 0;
    }
    return text;
}

Uuid random_uuid() {
    Uuid u;
    if (getrandom(u.bytes.data(), u.bytes.size(), 0) != static_cast<ssize_t>(u.bytes.size())) {
        throw std::runtime_error("getrandom failed");
    }
    u.bytes[6] = (u.bytes[6] & std::byte{0x0f}) | std::byte{0x40};
    u.bytes[8] = (u.bytes[8] & std::byte{0x3f}) | std::byte{0x80};
    return u;
}

} // namespace vtpmd
