// What an operator of a full host meets: a manager process with many vTPMs in many groups, on a real disk and over a TPM 2.0
// (swtpm), asked over its management socket; its vTPMs' first saves come over its link socket as instances send them.
#pragma once

#include "measure.hpp"

namespace bench {

inline constexpr std::size_t management_clients = 16;

struct ManagementFigures {
    double fill_per_second = 0; ///< vTPMs registered, by as many clients as there are
    Latency create, show, list, list_groups, metrics, create_group;
    Latency show_while_listed; ///< one vTPM, while somebody else asks for the whole list without a pause
    double list_bytes = 0;
    double pss_kib = 0;       ///< of the manager, with all of them
    double empty_pss_kib = 0; ///< of the manager, with none
    double image_bytes = 0;   ///< on the disk
    double record_bytes = 0;  ///< of them, taken by a checkpoint
    /// From the process's start to the first answer over the management socket.
    double start_us = 0, groups_start_us = 0, empty_start_us = 0; ///< full, without vTPMs, without groups
};

/// Registers `vtpms` in `groups` groups with a new store in `dir`, saves each once, and measures. Throws.
ManagementFigures manage(const Programs& programs, const std::filesystem::path& dir, const Extent& extent);

} // namespace bench
