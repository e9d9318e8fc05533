// A live view of the vTPMs and of what they share.
#pragma once

#include "options.hpp"

#include <functional>

namespace vtpmctl {

/// Shows what `fetch` gives (the body of GET /v1/top) every --interval seconds, until q, Ctrl-C, or at once with --once.
void top(const Options& o, const std::function<std::string()>& fetch);

} // namespace vtpmctl
