// Precompiled for every target: what nearly every source sees of other people's headers, and nothing of ours.
//
// It saves half of a build. A source still includes what it uses: clang-tidy (tools/test tidy) compiles each one
// without this file.
#include "util/asio.hpp"

#include <boost/system/result.hpp>
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <variant>
#include <vector>
