// Why a process that a manager started ends, left in memory that both have (a memfd): the manager tells its operator.
#pragma once

#include <string_view>

namespace vtpmd {

/// Names the descriptor in the environment of whom it is given to.
inline constexpr std::string_view last_words_variable = "VTPMD_LAST_WORDS";

/// Without such a descriptor it does nothing.
void leave_last_words(std::string_view text);

} // namespace vtpmd
