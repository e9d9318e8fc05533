// Deep quotes of a TPM 1.2 vTPM as Xen's vTPM answers them (quote/old_quote.hpp), both authorised by the owner (AUTH1):
//
//   TPM_ORD_DeepQuote     in   nonce[20], TPM_PCR_SELECTION of the vTPM, TPM_PCR_SELECTION of the hardware, u32 flags (tpm::old_quote)
//   TPM_ORD_ParentSignEK  in   nonce[20], TPM_PCR_SELECTION of the hardware
//   both                  out  signature[256], SHA-1[20] of what each flag names, value[20] of each hardware PCR
//
// The hardware has to be a TPM 1.2. ParentSignEK is there in a vTPM's first run only: whoever certifies its endorsement key sees by it
// that the key is new.
#pragma once

#include "instance/quotes/deep_quote.hpp"

namespace vtpmd::instance {

struct OldQuoteCommand {
    Bytes nonce; ///< 20 bytes
    Bytes pcrs;  ///< of the vTPM: the bytes of TPM_PCR_SELECTION; ParentSignEK: none
    std::uint32_t flags = 0;
    Bytes host_pcrs; ///< of the hardware, likewise
};

/// Whether parameters of TPM_ORD_DeepQuote are for this form: their flags do not have deep_quote_form.
[[nodiscard]] bool asks_old_quote(ByteView parameters);
/// Errc::protocol: too short or too long; usage: a selection of no byte or more than three, or an unknown flag.
[[nodiscard]] Result<OldQuoteCommand> parse_old_deep_quote(ByteView parameters);
[[nodiscard]] Result<OldQuoteCommand> parse_parent_sign_ek(ByteView parameters);

/// What the authorised command is answered with. `session` outlives the task; `locality` is the guest's.
Task<Result<Bytes>> old_deep_quote(QuotedVtpm vtpm, const OwnerAuthorised& session, std::uint8_t locality);
/// Errc::unsupported: not in the vTPM's first run (`first_run`).
Task<Result<Bytes>> parent_sign_ek(QuotedVtpm vtpm, const OwnerAuthorised& session, bool first_run);

} // namespace vtpmd::instance
