#include "instance/deep_quote.hpp"

#include "quote/deep_quote.hpp"
#include "tpm/commands.hpp"
#include "util/wire.hpp"

namespace vtpmd::instance {

namespace {

/// TPM_PCR_SELECTION (Main part 2 section 8.1) as a mask; nullopt: it names a PCR that there is not.
std::optional<std::uint32_t> get_selection(WireReader& in) {
    const ByteView bits = in.bytes(in.be16());
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

Result<std::vector<hwtpm::PcrValue>> read_pcrs(Engine& engine, std::uint32_t mask) {
    std::vector<hwtpm::PcrValue> out;
    for (unsigned p = 0; p < tpm::pcr_count; ++p) {
        if ((mask >> p & 1U) == 0) {
            continue;
        }
        auto value = tpm::parse_pcr_value(engine.execute(tpm::pcr_read_command(p), 0));
        if (!value) {
            return value.error();
        }
        out.push_back({.bank = hwtpm::HashAlg::sha1, .index = p, .digest = to_bytes(*value)});
    }
    return out;
}

} // namespace

Result<DeepQuoteCommand> parse_deep_quote(ByteView parameters) {
    WireReader in(parameters);
    DeepQuoteCommand out;
    out.nonce = to_bytes(in.bytes(tpm::sha1_size));
    const auto pcrs = get_selection(in);
    const auto host = get_selection(in);
    const std::uint32_t flags = in.be32();
    if (!in.expect_end()) {
        return make_error(Errc::protocol, "TPM_DeepQuote with {} bytes of parameters", parameters.size());
    }
    if (!pcrs || !host || *host == 0) {
        return make_error(Errc::usage, "TPM_DeepQuote of a PCR that there is not, or of none of the hardware's");
    }
    if (flags != deep_quote_form) {
        return make_error(Errc::usage, "TPM_DeepQuote with flags 0x{:x}: only 0x{:x} is known", flags, deep_quote_form);
    }
    out.pcrs = *pcrs;
    out.host_pcrs = *host;
    return out;
}

Task<Result<Bytes>> deep_quote(Engine& engine, proto::ManagerClient& manager, Uuid vtpm,
                               const OwnerAuthorised& session) {
    auto command = parse_deep_quote(session.parameters);
    if (!command) {
        co_return command.error();
    }
    auto pcrs = read_pcrs(engine, command->pcrs);
    if (!pcrs) {
        co_return pcrs.error();
    }
    auto endorsement = quote::endorsement_digest_12(session.endorsement_key);
    auto digest = quote::pcrs_digest(*pcrs);
    if (!endorsement || !digest) {
        co_return endorsement ? digest.error() : endorsement.error();
    }
    proto::QuoteRequest request;
    request.nonce = std::move(command->nonce);
    request.endorsement = std::move(*endorsement);
    request.pcrs = std::move(*digest);
    request.selections.push_back({.bank = 0, .pcrs = command->host_pcrs});
    auto reply = co_await manager.quote(std::move(request));
    if (!reply) {
        co_return std::move(reply).error();
    }
    auto frame = proto::encode_quote_reply(*reply);
    if (!frame) {
        co_return std::move(frame).error();
    }
    WireWriter out;
    out.bytes(vtpm.bytes).u8(static_cast<std::uint8_t>(pcrs->size()));
    for (const hwtpm::PcrValue& v : *pcrs) {
        out.be16(static_cast<std::uint16_t>(v.bank)).u8(static_cast<std::uint8_t>(v.index));
        out.u8(static_cast<std::uint8_t>(v.digest.size())).bytes(v.digest);
    }
    out.bytes(proto::body_of(*frame));
    // TPM_PCR_SELECTIONs of all PCRs on both sides take about 2 KB of it.
    constexpr std::size_t around = 64; // header and authorisation
    if (out.size() + around > tpm::packet_limit) {
        co_return make_error(Errc::too_large, "a deep quote of {} bytes", out.size());
    }
    co_return out.take();
}

std::uint32_t deep_quote_refusal(Errc code) noexcept {
    switch (code) {
    case Errc::usage:
        return tpm::rc12::bad_parameter;
    case Errc::protocol:
    case Errc::too_large:
        return tpm::rc12::bad_param_size;
    case Errc::unsupported: // its group has no key for it
        return tpm::rc12::disabled_cmd;
    case Errc::unavailable:
    case Errc::timed_out:
    case Errc::closed:
        return tpm::rc12::retry;
    default:
        return tpm::rc12::fail;
    }
}

} // namespace vtpmd::instance
