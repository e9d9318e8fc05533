// The manager as a whole: opens the TPM and the store, serves vTPMs until it is told to stop, and ends in good order.
#pragma once

#include "manager/options.hpp"
#include "util/runtime.hpp"

namespace vtpmd::manager {

/// Until deps.stop is requested, then: no new vTPMs, requests in flight are finished, children are stopped, the counter is
/// stepped, the TPM is given back. The error's code gives the exit code (exit_code()); its message is one line that says what
/// to do.
Task<Result<void>> run_manager(ManagerOptions options, RuntimeDeps deps);

} // namespace vtpmd::manager
