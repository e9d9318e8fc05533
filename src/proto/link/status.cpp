#include "proto/link/status.hpp"

namespace vtpmd::proto {

Status status_of(Errc code) noexcept {
    switch (code) {
    case Errc::not_found:
        return Status::bad_index;
    case Errc::usage:
        return Status::bad_parameter;
    case Errc::unsupported:
        return Status::bad_ordinal;
    case Errc::no_space:
        return Status::no_space;
    case Errc::protocol:
    case Errc::too_large:
        return Status::bad_param_size;
    case Errc::io:
        return Status::io_error;
    case Errc::tombstone:
        return Status::vendor_tombstone;
    case Errc::busy:
    case Errc::lingering:
        return Status::vendor_busy;
    case Errc::permission:
        return Status::vendor_permission;
    case Errc::mismatch:
        return Status::vendor_mismatch;
    case Errc::unavailable:
    case Errc::closed:
    case Errc::timed_out:
    case Errc::canceled:
        return Status::vendor_unavailable;
    case Errc::rollback:
        return Status::vendor_rollback;
    case Errc::pcr_mismatch:
        return Status::vendor_pcr_mismatch;
    case Errc::corrupt:
        return Status::vendor_corrupt;
    case Errc::version:
        return Status::vendor_version;
    case Errc::exists:
        return Status::vendor_exists;
    case Errc::not_ours:
    case Errc::tpm:
        break;
    }
    return Status::fail;
}

Status status_of(const Error& error) noexcept {
    const bool deleted =
        error.code == Errc::tombstone && error.detail == static_cast<std::uint32_t>(Status::vendor_deleted);
    return deleted ? Status::vendor_deleted : status_of(error.code);
}

Errc errc_of(std::uint32_t status) noexcept {
    switch (static_cast<Status>(status)) {
    case Status::bad_index:
        return Errc::not_found;
    case Status::bad_parameter:
        return Errc::usage;
    case Status::auth_fail:
    case Status::disabled_cmd:
    case Status::vendor_permission:
        return Errc::permission;
    case Status::bad_ordinal:
        return Errc::unsupported;
    case Status::no_space:
        return Errc::no_space;
    case Status::bad_param_size:
    case Status::bad_tag:
        return Errc::protocol;
    case Status::io_error:
        return Errc::io;
    case Status::vendor_tombstone:
    case Status::vendor_deleted:
        return Errc::tombstone;
    case Status::vendor_busy:
        return Errc::busy;
    case Status::vendor_mismatch:
        return Errc::mismatch;
    case Status::vendor_unavailable:
        return Errc::unavailable;
    case Status::vendor_rollback:
        return Errc::rollback;
    case Status::vendor_pcr_mismatch:
        return Errc::pcr_mismatch;
    case Status::vendor_corrupt:
        return Errc::corrupt;
    case Status::vendor_version:
        return Errc::version;
    case Status::vendor_exists:
        return Errc::exists;
    case Status::success:
    case Status::fail:
        break;
    }
    return Errc::tpm;
}

namespace {
std::string_view meaning(std::uint32_t status) noexcept {
    switch (static_cast<Status>(status)) {
    case Status::bad_index:
        return "there is no such record";
    case Status::bad_parameter:
        return "the request makes no sense to it";
    case Status::auth_fail:
    case Status::disabled_cmd:
    case Status::vendor_permission:
        return "not allowed";
    case Status::bad_ordinal:
        return "it does not offer this request";
    case Status::no_space:
        return "its disk is full";
    case Status::bad_param_size:
    case Status::bad_tag:
        return "the request is malformed to it";
    case Status::io_error:
        return "its disk failed";
    case Status::vendor_tombstone:
        return "this vTPM was deleted or migrated away";
    case Status::vendor_deleted:
        return "this vTPM was deleted";
    case Status::vendor_busy:
        return "this vTPM is open in another instance, or asks for more than its share; its manager's log says which";
    case Status::vendor_mismatch:
        return "it knows this vTPM as another kind";
    case Status::vendor_unavailable:
        return "it cannot serve now";
    case Status::vendor_rollback:
        return "its state is older than its freshness counter allows";
    case Status::vendor_pcr_mismatch:
        return "the platform's PCRs are not those that were sealed to";
    case Status::vendor_corrupt:
        return "its stored data is damaged";
    case Status::vendor_version:
        return "it does not speak this protocol version";
    case Status::vendor_exists:
        return "it is there already";
    case Status::success:
    case Status::fail:
        break;
    }
    return "it failed";
}
} // namespace

Error status_error(std::uint32_t status) {
    Error e = make_error(errc_of(status), "the manager says: {} (status 0x{:x})", meaning(status), status);
    e.detail = status;
    return e;
}

} // namespace vtpmd::proto
