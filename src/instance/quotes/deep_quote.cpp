#include "instance/quotes/deep_quote.hpp"

#include "instance/making/endorsement_key.hpp"
#include "tpm/commands.hpp"
#include "util/wire.hpp"

namespace vtpmd::instance {

namespace {

/// TPM_PCR_SELECTION (Main part 2 section 8.1), TPMS_PCR_SELECTION (Library part 2 section 10.6.2): the bits as a mask; nullopt:
/// they name a PCR that there is not.
std::optional<std::uint32_t> mask_of(ByteView bits) {
    std::uint32_t mask = 0;
    for (std::size_t i = 0; i < bits.size(); ++i) {
        const auto eight = std::to_integer<std::uint32_t>(bits[i]);
        if (eight != 0 && i >= tpm::pcr_count / 8) {
            return std::nullopt;
        }
        mask |= i < tpm::pcr_count / 8 ? eight << (8 * i) : 0;
    }
    return mask;
}

Error no_such_pcr() {
    return make_error(Errc::usage, "a deep quote of a PCR that there is not, or of none of the hardware's");
}

Result<void> check_flags(std::uint32_t flags) {
    if (flags != deep_quote_form) {
        return make_error(Errc::usage, "a deep quote with flags 0x{:x}: only 0x{:x} is known", flags, deep_quote_form);
    }
    return {};
}

/// TPML_PCR_SELECTION, without the banks of which nothing is selected.
std::optional<std::vector<proto::QuoteSelection>> get_selections(WireReader& in) {
    std::vector<proto::QuoteSelection> out;
    const std::uint32_t count = in.be32();
    if (count > proto::quote_selection_limit) {
        in.fail();
    }
    for (std::uint32_t i = 0; i < count && in.ok(); ++i) {
        const std::uint16_t bank = in.be16();
        const auto mask = mask_of(in.bytes(in.u8()));
        if (!mask) {
            return std::nullopt;
        }
        if (*mask != 0) {
            out.push_back({.bank = bank, .pcrs = *mask});
        }
    }
    return out;
}

Result<Bytes> read_pcr(Engine& engine, std::uint16_t bank, unsigned pcr) {
    if (engine.version() == TpmVersion::tpm12) {
        auto value = tpm::parse_pcr_value(engine.execute(tpm::pcr_read_command(pcr), 0));
        return value ? Result<Bytes>(to_bytes(*value)) : Result<Bytes>(value.error());
    }
    const tpm::PcrBank one{.alg = bank, .pcrs = 1U << pcr};
    auto read = tpm::parse_pcr_read(engine.execute(tpm::pcr_read_command(std::span(&one, 1)), 0));
    if (!read) {
        return read.error();
    }
    if (read->digests.size() != 1) {
        return make_error(Errc::usage, "PCR {} of bank 0x{:x}: this TPM does not have it", pcr, bank);
    }
    return std::move(read->digests.front());
}

Result<std::vector<hwtpm::PcrValue>> read_pcrs(Engine& engine, const std::vector<proto::QuoteSelection>& selections) {
    std::vector<hwtpm::PcrValue> out;
    for (const proto::QuoteSelection& s : selections) {
        for (unsigned p = 0; p < tpm::pcr_count; ++p) {
            if ((s.pcrs >> p & 1U) == 0) {
                continue;
            }
            auto value = read_pcr(engine, s.bank, p);
            if (!value) {
                return value.error();
            }
            out.push_back({.bank = static_cast<hwtpm::HashAlg>(s.bank), .index = p, .digest = std::move(*value)});
        }
    }
    return out;
}

} // namespace

Result<DeepQuoteCommand> parse_deep_quote(ByteView parameters) {
    WireReader in(parameters);
    DeepQuoteCommand out;
    out.nonce = to_bytes(in.bytes(tpm::sha1_size));
    const auto pcrs = mask_of(in.bytes(in.be16()));
    const auto host = mask_of(in.bytes(in.be16()));
    const std::uint32_t flags = in.be32();
    if (!in.expect_end()) {
        return make_error(Errc::protocol, "TPM_DeepQuote with {} bytes of parameters", parameters.size());
    }
    if (!pcrs || !host || *host == 0) {
        return no_such_pcr();
    }
    if (auto known = check_flags(flags); !known) {
        return known.error();
    }
    if (*pcrs != 0) {
        out.pcrs.push_back({.bank = tpm::alg::sha1, .pcrs = *pcrs});
    }
    out.host_pcrs.push_back({.bank = 0, .pcrs = *host});
    return out;
}

Result<DeepQuoteCommand> parse_deep_quote_20(ByteView parameters) {
    WireReader in(parameters);
    DeepQuoteCommand out;
    out.nonce = to_bytes(in.bytes(in.be16()));
    auto pcrs = get_selections(in);
    auto host = pcrs ? get_selections(in) : std::nullopt;
    if (!pcrs || !host) {
        return no_such_pcr();
    }
    const std::uint32_t flags = in.be32();
    if (!in.expect_end()) {
        return make_error(Errc::protocol, "a deep quote with {} bytes of parameters", parameters.size());
    }
    if (auto known = check_flags(flags); !known) {
        return known.error();
    }
    // What the manager would refuse is refused here, with what is wrong.
    const proto::QuoteRequest request{.form = proto::QuoteForm::digests,
                                      .nonce = out.nonce,
                                      .endorsement = Bytes(proto::quote_digest_size),
                                      .pcrs = Bytes(proto::quote_digest_size),
                                      .selections = *host};
    if (auto good = proto::check(request); !good) {
        return good.error();
    }
    out.pcrs = std::move(*pcrs);
    out.host_pcrs = std::move(*host);
    return out;
}

Task<Result<Bytes>> quote_for(QuotedVtpm vtpm, DeepQuoteCommand command, Bytes endorsement) {
    auto pcrs = read_pcrs(vtpm.engine, command.pcrs);
    if (!pcrs) {
        co_return pcrs.error();
    }
    auto digest = quote::pcrs_digest(*pcrs);
    if (!digest) {
        co_return digest.error();
    }
    proto::QuoteRequest request;
    request.nonce = command.nonce;
    request.endorsement = endorsement;
    request.pcrs = std::move(*digest);
    request.selections = std::move(command.host_pcrs);
    auto reply = co_await vtpm.manager.quote(std::move(request));
    if (!reply) {
        co_return std::move(reply).error();
    }
    quote::DeepQuote deep;
    deep.hardware = reply->hardware;
    deep.claims.vtpm = vtpm.uuid;
    deep.claims.group = reply->group;
    deep.claims.endorsement = std::move(endorsement);
    deep.claims.nonce = std::move(command.nonce);
    deep.pcrs = std::move(*pcrs);
    deep.quote.attested = std::move(reply->attested);
    deep.quote.signature = std::move(reply->signature);
    for (proto::QuotedPcr& v : reply->values) {
        deep.quote.values.push_back(
            {.bank = static_cast<hwtpm::HashAlg>(v.bank), .index = v.index, .digest = std::move(v.digest)});
    }
    auto out = quote::encode(deep);
    constexpr std::size_t around = 64; // header and authorisation
    if (out && out->size() + around > tpm::packet_limit) {
        co_return make_error(Errc::too_large, "a deep quote of {} bytes: ask for fewer PCRs", out->size());
    }
    co_return out;
}

Task<Result<Bytes>> deep_quote(QuotedVtpm vtpm, const OwnerAuthorised& session) {
    auto command = parse_deep_quote(session.parameters);
    if (!command) {
        co_return command.error();
    }
    auto endorsement = quote::endorsement_digest_12(session.endorsement_key);
    if (!endorsement) {
        co_return endorsement.error();
    }
    co_return co_await quote_for(vtpm, std::move(*command), std::move(*endorsement));
}

Task<Result<Bytes>> deep_quote_20(QuotedVtpm vtpm, Worker& worker, DeepQuoteCommand command) {
    auto modulus = co_await worker.run([&vtpm] { return make_endorsement_key_20(vtpm.engine); });
    if (!modulus) {
        co_return modulus.error();
    }
    auto endorsement = quote::endorsement_digest_rsa(*modulus);
    if (!endorsement) {
        co_return endorsement.error();
    }
    auto deep = co_await quote_for(vtpm, std::move(command), std::move(*endorsement));
    if (!deep) {
        co_return deep;
    }
    WireWriter out;
    co_return out.be16(static_cast<std::uint16_t>(deep->size())).bytes(*deep).take();
}

std::uint32_t deep_quote_refusal(TpmVersion version, Errc code) noexcept {
    const bool old = version == TpmVersion::tpm12;
    switch (code) {
    case Errc::usage:
        return old ? tpm::rc12::bad_parameter : tpm::rc20::value;
    case Errc::protocol:
    case Errc::too_large:
        return old ? tpm::rc12::bad_param_size : tpm::rc20::size;
    case Errc::unsupported: // its group has no key for it
        return old ? tpm::rc12::disabled_cmd : tpm::rc20::disabled;
    case Errc::permission:
        return old ? tpm::rc12::fail : tpm::rc20::auth_unavailable;
    case Errc::unavailable:
    case Errc::timed_out:
    case Errc::closed:
        return old ? tpm::rc12::retry : tpm::rc20::retry;
    default:
        return old ? tpm::rc12::fail : tpm::rc20::failure;
    }
}

} // namespace vtpmd::instance
