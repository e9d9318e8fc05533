// Text forms of bytes and numbers, as the command line, logs and messages use them.
#pragma once

#include "util/bytes.hpp"
#include "util/result.hpp"

#include <string>
#include <string_view>
#include <vector>

namespace vtpmd {

/// Lower-case hexadecimal, two digits a byte.
[[nodiscard]] std::string to_hex(ByteView bytes);
/// Even number of hexadecimal digits, either case; Errc::usage otherwise.
[[nodiscard]] Result<Bytes> from_hex(std::string_view text);

/// A whole unsigned number in decimal, or in hexadecimal after 0x; Errc::usage if it is anything else or over `max`.
[[nodiscard]] Result<std::uint64_t> parse_number(std::string_view text, std::uint64_t max);

[[nodiscard]] std::vector<std::string_view> split(std::string_view text, char separator);

/// Makes a peer's text fit for a log line or a terminal: UTF-8 that prints as it is, every other byte as \xNN; cut at
/// `limit` bytes of what comes out, with three dots.
[[nodiscard]] std::string printable(std::string_view text, std::size_t limit = 120);

} // namespace vtpmd
