// The xenstore wire protocol (xen/io/xs_wire.h): a header of four u32 in host byte order, type, request id, transaction
// id and length, then at most 4096 bytes, mostly strings that end in NUL. Pure.
#pragma once

#include "util/bytes.hpp"
#include "util/result.hpp"

#include <array>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace vtpmd::xen {

enum class StoreOp : std::uint32_t {
    directory = 1,
    read = 2,
    get_perms = 3,
    watch = 4,
    unwatch = 5,
    transaction_start = 6,
    transaction_end = 7,
    write = 11,
    mkdir = 12,
    rm = 13,
    set_perms = 14,
    watch_event = 15,
    error = 16,
    directory_part = 22,
};

inline constexpr std::size_t store_header_size = 16;
inline constexpr std::size_t store_payload_max = 4096;

struct StoreHeader {
    StoreOp op{};
    std::uint32_t request = 0;
    std::uint32_t transaction = 0;
    std::uint32_t length = 0;
};

void append_header(std::string& out, const StoreHeader& header);
[[nodiscard]] StoreHeader parse_header(const std::array<char, store_header_size>& raw) noexcept;

/// "a\0b\0" to {"a", "b"}; a last string without its NUL is kept too.
[[nodiscard]] std::vector<std::string> split_strings(std::string_view payload);

/// The error of an XS_ERROR reply, named in xs_wire.h ("ENOENT"), as one of ours; detail is the errno.
[[nodiscard]] Error store_error(std::string_view name, std::string_view what);
/// The name of an errno for an XS_ERROR reply (the simulated store's side).
[[nodiscard]] std::string_view store_error_name(int err) noexcept;

/// The next reply to XS_DIRECTORY_PART: generation, then names; an empty name ends the list.
struct DirectoryPart {
    std::string generation;
    std::vector<std::string> names;
    std::size_t bytes = 0; ///< what to add to the offset for the next part
    bool last = false;
};
[[nodiscard]] std::optional<DirectoryPart> parse_directory_part(std::string_view payload);

} // namespace vtpmd::xen
