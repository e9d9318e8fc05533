#include "api/errors.hpp"

namespace vtpmd::api {

ErrorKind kind_of(Errc code) noexcept {
    switch (code) {
    case Errc::usage:
        return {400, "bad_request", "correct the request as the message says, and send it again"};
    case Errc::not_found:
        return {404, "not_found", "look at what there is with: vtpmctl list, vtpmctl group list"};
    case Errc::exists:
        return {409, "exists", "nothing was changed; choose another UUID, or use the one that is there"};
    case Errc::busy:
    case Errc::lingering:
        return {409, "busy",
                "stop its instance first: vtpmctl stop UUID, or the service or guest that started it; a group is busy "
                "while it has vTPMs; of backups one is made at a time"};
    case Errc::permission:
        return {403, "forbidden",
                "ask as root or as a member of the group of --api-group; where a signature was refused, have the "
                "approver sign again, with the key that the group was made for"};
    case Errc::no_space:
        return {
            507, "no_space",
            "make the store larger (vtpmctl store grow SIZE), delete vTPMs that are not needed, or make room on the "
            "store's disk"};
    case Errc::rollback:
        return {409, "rollback",
                "use a newer list; where it is the store that is old, see the manager's log, and --accept-counter in "
                "vtpmd(8)"};
    case Errc::mismatch:
        return {409, "mismatch", "ask the manager that this belongs to"};
    case Errc::pcr_mismatch:
        return {409, "pcr_mismatch",
                "boot the host as it was sealed to or approved; or have the group's approver approve it as it is "
                "(vtpmctl group update), or seal anew with --seal-pcrs"};
    case Errc::tombstone:
        return {410, "gone", "it does not come back; make a vTPM with another UUID: vtpmctl create"};
    case Errc::too_large:
        return {413, "too_large", "send less"};
    case Errc::timed_out:
        return {504, "timed_out", "it goes on; look again with: vtpmctl show UUID, and at the manager's log"};
    case Errc::closed:
    case Errc::canceled:
    case Errc::unavailable:
        return {503, "unavailable", "try again in a moment; if it stays so, see the manager's log"};
    case Errc::tpm:
        return {502, "tpm", "the hardware TPM refused; see the manager's log for its response code"};
    case Errc::unsupported:
        return {501, "unsupported",
                "this host's TPM, its group or this build does not offer it; the message says what would"};
    case Errc::not_ours:
    case Errc::version:
    case Errc::corrupt:
        return {500, "corrupt", "stored data cannot be read: see the manager's log, keep the store as it is"};
    case Errc::io:
    case Errc::protocol:
        break;
    }
    return {500, "failed", "see the manager's log; nothing that was acknowledged is lost"};
}

} // namespace vtpmd::api
