#include "util/result.hpp"

#include <cerrno>
#include <cstring>
#include <stdexcept>
#include <sysexits.h>

namespace vtpmd {

namespace {
Errc classify(int err) {
    switch (err) {
    case ENOENT:
        return Errc::not_found;
    case EEXIST:
        return Errc::exists;
    case EACCES:
    case EPERM:
    case EROFS:
        return Errc::permission;
    case ENOSPC:
    case EDQUOT:
    case EFBIG:
        return Errc::no_space;
    case EADDRINUSE:
    case EBUSY:
        return Errc::busy;
    case ECANCELED:
        return Errc::canceled;
    case ETIMEDOUT:
        return Errc::timed_out;
    case ECONNREFUSED:
    case ECONNRESET:
    case EPIPE:
    case ENOTCONN:
        return Errc::closed;
    case ENOSYS:
    case EOPNOTSUPP:
        return Errc::unsupported;
    default:
        return Errc::io;
    }
}
} // namespace

Error errno_error(int err, std::string_view what) {
    Error e = make_error(classify(err), "{}: {}", what, std::strerror(err));
    e.detail = static_cast<unsigned>(err);
    return e;
}

int exit_code(Errc code) noexcept {
    switch (code) {
    case Errc::usage:
        return EX_USAGE;
    case Errc::not_found:
        return EX_NOINPUT;
    case Errc::exists:
    case Errc::no_space:
        return EX_CANTCREAT;
    case Errc::permission:
        return EX_NOPERM;
    case Errc::io:
        return EX_IOERR;
    case Errc::not_ours:
    case Errc::version:
    case Errc::corrupt:
    case Errc::rollback:
    case Errc::mismatch:
    case Errc::pcr_mismatch:
    case Errc::tombstone:
        return EX_DATAERR;
    case Errc::protocol:
    case Errc::too_large:
        return EX_PROTOCOL;
    case Errc::busy:
    case Errc::lingering:
    case Errc::timed_out:
    case Errc::closed:
    case Errc::canceled:
        return EX_TEMPFAIL;
    case Errc::unavailable:
    case Errc::tpm:
    case Errc::unsupported:
        return EX_UNAVAILABLE;
    }
    return EX_SOFTWARE;
}

void throw_exception_from_error(const Error& e, const boost::source_location& /*where*/) {
    throw std::runtime_error(e.message);
}

} // namespace vtpmd
