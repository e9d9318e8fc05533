// Bytes as a test writes them: hex digits, blanks ignored.
#pragma once

#include "util/text.hpp"

#include <algorithm>
#include <string>
#include <string_view>

namespace vtpmd::test {

inline Bytes hex(std::string_view digits) {
    std::string dense(digits);
    std::erase(dense, ' ');
    return from_hex(dense).value();
}

} // namespace vtpmd::test
