#include "instance/quotes/operator_quote.hpp"

#include "engine/owner_auth.hpp"
#include "instance/making/endorsement_key.hpp"
#include "tpm/codes.hpp"

namespace vtpmd::instance {

namespace {

Task<Result<Bytes>> endorsement_of(Engine& engine, Worker& worker) {
    if (engine.version() == TpmVersion::tpm12) {
        auto key = co_await worker.run([&engine] { return read_endorsement_key(engine); });
        if (!key) {
            co_return key.error();
        }
        co_return quote::endorsement_digest_12(*key);
    }
    auto modulus = co_await worker.run([&engine] { return make_endorsement_key_20(engine); });
    if (!modulus) {
        co_return modulus.error();
    }
    co_return quote::endorsement_digest_rsa(*modulus);
}

} // namespace

Task<Result<Bytes>> operator_quote(QuotedVtpm vtpm, Worker& worker, proto::AskQuote question) {
    for (const proto::QuoteSelection& s : question.pcrs) {
        if (vtpm.engine.version() == TpmVersion::tpm12 && s.bank != tpm::alg::sha1) {
            co_return make_error(Errc::usage, "it is a TPM 1.2, which has the PCR bank sha1 only");
        }
    }
    auto endorsement = co_await endorsement_of(vtpm.engine, worker);
    if (!endorsement) {
        co_return endorsement.error();
    }
    DeepQuoteCommand command;
    command.nonce = std::move(question.nonce);
    command.pcrs = std::move(question.pcrs);
    command.host_pcrs = std::move(question.host_pcrs);
    co_return co_await quote_for(vtpm, std::move(command), std::move(*endorsement));
}

} // namespace vtpmd::instance
