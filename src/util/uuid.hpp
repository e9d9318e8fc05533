// UUIDs of vTPMs and groups (RFC 4122 text form).
#pragma once

#include "util/bytes.hpp"
#include "util/result.hpp"

#include <array>
#include <compare>
#include <string>
#include <string_view>

namespace vtpmd {

struct Uuid {
    std::array<std::byte, 16> bytes{};
    // NOLINTNEXTLINE(modernize-use-nullptr): clang-tidy 14 takes a comparison with 0 inside <=> for one of a pointer
    friend auto operator<=>(const Uuid&, const Uuid&) = default;
    [[nodiscard]] bool is_nil() const noexcept { return *this == Uuid{}; }
};

/// "xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx", either case, no braces; Errc::usage otherwise.
[[nodiscard]] Result<Uuid> parse_uuid(std::string_view text);
/// Lower case.
[[nodiscard]] std::string to_string(const Uuid& uuid);
/// Version 4, from the kernel's random numbers.
[[nodiscard]] Uuid random_uuid();

} // namespace vtpmd

template <>
struct std::hash<vtpmd::Uuid> {
    std::size_t operator()(const vtpmd::Uuid& u) const noexcept {
        std::size_t h = 0;
        for (std::byte b : u.bytes) {
            h = h * 1099511628211ULL + std::to_integer<std::size_t>(b);
        }
        return h;
    }
};

template <>
struct fmt::formatter<vtpmd::Uuid> : fmt::formatter<std::string> {
    template <typename Context>
    auto format(const vtpmd::Uuid& u, Context& ctx) const {
        return fmt::formatter<std::string>::format(vtpmd::to_string(u), ctx);
    }
};
