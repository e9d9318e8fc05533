// Xen's numbers.
#pragma once

#include <cstddef>
#include <cstdint>

namespace vtpmd::xen {

using DomId = std::uint16_t;
using GrantRef = std::uint32_t;
using Port = std::uint32_t;

inline constexpr std::size_t page_size = 4096;

} // namespace vtpmd::xen
