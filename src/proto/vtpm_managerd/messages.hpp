// The privileged requests of the manager of 2006 (vtpm_managerd), pure: with them a toolstack opens, closes and deletes
// vTPMs by number.
//
//   request   u32 instance (0: the privileged channel itself), u16 0x01C1, u32 size (of what follows the instance), u32
//             ordinal, body
//   answer    u32 0, u16 0x01C4, u32 10, u32 status
//
//   ordinal     name    body
//   0x01000001  OPEN    u8 migratable (0, 1), u8 start (1 clear, 2 resume, 3 deactivated), u8 kind (1 PV, 2 HVM), u32
//                       instance
//   0x01000002  CLOSE   u32 instance
//   0x01000003  DELETE  u32 instance
//
// Numbers are big-endian. Instance 0 is the privileged domain's, and no vTPM's. Of the others (MIGRATE_IN, MIGRATE_OUT,
// SAVENVM, LOADNVM, TPMCOMMAND, GET_MIG_KEY, LOAD_MIG_KEY) none is offered: a vTPM's instance has its own link
// (messages.hpp).
#pragma once

#include "util/bytes.hpp"
#include "util/result.hpp"

#include <cstdint>
#include <string>
#include <variant>

namespace vtpmd::proto::legacy {

inline constexpr std::size_t prefix_size = 4;                ///< the instance number before the header
inline constexpr std::size_t header_size = prefix_size + 10; ///< with it
inline constexpr std::size_t request_limit = 64;             ///< bytes, of a request that is answered at all

enum class Status : std::uint32_t {
    success = 0,
    fail = 1,
    unsupported = 2,
    forbidden = 3,
    restore_failed = 4,
    invalid = 5,
};
enum class Start : std::uint8_t { clear = 1, resume = 2, deactivated = 3 };

struct Open {
    bool migratable = false;
    Start start = Start::clear;
    bool hvm = false;
    std::uint32_t instance = 0;
    friend bool operator==(const Open&, const Open&) = default;
};
struct Close {
    std::uint32_t instance = 0;
    friend bool operator==(const Close&, const Close&) = default;
};
struct Delete {
    std::uint32_t instance = 0;
    friend bool operator==(const Delete&, const Delete&) = default;
};
/// What is not done, and why for the log.
struct Refused {
    Status status = Status::invalid;
    std::string why;
};
using Request = std::variant<Open, Close, Delete, Refused>;

/// Bytes of the whole request that begins with this header. Errc::protocol: shorter than a header, or more than
/// request_limit: where the next one begins is not known then. Precondition: header_size bytes.
[[nodiscard]] Result<std::size_t> request_size(ByteView header);
/// A whole request.
[[nodiscard]] Request parse(ByteView request);
[[nodiscard]] Bytes encode_answer(Status status);

/// What a toolstack sends.
[[nodiscard]] Bytes encode(const Open& request);
[[nodiscard]] Bytes encode(const Close& request);
[[nodiscard]] Bytes encode(const Delete& request);

} // namespace vtpmd::proto::legacy
