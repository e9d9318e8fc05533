// Expected outcomes. A function that can fail for a reason its caller must handle returns Result<T>; a broken
// invariant terminates; exceptions are for start-up and for third parties and are caught at a task's edge.
#pragma once

#include <boost/system/result.hpp>
#include <fmt/format.h>
#include <string>
#include <string_view>
#include <utility>

namespace vtpmd {

/// What went wrong, in the terms a caller decides on. The message of Error says the rest.
enum class Errc {
    usage = 1,    ///< a command line, configuration or request that makes no sense
    not_found,    ///< a file, record or index that is not there
    exists,       ///< it is there already and must not be replaced
    busy,         ///< somebody else has it open
    lingering,    ///< a process that has ended has it open: the kernel will free it
    permission,   ///< the operating system or a policy says no
    io,           ///< read, write or sync failed (EIO and the like)
    no_space,     ///< the disk or the image is full; nothing was overwritten
    not_ours,     ///< a file that is not a vtpmd image (magic)
    version,      ///< an image or peer of a version that this program does not know
    corrupt,      ///< authentication or structure of stored data is wrong
    rollback,     ///< stored data is older than the freshness counter allows
    mismatch,     ///< data that belongs to another vTPM, host, TPM or TPM version
    pcr_mismatch, ///< the platform's PCRs are not those that were sealed to
    tombstone,    ///< the vTPM was deleted or migrated away
    protocol,     ///< a peer's message is malformed
    too_large,    ///< over a named limit
    closed,       ///< the peer or the object is gone
    timed_out,    ///< no answer in time
    canceled,     ///< we were asked to stop
    unavailable,  ///< a service we need is not there (now); trying again can help
    tpm,          ///< a TPM answered with an error code
    unsupported,  ///< not built in, or not offered by this kernel or TPM
};

/// An error with its story: what was expected, what was found and where (path, offset, UUID). Never a secret.
struct Error {
    Errc code;
    std::string message;
    /// The TPM's response code for Errc::tpm, errno for Errc::io and its like, else 0.
    unsigned detail = 0;
};

template <typename T>
using Result = boost::system::result<T, Error>;

template <typename... Args>
[[nodiscard]] Error make_error(Errc code, fmt::format_string<Args...> format, Args&&... args) {
    return Error{code, fmt::format(format, std::forward<Args>(args)...)};
}

/// "path: Permission denied (write)" from an errno value; picks the Errc that fits.
[[nodiscard]] Error errno_error(int err, std::string_view what);

/// The same error with more of its story in front: "opening /x: ...".
[[nodiscard]] inline Error in_context(Error e, std::string_view context) {
    e.message = fmt::format("{}: {}", context, e.message);
    return e;
}

/// The exit code of sysexits(3) for an error that ends the program.
[[nodiscard]] int exit_code(Errc code) noexcept;

/// Makes result<T, Error>::value() usable in tests and start-up code.
[[noreturn]] void throw_exception_from_error(const Error& e, const boost::source_location& where);

} // namespace vtpmd
