#include "proto/link/quote_messages.hpp"

#include "proto/link/messages.hpp"
#include "util/wire.hpp"

namespace vtpmd::proto {

namespace {

constexpr std::uint32_t pcr_mask = 0x00FFFFFF; // PC Client Platform TPM Profile: PCR 0-23

WireWriter& put_part(WireWriter& out, ByteView part) {
    return out.be16(static_cast<std::uint16_t>(part.size())).bytes(part);
}
Bytes get_part(WireReader& in) { return to_bytes(in.bytes(in.be16())); }

} // namespace

Result<void> check(const QuoteRequest& request) {
    if (request.form != QuoteForm::digests) {
        return make_error(Errc::usage, "a quote of form {}: only 1 is known", static_cast<unsigned>(request.form));
    }
    if (request.nonce.empty() || request.nonce.size() > quote_nonce_limit) {
        return make_error(Errc::usage, "a quote's nonce of {} bytes: 1 to {}", request.nonce.size(), quote_nonce_limit);
    }
    if (request.endorsement.size() != quote_digest_size || request.pcrs.size() != quote_digest_size) {
        return make_error(Errc::usage, "a quote's digests of {} and {} bytes: {} each", request.endorsement.size(),
                          request.pcrs.size(), quote_digest_size);
    }
    if (request.selections.empty() || request.selections.size() > quote_selection_limit) {
        return make_error(Errc::usage, "a quote over {} banks of PCRs: 1 to {}", request.selections.size(),
                          quote_selection_limit);
    }
    std::uint16_t last = 0;
    const bool best = request.selections.size() == 1 && request.selections.front().bank == 0;
    for (const QuoteSelection& s : request.selections) {
        if ((s.bank <= last && !best) || s.pcrs == 0 || (s.pcrs & ~pcr_mask) != 0) {
            return make_error(Errc::usage, "a quote over bank 0x{:x}, PCRs 0x{:x}: banks ascend, PCRs are 0 to 23",
                              s.bank, s.pcrs);
        }
        last = s.bank;
    }
    return {};
}

Bytes encode_quote(const QuoteRequest& request) {
    WireWriter out;
    out.u8(static_cast<std::uint8_t>(request.form));
    out.u8(static_cast<std::uint8_t>(request.nonce.size())).bytes(request.nonce);
    put_part(out, request.endorsement);
    put_part(out, request.pcrs);
    out.u8(static_cast<std::uint8_t>(request.selections.size()));
    for (const QuoteSelection& s : request.selections) {
        out.be16(s.bank).be32(s.pcrs);
    }
    return make_frame(tag::request, ordinal::quote, out.view());
}

Result<QuoteRequest> parse_quote(ByteView body) {
    WireReader in(body);
    QuoteRequest request;
    request.form = static_cast<QuoteForm>(in.u8());
    request.nonce = to_bytes(in.bytes(in.u8()));
    request.endorsement = get_part(in);
    request.pcrs = get_part(in);
    for (unsigned n = in.u8(); n > 0 && in.ok(); --n) {
        QuoteSelection s;
        s.bank = in.be16();
        s.pcrs = in.be32();
        request.selections.push_back(s);
    }
    if (!in.expect_end()) {
        return make_error(Errc::protocol, "QUOTE with a body of {} bytes", body.size());
    }
    if (auto good = check(request); !good) {
        return good.error();
    }
    return request;
}

Result<Bytes> encode_quote_reply(const QuoteReply& reply) {
    WireWriter out;
    out.u8(static_cast<std::uint8_t>(reply.hardware)).bytes(reply.group.bytes);
    put_part(out, reply.attested);
    put_part(out, reply.signature);
    out.u8(static_cast<std::uint8_t>(reply.values.size()));
    for (const QuotedPcr& v : reply.values) {
        out.be16(v.bank).u8(v.index).u8(static_cast<std::uint8_t>(v.digest.size())).bytes(v.digest);
    }
    // A ring carries a little less than frame_limit.
    constexpr std::size_t room = 4088 - header_size;
    if (out.size() > room) {
        return make_error(Errc::too_large, "a quote over {} PCRs takes {} bytes, of at most {}: ask for fewer",
                          reply.values.size(), out.size(), room);
    }
    return encode_success(out.view());
}

Result<QuoteReply> parse_quote_reply(ByteView frame) {
    auto body = parse_response(frame);
    if (!body) {
        return std::move(body).error();
    }
    WireReader in(*body);
    QuoteReply reply;
    const unsigned family = in.u8();
    reply.group.bytes = in.array<16>();
    reply.attested = get_part(in);
    reply.signature = get_part(in);
    for (unsigned n = in.u8(); n > 0 && in.ok(); --n) {
        QuotedPcr v;
        v.bank = in.be16();
        v.index = in.u8();
        v.digest = to_bytes(in.bytes(in.u8()));
        reply.values.push_back(std::move(v));
    }
    const bool known =
        family == static_cast<unsigned>(TpmVersion::tpm12) || family == static_cast<unsigned>(TpmVersion::tpm20);
    if (!in.expect_end() || !known) {
        return make_error(Errc::protocol, "QUOTE's answer has a body of {} bytes, hardware family {}", body->size(),
                          family);
    }
    reply.hardware = static_cast<TpmVersion>(family);
    return reply;
}

} // namespace vtpmd::proto
