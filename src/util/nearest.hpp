// What was probably meant by a word that is none of those that are possible.
#pragma once

#include <string_view>
#include <vector>

namespace vtpmd {

/// How many letters have to be added, left out or changed to make one of the other.
[[nodiscard]] std::size_t edit_distance(std::string_view a, std::string_view b);

/// The name that is nearest to `word`, if one is near: a few letters off, or one begins with the other. Else empty.
[[nodiscard]] std::string_view nearest(std::string_view word, const std::vector<std::string_view>& names);

} // namespace vtpmd
