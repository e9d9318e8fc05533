// Text in UTF-8 that people read and programs print.
#pragma once

#include <cstddef>
#include <string_view>

namespace vtpmd {

/// True if all of it is well-formed UTF-8 (RFC 3629: no overlong forms, no surrogates) and prints: no control or format
/// characters, which a terminal or a reader's eye would take for something else, and no blanks but the space.
[[nodiscard]] bool is_printable_utf8(std::string_view text) noexcept;
/// The bytes of its first character; 0 if that is malformed or does not print, and of no text.
[[nodiscard]] std::size_t first_printable(std::string_view text) noexcept;

} // namespace vtpmd
