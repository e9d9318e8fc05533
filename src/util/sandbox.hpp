// What a process gives up before it touches a byte of a guest's, so that code which breaks into it has the descriptors
// that it was given and nothing else (docs/security.md). In this order, each for what the one before leaves:
//
//   root         the folder of the manager's link, in which there is nothing to open
//   user         one of its own, of which nothing else is
//   capabilities none, not even to be had by exec
//   limits       descriptors, core files
//   no_new_privs
//   Landlock     no file is opened, made, removed or run; no TCP; no signal to another process, no abstract socket
//   seccomp      a list of calls; all others fail with EPERM. No exec, ptrace, mount, namespace, new ring, no memory
//                that is written and run; clone() for threads only
//
// What rings do, which seccomp does not see, is in ring_restrictions.hpp.
#pragma once

#include "util/result.hpp"

#include <optional>
#include <string>
#include <string_view>
#include <sys/types.h>
#include <vector>

namespace vtpmd {

enum class SandboxMode {
    automatic, ///< what this kernel and this process's rights allow; what they do not is said
    on,        ///< all of it, or it does not start
    off
};
[[nodiscard]] Result<SandboxMode> parse_sandbox_mode(std::string_view text);

struct SandboxPlan {
    std::optional<uid_t> user; ///< and the group of the same number, no other
    bool root_here = false;    ///< the working directory becomes the root
};

struct SandboxReport {
    std::vector<std::string> holds;
    std::vector<std::string> lacks; ///< with the reason
};
/// For good. The process has one thread. Errors are in `lacks`: each layer is tried.
[[nodiscard]] SandboxReport enter_sandbox(const SandboxPlan& plan);

/// First of all in main(): /proc/PID/mem that is opened before it would stay open.
void forbid_dumping() noexcept;

} // namespace vtpmd
