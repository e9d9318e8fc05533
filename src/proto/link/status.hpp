// Status codes of the manager protocol and what they mean to us: the one place where an Error becomes a status and
// back.
//
//   status              code   Errc                 why
//   TPM_SUCCESS         0      -
//   TPM_AUTHFAIL        0x01   -> permission        management by another than the administrator's vTPM
//   TPM_BADINDEX        0x02   not_found            registered, but nothing was ever saved (LOADHASHKEY); or not
//                                                   registered (HELLO)
//   TPM_BAD_PARAMETER   0x03   usage                a field with a value that makes no sense
//   TPM_DISABLED_CMD    0x08   -> permission        sent by older managers only
//   TPM_FAIL            0x09   tpm, and the rest    the hardware TPM failed, or anything without a row of its own
//   TPM_BAD_ORDINAL     0x0A   unsupported
//   TPM_NOSPACE         0x11   no_space             the manager's disk is full
//   TPM_BAD_PARAM_SIZE  0x19   protocol, too_large  a body of the wrong length
//   TPM_BADTAG          0x1E   -> protocol
//   TPM_IOERROR         0x1F   io                   the manager's disk failed
//   TPM_VENDOR_ERROR    0x400 + n, ours:
//     1 tombstone, 2 busy (open elsewhere, or more than its share), 3 permission, 4 mismatch, 5 unavailable (closed,
//     timed_out, canceled too: try again), 6 rollback, 7 pcr_mismatch, 8 corrupt, 9 version, 10 exists, 11 deleted
//     (tombstone too: an answer to HELLO tells it from 1, which is of one that was migrated away; an older manager says
//     1 of both)
//
// TPM codes: TPM Main part 2, section 16.
#pragma once

#include "util/result.hpp"

#include <cstdint>

namespace vtpmd::proto {

enum class Status : std::uint32_t {
    success = 0,
    auth_fail = 0x01, ///< management by another than the administrator's vTPM
    bad_index = 0x02,
    bad_parameter = 0x03,
    disabled_cmd = 0x08,
    fail = 0x09,
    bad_ordinal = 0x0A,
    no_space = 0x11,
    bad_param_size = 0x19,
    bad_tag = 0x1E,
    io_error = 0x1F,
    vendor_tombstone = 0x401,
    vendor_busy = 0x402,
    vendor_permission = 0x403,
    vendor_mismatch = 0x404,
    vendor_unavailable = 0x405,
    vendor_rollback = 0x406,
    vendor_pcr_mismatch = 0x407,
    vendor_corrupt = 0x408,
    vendor_version = 0x409,
    vendor_exists = 0x40A,
    vendor_deleted = 0x40B,
};

[[nodiscard]] Status status_of(Errc code) noexcept;
/// The same, but Errc::tombstone with vendor_deleted as its detail is that.
[[nodiscard]] Status status_of(const Error& error) noexcept;

/// The Errc a status stands for. `status` is not success; one that the table does not know is Errc::tpm.
[[nodiscard]] Errc errc_of(std::uint32_t status) noexcept;

/// What to say of a status when the peer sent no text of its own.
[[nodiscard]] Error status_error(std::uint32_t status);

} // namespace vtpmd::proto
