// One request to the manager's API, a connection of its own for each.
#pragma once

#include "backup.hpp"
#include "options.hpp"

#include <string>
#include <string_view>

namespace vtpmctl {

/// The body of what was answered. An answer that is an error ends the program with what the manager says of it.
[[nodiscard]] std::string ask(const Options& o, std::string_view method, std::string_view target,
                              const std::string& body = "");
/// The body of an answer that may be large, piece by piece.
void fetch(const Options& o, std::string_view method, std::string_view target, const Sink& sink);

/// As a query takes it.
[[nodiscard]] std::string encoded(std::string_view text);

} // namespace vtpmctl
