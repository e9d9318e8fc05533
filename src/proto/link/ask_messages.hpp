// How a manager asks a running instance, pure. An instance is always the one that connects; so that it can be asked, it
// makes a second connection, which the first one vouches for:
//
//   ordinal      name        asked by   request body                                       response body
//   0x56500005   INVITE      instance   -                                                  key[32]
//   0x56500006   ATTACH      instance   u16 protocol version (1), uuid[16], key[32]        -
//
// INVITE goes over the link that holds the vTPM. ATTACH is the first frame of the second connection, in HELLO's place,
// with the key that INVITE gave; it opens nothing and holds nothing, and ends with the link that vouched for it. A new
// one takes the place of an older one. From then on the manager is the one that asks on that connection, one question
// at a time:
//
//   0x56500007   ASK_QUOTE   manager    u8 n, nonce[n] (1 to 64), PCRs of the vTPM,        a deep quote
//                                       PCRs of the hardware
//   0x56500008   REPORT      instance   what its guest's commands came to (below)          there is no response
//
// PCRs are u8 n (0 to 4; of the hardware 1 to 4), n * (u16 TPM_ALG_ID, u32 mask: bit i is PCR i), banks ascending; bank
// 0, alone: the hardware's best. An error answer may carry text (UTF-8, at most 1024 bytes) for whoever asked. A REPORT
// may come at any time:
//
//   u64 incarnation, u8 flags (1: an earlier part was reported to some manager, 2: nothing comes after it), u64
//   commits, u64 failed commits, u64 nanoseconds that commands took, 7 * u64 commands by latency, u8 n (0 to 100),
//   n * (u32 command code, 0: any that has no name; u64 success, u64 TPM error, u64 refused, u64 not durable), codes
//   ascending
//
// All figures are totals since the instance started, which `incarnation`, a random number, stands for. A command that
// is not named is as it was in the report before.
#pragma once

#include "proto/link/quote_messages.hpp"
#include "util/secret_bytes.hpp"

#include <array>
#include <chrono>
#include <span>

namespace vtpmd::proto {

namespace ordinal {
inline constexpr std::uint32_t invite = 0x56500005;
inline constexpr std::uint32_t attach = 0x56500006;
inline constexpr std::uint32_t ask_quote = 0x56500007;
inline constexpr std::uint32_t report = 0x56500008;
} // namespace ordinal

inline constexpr std::size_t attach_key_size = 32;
inline constexpr std::size_t report_command_limit = 100; ///< of one report; what is more comes with the next

struct AttachRequest {
    Uuid uuid;
    SecretBytes key;
};

/// An operator's quote (instance/quotes/deep_quote.hpp makes it).
struct AskQuote {
    Bytes nonce;
    std::vector<QuoteSelection> pcrs;      ///< of the vTPM; may be none
    std::vector<QuoteSelection> host_pcrs; ///< of the hardware
    friend bool operator==(const AskQuote&, const AskQuote&) = default;
};

struct CommandTotals {
    std::uint64_t success = 0;
    std::uint64_t tpm_error = 0;   ///< the TPM said no
    std::uint64_t refused = 0;     ///< by size, locality or policy, before the TPM
    std::uint64_t not_durable = 0; ///< answered with a failure since state could not be made durable
    [[nodiscard]] std::uint64_t failures() const noexcept { return tpm_error + refused + not_durable; }
    [[nodiscard]] std::uint64_t all() const noexcept { return success + failures(); }
    friend bool operator==(const CommandTotals&, const CommandTotals&) = default;
};
struct CommandReport {
    std::uint32_t code = 0; ///< 0: all that have no name
    CommandTotals totals;
    friend bool operator==(const CommandReport&, const CommandReport&) = default;
};
/// A guest's command took at most this long, from its arrival to its answer; the last bucket is for those that took
/// longer.
inline constexpr std::array<std::chrono::microseconds, 6> latency_bounds{
    std::chrono::microseconds{10},    std::chrono::microseconds{100},    std::chrono::microseconds{1000},
    std::chrono::microseconds{10000}, std::chrono::microseconds{100000}, std::chrono::microseconds{1000000}};
struct Report {
    std::uint64_t incarnation = 0;
    bool continued = false; ///< an earlier part was reported to some manager
    bool last = false;
    std::uint64_t commits = 0;
    std::uint64_t commit_failures = 0;
    std::uint64_t latency_ns = 0;
    std::array<std::uint64_t, latency_bounds.size() + 1> latency{};
    std::vector<CommandReport> commands = {};
    friend bool operator==(const Report&, const Report&) = default;
};

[[nodiscard]] Bytes encode_invite();
/// The frame holds a secret.
[[nodiscard]] Bytes encode_invite_reply(ByteView key);
/// Errc::protocol: anything but a key; else what the manager's status says.
[[nodiscard]] Result<SecretBytes> parse_invite_reply(ByteView frame);
/// The frame holds a secret.
[[nodiscard]] Bytes encode_attach(const AttachRequest& request);
/// Errc::version, protocol.
[[nodiscard]] Result<AttachRequest> parse_attach(ByteView body);

/// Errc::usage names what is wrong.
[[nodiscard]] Result<void> check(const AskQuote& question);
/// Precondition: check().
[[nodiscard]] Bytes encode_ask_quote(const AskQuote& question);
/// Errc::protocol: a body of the wrong length; usage: see check().
[[nodiscard]] Result<AskQuote> parse_ask_quote(ByteView body);

/// Errc::too_large: more than a frame carries.
[[nodiscard]] Result<Bytes> encode_answer(ByteView body);
[[nodiscard]] Bytes encode_answer_error(const Error& error);
/// The body of a success answer; the error that the other end told of, with its text; Errc::protocol for anything but
/// an answer.
[[nodiscard]] Result<Bytes> parse_answer(ByteView frame);

/// Precondition: at most report_command_limit commands, codes ascending.
[[nodiscard]] Bytes encode_report(const Report& report);
/// Errc::protocol.
[[nodiscard]] Result<Report> parse_report(ByteView body);

} // namespace vtpmd::proto
