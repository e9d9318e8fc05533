// Deep quotes for guests: what the hardware TPM says of this vTPM, as a vendor command of its TPM, 0x20000016 in both families.
//
// TPM 1.2 (TPM_ORD_DeepQuote, which Xen's vTPM has too), authorised by the owner (AUTH1):
//   in    nonce[20], TPM_PCR_SELECTION of the vTPM, TPM_PCR_SELECTION of the hardware, u32 flags
//   out   the deep quote (quote/deep_quote.hpp)
// TPM 2.0, without sessions; it needs the endorsement hierarchy's authorisation to be empty, as it is at first:
//   in    TPM2B nonce (1 to 64 bytes), TPML_PCR_SELECTION of the vTPM, TPML_PCR_SELECTION of the hardware, u32 flags
//   out   u16 n, the deep quote[n]; its endorsement key is the RSA-2048 one of the EK Credential Profile (template L-1)
//
// Flag 0x80000000: the form of quote/deep_quote.hpp, on hardware of either family. Without it a TPM 1.2 answers in the form of Xen's
// vTPM (old_quote.hpp).
#pragma once

#include "engine/owner_auth.hpp"
#include "proto/link/client.hpp"
#include "quote/deep_quote.hpp"
#include "util/worker.hpp"

namespace vtpmd::instance {

inline constexpr std::uint32_t deep_quote_form = 0x80000000;

struct DeepQuoteCommand {
    Bytes nonce;
    std::vector<proto::QuoteSelection> pcrs;      ///< of the vTPM
    std::vector<proto::QuoteSelection> host_pcrs; ///< of the hardware, not none
};
/// Errc::protocol: too short or too long; usage: a PCR that there is not, no PCR of the hardware, or an unknown flag.
[[nodiscard]] Result<DeepQuoteCommand> parse_deep_quote(ByteView parameters);
/// The same, of a TPM 2.0.
[[nodiscard]] Result<DeepQuoteCommand> parse_deep_quote_20(ByteView parameters);

/// What a quote is asked of.
struct QuotedVtpm {
    Engine& engine; ///< must not do anything else meanwhile
    proto::ManagerClient& manager;
    Uuid uuid;
};
/// What the authorised command is answered with. `session` outlives the task.
Task<Result<Bytes>> deep_quote(QuotedVtpm vtpm, const OwnerAuthorised& session);
/// What both ask for: of a TPM whose endorsement key has this digest.
Task<Result<Bytes>> quote_for(QuotedVtpm vtpm, DeepQuoteCommand command, Bytes endorsement);
/// For a TPM 2.0; its endorsement key is made on the worker. Errc::permission: the endorsement hierarchy has an authorisation.
Task<Result<Bytes>> deep_quote_20(QuotedVtpm vtpm, Worker& worker, DeepQuoteCommand command);

/// Return code for an error of the functions above.
[[nodiscard]] std::uint32_t deep_quote_refusal(TpmVersion version, Errc code) noexcept;

} // namespace vtpmd::instance
