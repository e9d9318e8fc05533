// The messages of the manager protocol, pure. Frames are in frame.hpp, status codes in status.hpp.
//
//   ordinal      name           request body                         response body
//   1            SAVEHASHKEY    52 or 64 bytes                       -
//   2            LOADHASHKEY    -                                    52 or 64 bytes
//   3            GET_BOOT_HASH  -                                    20 bytes
//   4            GET_QUOTE      see old_quote.hpp
//   0x56500001   HELLO          u16 protocol version (1), uuid[16],  u16 protocol version (1), u32 flags (1 known,
//                               u8 TPM version (1: 1.2, 2: 2.0),     2 has a record, 4 may create, 8 was reset),
//                               u32 flags (1 create, 2 incoming)     u8 TPM version (0 if not known)
//   0x56500002   HANDED_OVER    -                                    -
//   0x56500003   QUOTE          see quote_messages.hpp
//   0x56500004   CERTIFY        see certify_messages.hpp
//   0x56500005   INVITE         see ask_messages.hpp
//   0x56500006   ATTACH         see ask_messages.hpp
//   0x56500009   RESET_INFO     -                                    u64 sequence, u64 seconds since 1970, u8 n
//                                                                    (32 or 20), hash of the slot given up[n]
//   0x5650000A   SAVE_OVER      u8 n (0, 20 or 32), hash[n] of the    -
//                               slot on record, then 52 or 64 bytes
//   tag 0x01C2   management, see management.hpp
//
// SAVE_OVER is SAVEHASHKEY for one that names what it replaces (n = 0: nothing): TPM_VENDOR_ERROR + 6 if that is not
// what is on record, so that two instances of one vTPM never save over each other. What is on record already is saved,
// whatever it replaces. HELLO, HANDED_OVER, QUOTE, CERTIFY, RESET_INFO and SAVE_OVER are ours, outside the ranges of
// the Xen ordinals. HELLO names the vTPM on a socket, once, before anything else. HANDED_OVER says that another host
// has taken this vTPM: the manager leaves a tombstone. QUOTE asks for a deep quote. RESET_INFO asks for the last reset
// to factory, where HELLO says that there was one; who has not asked keeps nothing on that link, since it may be an
// instance that began before. CERTIFY asks for an endorsement key's certificate; a manager from before it refuses it as
// any unknown ordinal. An error answer to HELLO may carry text (UTF-8, at most 1024 bytes) for the operator; every
// other error answer has no body. A frame with tag 0x00C1 or 0x8001 is a TPM command for the manager's TPM; its answer
// is a TPM response.
#pragma once

#include "proto/link/ask_messages.hpp"
#include "proto/link/certify_messages.hpp"
#include "proto/link/frame.hpp"
#include "proto/link/old_quote.hpp"
#include "proto/link/quote_messages.hpp"
#include "proto/link/status.hpp"
#include "tpm/version.hpp"
#include "util/secret_bytes.hpp"
#include "util/uuid.hpp"

#include <array>
#include <optional>
#include <string_view>
#include <variant>

