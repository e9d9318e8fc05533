// The root coroutine of `vtpmd --mode=instance`.
#pragma once

#include "instance/options.hpp"
#include "util/runtime.hpp"

namespace vtpmd::instance {

/// Runs one vTPM until asked to stop (deps.stop, or a guest's CMD_SHUTDOWN): opens what there is, serves, and leaves in
/// good order. An error says what is wrong and what to do, and maps to an exit code (exit_code()).
Task<Result<void>> run_instance(InstanceOptions options, RuntimeDeps deps);

} // namespace vtpmd::instance
