// QUOTE, pure: a vTPM asks for a quote by the hardware TPM that names it. Which vTPM that is says the link, never the
// request.
//
//   request   u8 form (1), u8 n, nonce[n] (1 to 64), u16 n, endorsement[n], u16 n, pcrs[n],
//             u8 n (1 to 4), n * (u16 TPM_ALG_ID of a hardware bank, u32 mask: bit i is PCR i), banks ascending; bank
//             0, alone: the hardware's best, SHA-256 or SHA-1
//   answer    u8 hardware family (1: 1.2, 2: 2.0), group uuid[16], u16 n, attested[n], u16 n, signature[n],
//             u8 n, n * (u16 TPM_ALG_ID, u8 PCR, u8 n, value[n])
//
//   form 1    endorsement and pcrs are digests of 32 bytes; what is signed is in quote/deep_quote.hpp
// The vTPM's PCRs and its endorsement key are its instance's word; its UUID, its group and the host's PCRs are the
// manager's and the hardware's.
#pragma once

#include "proto/link/frame.hpp"
#include "tpm/version.hpp"
#include "util/uuid.hpp"

#include <vector>

namespace vtpmd::proto {

inline constexpr std::size_t quote_nonce_limit = 64;
inline constexpr std::size_t quote_digest_size = 32;    ///< SHA-256
inline constexpr std::size_t quote_selection_limit = 4; ///< banks

enum class QuoteForm : std::uint8_t { digests = 1 };

struct QuoteSelection {
    std::uint16_t bank = 0; ///< TPM_ALG_ID
    std::uint32_t pcrs = 0; ///< bit n: PCR n, 0 to 23
    friend bool operator==(const QuoteSelection&, const QuoteSelection&) = default;
};
struct QuoteRequest {
    QuoteForm form = QuoteForm::digests;
    Bytes nonce;
    Bytes endorsement;                      ///< SHA-256 of the vTPM's endorsement key, DER SubjectPublicKeyInfo
    Bytes pcrs;                             ///< SHA-256 of the vTPM's PCRs (quote/deep_quote.hpp)
    std::vector<QuoteSelection> selections; ///< of the hardware's PCRs
    friend bool operator==(const QuoteRequest&, const QuoteRequest&) = default;
};
struct QuotedPcr {
    std::uint16_t bank = 0;
    std::uint8_t index = 0;
    Bytes digest;
    friend bool operator==(const QuotedPcr&, const QuotedPcr&) = default;
};
struct QuoteReply {
    TpmVersion hardware = TpmVersion::tpm20;
    Uuid group;
    Bytes attested, signature; ///< see hwtpm::Quote
    std::vector<QuotedPcr> values;
    friend bool operator==(const QuoteReply&, const QuoteReply&) = default;
};

/// Errc::usage names what is wrong.
[[nodiscard]] Result<void> check(const QuoteRequest& request);
/// Precondition: check().
[[nodiscard]] Bytes encode_quote(const QuoteRequest& request);
/// Errc::protocol: a body of the wrong length; usage: see check().
[[nodiscard]] Result<QuoteRequest> parse_quote(ByteView body);
/// Errc::too_large: more PCRs than a frame carries.
[[nodiscard]] Result<Bytes> encode_quote_reply(const QuoteReply& reply);
[[nodiscard]] Result<QuoteReply> parse_quote_reply(ByteView frame);

} // namespace vtpmd::proto