namespace vtpmd::proto {

inline constexpr std::uint16_t protocol_version = 1;
inline constexpr std::size_t hash_key_short = 52; ///< key[32] || SHA-1, older peers
inline constexpr std::size_t hash_key_long = 64;  ///< key[32] || SHA-256
inline constexpr std::size_t hash_key_part = 32;  ///< the key; the rest is the hash of the slot as written
[[nodiscard]] constexpr bool is_slot_hash_size(std::size_t n) {
    return n == hash_key_short - hash_key_part || n == hash_key_long - hash_key_part;
}
inline constexpr std::size_t boot_hash_size = 20;
inline constexpr std::size_t error_text_limit = 1024;

namespace ordinal {
inline constexpr std::uint32_t save_hash_key = 1;
inline constexpr std::uint32_t load_hash_key = 2;
inline constexpr std::uint32_t get_boot_hash = 3;
inline constexpr std::uint32_t get_quote = 4;
inline constexpr std::uint32_t hello = 0x56500001;
inline constexpr std::uint32_t handed_over = 0x56500002;
inline constexpr std::uint32_t quote = 0x56500003;
inline constexpr std::uint32_t certify = 0x56500004;
inline constexpr std::uint32_t reset_info = 0x56500009;
inline constexpr std::uint32_t save_over = 0x5650000A;
} // namespace ordinal

struct HelloRequest {
    Uuid uuid;
    TpmVersion version = TpmVersion::tpm20;
    bool create = false; ///< register the UUID if it is new (--create)
    bool incoming =
        false; ///< its state comes from another host (--incoming): a vTPM that was migrated away may come back
};

/// The last reset to factory of a vTPM.
struct ResetInfo {
    std::uint64_t sequence = 0; ///< of the vTPM's keys: tells one reset from another
    std::uint64_t when = 0;     ///< seconds since 1970, for people
    Bytes given_up;             ///< hash of the slot whose state it was, 32 or 20 bytes
    friend bool operator==(const ResetInfo&, const ResetInfo&) = default;
};

/// What the manager says of a vTPM when it is greeted.
struct HelloReply {
    bool known = false;                     ///< the manager has a registration for this UUID
    bool has_record = false;                ///< and a hash_key: state was acknowledged once
    bool may_create = false;                ///< the manager's --auto-create: a fresh TPM is asked for if there was none
    TpmVersion version = TpmVersion::tpm20; ///< as registered, if known
    bool was_reset = false;                 ///< to factory, once or more
    std::optional<ResetInfo> reset = {};    ///< if was_reset: not of this message, the client asks for it
};

using BootHash = std::array<std::byte, boot_hash_size>;

// --- requests, as the server sees them ---

struct SaveRequest {
    SecretBytes hash_key;           ///< 52 or 64 bytes
    std::optional<Bytes> over = {}; ///< SAVE_OVER: hash of the slot that it replaces, empty: none
};
struct LoadRequest {};
struct BootHashRequest {};
struct HandedOverRequest {};
struct InviteRequest {};
struct ResetInfoRequest {};
/// A raw TPM command that a vTPM may pass on: TPM_GetRandom, TPM_PcrRead, TPM2_GetRandom, TPM2_PCR_Read; TPM_Extend,
/// which is the administrator's only.
struct TpmCommand {
    Bytes command;
};
/// A management request (management.hpp), not looked at: whether the peer may ask at all comes first.
struct ManagementRequest {
    Bytes frame;
};
/// A frame that is none of the above: the answer to send, and why for the log.
struct BadRequest {
    Bytes answer;
    std::string reason;
};
using Request = std::variant<HelloRequest, SaveRequest, LoadRequest, BootHashRequest, HandedOverRequest,
                             ResetInfoRequest, QuoteRequest, OldQuoteRequest, InviteRequest, AttachRequest,
                             CertifyRequest, TpmCommand, ManagementRequest, BadRequest>;

/// Any whole frame (parse_frame holds).
[[nodiscard]] Request parse_request(ByteView frame);

[[nodiscard]] Bytes encode_hello_reply(const HelloReply& reply);
[[nodiscard]] Bytes encode_reset_info_reply(const ResetInfo& info);
/// SAVEHASHKEY's answer has no body, those of LOADHASHKEY and GET_BOOT_HASH have what was asked for.
[[nodiscard]] Bytes encode_success(ByteView body = {});
[[nodiscard]] Bytes encode_error(const Error& error);
/// With the error's text as body, cut to error_text_limit.
[[nodiscard]] Bytes encode_hello_error(const Error& error);
/// A TPM response in the family of the command's tag that says `failed` (TPM_FAIL, TPM_RC_FAILURE) or "no
/// such command" (TPM_BAD_ORDINAL, TPM_RC_COMMAND_CODE).
enum class TpmRefusal { failed, no_such_command };
[[nodiscard]] Bytes encode_tpm_refusal(std::uint16_t command_tag, TpmRefusal why);

// --- requests and answers, as the client sees them ---

[[nodiscard]] Bytes encode_hello(const HelloRequest& request);
/// Holds a secret: cleanse it after use.
[[nodiscard]] Bytes encode_save(ByteView hash_key);
/// `over` has 0, 20 or 32 bytes. Holds a secret: cleanse it after use.
[[nodiscard]] Bytes encode_save_over(ByteView over, ByteView hash_key);
[[nodiscard]] Bytes encode_load();
[[nodiscard]] Bytes encode_get_boot_hash();
[[nodiscard]] Bytes encode_handed_over();
[[nodiscard]] Bytes encode_reset_info();

/// The body of a success answer; what the manager's status says otherwise; Errc::protocol for anything but an
/// answer.
[[nodiscard]] Result<ByteView> parse_response(ByteView frame);
[[nodiscard]] Result<HelloReply> parse_hello_reply(ByteView frame);
[[nodiscard]] Result<void> parse_save_reply(ByteView frame);
/// nullopt: TPM_BADINDEX, nothing was ever saved.
[[nodiscard]] Result<std::optional<SecretBytes>> parse_load_reply(ByteView frame);
[[nodiscard]] Result<BootHash> parse_boot_hash_reply(ByteView frame);
[[nodiscard]] Result<ResetInfo> parse_reset_info_reply(ByteView frame);

} // namespace vtpmd::proto
