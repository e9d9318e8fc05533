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
    std::string hex = to_hex(uuid.bytes);
    for (std::size_t at : {20U, 16U, 12U, 8U}) {
        hex.insert(at, 1, '-');
    }
    return hex;
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
