// What the words behind a command mean.
#pragma once

#include "options.hpp"

#include <string>

namespace vtpmctl {

/// The UUID of the vTPM that the first word means: a UUID always means itself, else it is the name of one.
[[nodiscard]] std::string vtpm_word(const Options& o);

} // namespace vtpmctl
