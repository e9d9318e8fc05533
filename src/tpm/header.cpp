#include "tpm/header.hpp"

#include "util/wire.hpp"

namespace vtpmd::tpm {

Header peek_header(ByteView packet) noexcept {
    WireReader r(packet);
    Header h;
    h.tag = r.be16();
    h.size = r.be32();
    h.code = r.be32();
    return h;
}

Result<Header> parse_header(ByteView packet) {
    if (packet.size() < header_size) {
        return make_error(Errc::protocol, "a TPM packet has {} bytes, a header alone is {}", packet.size(),
                          header_size);
    }
    if (packet.size() > packet_limit) {
        return make_error(Errc::too_large, "a TPM packet has {} bytes, at most {} are allowed", packet.size(),
                          packet_limit);
    }
    const Header h = peek_header(packet);
    if (h.size != packet.size()) {
        return make_error(Errc::protocol, "a TPM packet of {} bytes says it has {}", packet.size(), h.size);
    }
    return h;
}

bool is_command_tag(TpmVersion version, std::uint16_t tag) noexcept {
    if (version == TpmVersion::tpm12) {
        return tag == tag_rqu_command || tag == tag_rqu_auth1 || tag == tag_rqu_auth2;
    }
    return tag == st_no_sessions || tag == st_sessions;
}

std::uint32_t refusal_code(TpmVersion version, Refusal reason) noexcept {
    const bool v12 = version == TpmVersion::tpm12;
    switch (reason) {
    case Refusal::failure:
        return v12 ? rc12::fail : rc20::failure;
    case Refusal::bad_size:
        return v12 ? rc12::bad_param_size : rc20::command_size;
    case Refusal::bad_tag:
        return v12 ? rc12::bad_tag : rc20::bad_tag;
    case Refusal::bad_ordinal:
        return v12 ? rc12::bad_ordinal : rc20::command_code;
    case Refusal::disabled:
        return v12 ? rc12::disabled_cmd : rc20::command_code;
    case Refusal::bad_locality:
        return v12 ? rc12::bad_locality : rc20::locality;
    case Refusal::not_started:
        return v12 ? rc12::invalid_postinit : rc20::initialize;
    case Refusal::retry:
        return v12 ? rc12::retry : rc20::retry;
    case Refusal::canceled:
        return v12 ? rc12::fail : rc20::canceled;
    }
    return v12 ? rc12::fail : rc20::failure;
}

Bytes error_response(TpmVersion version, std::uint32_t code) {
    const bool family_12 = version == TpmVersion::tpm12 || code == rc20::bad_tag;
    WireWriter w(header_size);
    w.be16(family_12 ? tag_rsp_command : st_no_sessions).be32(header_size).be32(code);
    return w.take();
}

Bytes error_response(TpmVersion version, Refusal reason) {
    return error_response(version, refusal_code(version, reason));
}

bool is_well_formed_response(TpmVersion version, ByteView packet) noexcept {
    if (packet.size() < header_size || packet.size() > packet_limit) {
        return false;
    }
    const Header h = peek_header(packet);
    if (h.size != packet.size()) {
        return false;
    }
    if (version == TpmVersion::tpm12) {
        return h.tag == tag_rsp_command || h.tag == tag_rsp_auth1 || h.tag == tag_rsp_auth2;
    }
    return h.tag == st_no_sessions || h.tag == st_sessions || (h.tag == tag_rsp_command && h.code == rc20::bad_tag);
}

} // namespace vtpmd::tpm
