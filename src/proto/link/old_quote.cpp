#include "proto/link/old_quote.hpp"

#include "proto/link/messages.hpp"
#include "tpm/codes.hpp"
#include "util/wire.hpp"

#include <bit>

namespace vtpmd::proto {

Result<void> check(const OldQuoteRequest& request) {
    if (request.selection.empty() || request.selection.size() > tpm::old_quote::selection_limit) {
        return make_error(Errc::usage, "GET_QUOTE with a selection of {} bytes: 1 to {}", request.selection.size(),
                          tpm::old_quote::selection_limit);
    }
    if ((request.flags & ~tpm::old_quote::all_flags) != 0) {
        return make_error(Errc::usage, "GET_QUOTE with flags 0x{:x}: only 0x{:x} are known", request.flags,
                          tpm::old_quote::all_flags);
    }
    return {};
}

std::size_t old_quote_reply_size(const OldQuoteRequest& request) {
    auto digests = static_cast<std::size_t>(std::popcount(request.flags));
    for (std::byte eight : request.selection) {
        digests += static_cast<std::size_t>(std::popcount(std::to_integer<unsigned>(eight)));
    }
    return tpm::old_quote::signature_size + digests * tpm::sha1_size;
}

Bytes encode_old_quote(const OldQuoteRequest& request) {
    WireWriter out;
    out.bytes(request.data);
    out.be16(static_cast<std::uint16_t>(request.selection.size())).bytes(request.selection).be32(request.flags);
    return make_frame(tag::request, ordinal::get_quote, out.view());
}

Result<OldQuoteRequest> parse_old_quote(ByteView body) {
    WireReader in(body);
    OldQuoteRequest request;
    request.data = in.array<tpm::sha1_size>();
    request.selection = to_bytes(in.bytes(in.be16()));
    request.flags = in.be32();
    if (!in.expect_end()) {
        return make_error(Errc::protocol, "GET_QUOTE with a body of {} bytes", body.size());
    }
    if (auto good = check(request); !good) {
        return good.error();
    }
    return request;
}

Result<Bytes> parse_old_quote_reply(ByteView frame, const OldQuoteRequest& request) {
    auto body = parse_response(frame);
    if (!body) {
        return std::move(body).error();
    }
    if (body->size() != old_quote_reply_size(request)) {
        return make_error(Errc::protocol, "GET_QUOTE's answer has a body of {} bytes, expected {}", body->size(),
                          old_quote_reply_size(request));
    }
    return to_bytes(*body);
}

} // namespace vtpmd::proto
