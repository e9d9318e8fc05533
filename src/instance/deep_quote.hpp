// TPM_ORD_DeepQuote of a TPM 1.2 (Xen's vTPM has it as a vendor command): the owner asks what the hardware TPM says of this vTPM.
//
//   in    nonce[20], TPM_PCR_SELECTION of the vTPM, TPM_PCR_SELECTION of the hardware, u32 flags; authorised by the owner (AUTH1)
//   out   vTPM's uuid[16], u8 n, n * (u16 TPM_ALG_ID, u8 PCR, u8 n, value[n]) of the vTPM, then the answer of QUOTE
//         (proto/quote_messages.hpp)
//
// Flag 0x80000000: the form of quote/deep_quote.hpp, on hardware of either family. Nothing else is known: Xen's own form is not built.
#pragma once

#include "engine/owner_auth.hpp"
#include "proto/client.hpp"

namespace vtpmd::instance {

inline constexpr std::uint32_t deep_quote_form = 0x80000000;

struct DeepQuoteCommand {
    Bytes nonce;
    std::uint32_t pcrs = 0;      ///< of the vTPM, bit n: PCR n
    std::uint32_t host_pcrs = 0; ///< of the hardware, not none
};
/// Errc::protocol: too short or too long; usage: a PCR that there is not, no PCR of the hardware, or an unknown flag.
[[nodiscard]] Result<DeepQuoteCommand> parse_deep_quote(ByteView parameters);

/// What the authorised command is answered with. `engine` must not do anything else meanwhile; `session` outlives the task.
Task<Result<Bytes>> deep_quote(Engine& engine, proto::ManagerClient& manager, Uuid vtpm,
                               const OwnerAuthorised& session);

/// TPM 1.2 return code for an error of deep_quote().
[[nodiscard]] std::uint32_t deep_quote_refusal(Errc code) noexcept;

} // namespace vtpmd::instance
