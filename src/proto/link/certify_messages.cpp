#include "proto/link/certify_messages.hpp"

#include "proto/link/messages.hpp"
#include "util/wire.hpp"

namespace vtpmd::proto {

Bytes encode_certify(const CertifyRequest& request) {
    WireWriter out;
    out.u8(static_cast<std::uint8_t>(request.kind)).bytes(request.key);
    out.be32(request.tpm.manufacturer).be32(request.tpm.firmware);
    out.be32(request.tpm.level).be32(request.tpm.revision);
    return make_frame(tag::request, ordinal::certify, out.view());
}

Result<CertifyRequest> parse_certify(ByteView body) {
    WireReader in(body);
    CertifyRequest request;
    request.kind = static_cast<EkKind>(in.u8());
    if (in.ok() && request.kind != EkKind::rsa_2048 && request.kind != EkKind::ecc_p256) {
        return make_error(Errc::usage, "CERTIFY of an unknown kind of key, {}", static_cast<unsigned>(request.kind));
    }
    request.key = to_bytes(in.bytes(ek_size(request.kind)));
    request.tpm.manufacturer = in.be32();
    request.tpm.firmware = in.be32();
    request.tpm.level = in.be32();
    request.tpm.revision = in.be32();
    if (!in.expect_end()) {
        return make_error(Errc::protocol, "CERTIFY with a body of {} bytes", body.size());
    }
    const bool whole_modulus =
        (request.key.front() & std::byte{0x80}) != std::byte{0} && (request.key.back() & std::byte{1}) != std::byte{0};
    if (request.kind == EkKind::rsa_2048 && !whole_modulus) {
        return make_error(Errc::usage, "CERTIFY of a number that is no modulus of 2048 bits");
    }
    return request;
}

Result<Bytes> encode_certify_reply(ByteView certificate) {
    if (certificate.empty() || certificate.size() > ek_certificate_limit) {
        return make_error(Errc::too_large, "a certificate of {} bytes, of at most {}: the names in the CA's are long",
                          certificate.size(), ek_certificate_limit);
    }
    return encode_success(certificate);
}

Result<Bytes> parse_certify_reply(ByteView frame) {
    auto body = parse_response(frame);
    if (!body) {
        return std::move(body).error();
    }
    if (body->empty() || body->size() > ek_certificate_limit) {
        return make_error(Errc::protocol, "CERTIFY's answer has a body of {} bytes", body->size());
    }
    return to_bytes(*body);
}

} // namespace vtpmd::proto
