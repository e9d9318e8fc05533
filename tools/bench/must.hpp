// What a measurement cannot go on without.
#pragma once

#include "util/result.hpp"

#include <fmt/format.h>

#include <stdexcept>
#include <string_view>
#include <type_traits>
#include <utility>

namespace bench {

/// What there is; std::runtime_error: "DOING: why not".
template <typename T>
T must(vtpmd::Result<T> result, std::string_view doing) {
    if (!result) {
        throw std::runtime_error(fmt::format("{}: {}", doing, result.error().message));
    }
    if constexpr (!std::is_void_v<T>) {
        return std::move(*result);
    }
}

} // namespace bench
