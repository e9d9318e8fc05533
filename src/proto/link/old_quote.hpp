// GET_QUOTE (ordinal 4), as Xen's manager has it, pure: a hardware TPM 1.2 quotes PCRs for a vTPM, with data of the
// vTPM's own. Which vTPM that is says the link, never the request.
//
//   request   data[20], TPM_PCR_SELECTION of the hardware (u16 n, n bytes: bit i is PCR i; n is 1 to 3), u32 flags
//             (tpm::old_quote)
//   answer    signature[256], SHA-1[20] of what each flag names, in the order of the flags, value[20] of each PCR
//
// What is signed is in quote/old_quote.hpp.
#pragma once

#include "proto/link/frame.hpp"
#include "tpm/sha1.hpp"

namespace vtpmd::proto {

struct OldQuoteRequest {
    tpm::Sha1Digest data{};
    Bytes selection; ///< the bytes of TPM_PCR_SELECTION: what a TPM 1.2 signs has their number in it
    std::uint32_t flags = 0;
    friend bool operator==(const OldQuoteRequest&, const OldQuoteRequest&) = default;
};

/// Errc::usage: a selection of no byte or more than three, or an unknown flag.
[[nodiscard]] Result<void> check(const OldQuoteRequest& request);
/// Bytes of the answer's body.
[[nodiscard]] std::size_t old_quote_reply_size(const OldQuoteRequest& request);
/// Precondition: check().
[[nodiscard]] Bytes encode_old_quote(const OldQuoteRequest& request);
/// Errc::protocol: a body of the wrong length; usage: see check().
[[nodiscard]] Result<OldQuoteRequest> parse_old_quote(ByteView body);
/// The answer's body to this request. Errc::protocol: of another size; else what the manager says.
[[nodiscard]] Result<Bytes> parse_old_quote_reply(ByteView frame, const OldQuoteRequest& request);

} // namespace vtpmd::proto
