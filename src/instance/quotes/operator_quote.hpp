// A deep quote that the host's operator asks for, through the manager: the same that a guest gets by a vendor command, without its owner
// or endorsement authorisation where there is a way without. It shows PCRs and the public part of a key, and changes nothing.
#pragma once

#include "instance/quotes/deep_quote.hpp"
#include "proto/link/ask_messages.hpp"

namespace vtpmd::instance {

/// The whole deep quote (quote/deep_quote.hpp). Errc::usage: PCRs that this TPM does not have (a TPM 1.2 has SHA-1 only); permission:
/// a TPM 2.0's guest has put an authorisation on its endorsement hierarchy; else as proto::ManagerClient::quote() has it.
Task<Result<Bytes>> operator_quote(QuotedVtpm vtpm, Worker& worker, proto::AskQuote question);

} // namespace vtpmd::instance
