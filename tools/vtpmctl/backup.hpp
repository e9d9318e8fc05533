// A copy of the manager's store, into a file.
#pragma once

#include "options.hpp"

#include <cstdint>
#include <functional>
#include <string_view>

namespace vtpmctl {

/// What of the answer's body comes, piece by piece; and how much it is in all.
using Sink = std::function<void(std::string_view piece, std::uint64_t total)>;
/// Asks the manager for it, and returns once all of it has been given to the sink.
using Fetch = std::function<void(const Sink& sink)>;

/// The file has mode 0600, and is there whole and durable or not at all; a backup that is there is replaced only with --yes, anything
/// else never. `store` is the manager's own. Returns its bytes.
std::uint64_t backup(const Options& o, const std::string& path, const std::string& store, const Fetch& fetch);
/// A copy of a store, without the zeros at its end.
[[nodiscard]] std::string read_copy(const std::string& path);

} // namespace vtpmctl
