// The control channel that QEMU, cloud-hypervisor, libvirt, the swtpm TCTI and swtpm_ioctl speak: its messages, pure.
// Big-endian. Request: u32 command, body. Answer: u32 result, body; an error is the result alone.
//
//   no.  command             request body                                answer's body
//    1   GET_CAPABILITY      -                                           u32 bits
//    2   INIT                u32 flags (1: delete volatile state)        -
//    3   SHUTDOWN            -                                           -
//    4   GET_TPMESTABLISHED  -                                           u8 bit, 3 zeros
//    5   SET_LOCALITY        u8                                          -
//    6   HASH_START          -                                           -
//    7   HASH_DATA           u32 n, n bytes                              -
//    8   HASH_END            -                                           -
//    9   CANCEL_TPM_CMD      -                                           -
//   10   STORE_VOLATILE      -                                           -
//   11   RESET_TPMESTABLISHED  u8 locality                               -
//   12   GET_STATEBLOB       u32 flags, u32 type, u32 offset             u32 flags, u32 total, u32 n, n bytes
//   13   SET_STATEBLOB       u32 flags, u32 type, u32 n, n bytes         -
//   14   STOP                -                                           -
//   15   GET_CONFIG          -                                           u32 flags
//   16   SET_DATAFD          a descriptor beside it                      (not offered on a socket endpoint)
//   17   SET_BUFFERSIZE      u32 size (0 asks)                           u32 size, u32 min, u32 max
//   18   GET_INFO            u64 flags, u32 offset, u32 pad              u32 total, u32 n, n bytes of JSON
//   19   LOCK_STORAGE        u32 retries                                 -
//
// HASH_DATA may be of any length: it is hashed as it comes, piece by piece, and answered once.
//
// There is no framing: a client sends one request and waits for its answer. Some (QEMU) send a u8 as the four bytes of
// the C union it stands in, so what is in the buffer behind a complete request belongs to it and is dropped.
#pragma once

#include "util/bytes.hpp"
#include "util/result.hpp"

#include <cstdint>

namespace vtpmd::guest {

enum class ControlCommand : std::uint32_t {
    get_capability = 1,
    init,
    shutdown,
    get_established,
    set_locality,
    hash_start,
    hash_data,
    hash_end,
    cancel,
    store_volatile,
    reset_established,
    get_stateblob,
    set_stateblob,
    stop,
    get_config,
    set_datafd,
    set_buffersize,
    get_info,
    lock_storage,
};

/// TPM 1.2 codes (TPM Main part 2, section 16), whatever the family.
enum class ControlResult : std::uint32_t {
    success = 0,
    bad_parameter = 3,
    fail = 9,
    bad_ordinal = 0x0A, ///< unknown, or not in this run state
    io_error = 0x1F,
    bad_locality = 0x3D,
};

inline constexpr std::uint32_t init_delete_volatile = 1;
inline constexpr std::uint32_t state_decrypted = 1;
inline constexpr std::uint32_t state_encrypted = 2;
/// So much of a HASH_DATA is taken at once; the rest comes in further pieces of this size (ControlRequest::more).
inline constexpr std::size_t hash_data_piece = 4096;
/// Over the largest blob that libtpms makes (a TPM 2.0's permanent state with all its NV memory full).
inline constexpr std::size_t state_blob_limit = std::size_t{512} * 1024;
inline constexpr std::size_t info_chunk_limit = std::size_t{3} * 1024;

struct ControlRequest {
    ControlCommand command{};
    std::uint64_t flags = 0;  ///< INIT, GET_STATEBLOB, SET_STATEBLOB, GET_INFO
    std::uint32_t type = 0;   ///< GET_STATEBLOB, SET_STATEBLOB
    std::uint32_t offset = 0; ///< GET_STATEBLOB, GET_INFO
    std::uint32_t value =
        0;                ///< SET_LOCALITY, RESET_TPMESTABLISHED: locality; SET_BUFFERSIZE: size; LOCK_STORAGE: retries
    Bytes data;           ///< HASH_DATA, SET_STATEBLOB
    std::size_t more = 0; ///< HASH_DATA: bytes that follow behind this request
};

/// How many bytes the request that begins with `so_far` has in all, as far as that can be told yet: if it is more than
/// so_far.size(), read on and ask again; if not, the request is complete. The u32 of an unknown command is complete,
/// and so is a HASH_DATA with its first piece. Errc::too_large for a length field over its limit.
[[nodiscard]] Result<std::size_t> control_size(ByteView so_far);

/// A complete request. Errc::unsupported: no such command.
[[nodiscard]] Result<ControlRequest> parse_control(ByteView request);

[[nodiscard]] Bytes control_answer(ControlResult result, ByteView body = {});

} // namespace vtpmd::guest
