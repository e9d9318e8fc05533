#include "proto/link/messages.hpp"

#include "util/text.hpp"
#include "util/wire.hpp"

namespace vtpmd::proto {

namespace {

// TPM Main part 3 (1.2); TPM 2.0 part 2, section 6.5.2.
constexpr std::uint32_t tpm12_ord_extend = 0x14;
constexpr std::uint32_t tpm12_ord_pcr_read = 0x15;
constexpr std::uint32_t tpm12_ord_get_random = 0x46;
constexpr std::uint32_t tpm20_cc_get_random = 0x17B;
constexpr std::uint32_t tpm20_cc_pcr_read = 0x17E;
// TPM 2.0 part 2, section 6.6.3.
constexpr std::uint32_t tpm20_rc_failure = 0x101;
constexpr std::uint32_t tpm20_rc_command_code = 0x143;

constexpr std::uint32_t hello_create = 1;
constexpr std::uint32_t hello_incoming = 2;
constexpr std::uint32_t reply_known = 1;
constexpr std::uint32_t reply_has_record = 2;
constexpr std::uint32_t reply_may_create = 4;
constexpr std::uint32_t reply_was_reset = 8;

Bytes status_frame(Status status, ByteView body = {}) {
    return make_frame(tag::response, static_cast<std::uint32_t>(status), body);
}

BadRequest bad(Status status, std::string reason) { return {status_frame(status), std::move(reason)}; }

std::optional<TpmVersion> version_from(std::uint8_t v) {
    if (v == static_cast<std::uint8_t>(TpmVersion::tpm12)) {
        return TpmVersion::tpm12;
    }
    if (v == static_cast<std::uint8_t>(TpmVersion::tpm20)) {
        return TpmVersion::tpm20;
    }
    return std::nullopt;
}

Request parse_hello(ByteView body) {
    WireReader in(body);
    HelloRequest hello;
    const std::uint16_t version = in.be16();
    if (in.ok() && version != protocol_version) {
        Error e = make_error(Errc::version, "protocol version {} is asked for, this manager speaks {}", version,
                             protocol_version);
        return BadRequest{encode_hello_error(e), std::move(e.message)};
    }
    hello.uuid.bytes = in.array<16>();
    const std::uint8_t tpm = in.u8();
    const std::uint32_t flags = in.be32();
    if (!in.expect_end()) {
        return bad(Status::bad_param_size, fmt::format("HELLO with a body of {} bytes", body.size()));
    }
    const auto tpm_version = version_from(tpm);
    if (!tpm_version || (flags & ~(hello_create | hello_incoming)) != 0 || hello.uuid.is_nil()) {
        return bad(Status::bad_parameter,
                   fmt::format("HELLO with TPM version {}, flags 0x{:x}, uuid {}", tpm, flags, hello.uuid));
    }
    hello.version = *tpm_version;
    hello.create = (flags & hello_create) != 0;
    hello.incoming = (flags & hello_incoming) != 0;
    return hello;
}

Request parse_save_over(ByteView body) {
    WireReader in(body);
    Bytes over = to_bytes(in.bytes(in.u8()));
    const ByteView key = in.ok() ? in.rest() : ByteView{};
    const bool sizes = (over.empty() || is_slot_hash_size(over.size())) &&
                       (key.size() == hash_key_short || key.size() == hash_key_long);
    if (!in.ok() || !sizes) {
        return bad(Status::bad_param_size, fmt::format("SAVE_OVER with a body of {} bytes", body.size()));
    }
    return SaveRequest{SecretBytes(key), std::move(over)};
}

bool may_pass(const FrameHeader& h) {
    if (h.tag == tag::tpm12_command) {
        return h.code == tpm12_ord_extend || h.code == tpm12_ord_get_random || h.code == tpm12_ord_pcr_read;
    }
    return h.code == tpm20_cc_get_random || h.code == tpm20_cc_pcr_read;
}

Request parse_ours(const FrameHeader& h, ByteView body) {
    switch (h.code) {
    case ordinal::hello:
        return parse_hello(body);
    case ordinal::save_hash_key:
        if (body.size() != hash_key_short && body.size() != hash_key_long) {
            return bad(Status::bad_param_size, fmt::format("SAVEHASHKEY with a body of {} bytes", body.size()));
        }
        return SaveRequest{SecretBytes(body), {}};
    case ordinal::save_over:
        return parse_save_over(body);
    case ordinal::quote: {
        auto quote = parse_quote(body);
        if (!quote) {
            return bad(status_of(quote.error().code), quote.error().message);
        }
        return std::move(*quote);
    }
    case ordinal::get_quote: {
        auto quote = parse_old_quote(body);
        if (!quote) {
            return bad(status_of(quote.error().code), quote.error().message);
        }
        return std::move(*quote);
    }
    case ordinal::attach: {
        auto attach = parse_attach(body);
        if (!attach) {
            return bad(status_of(attach.error().code), attach.error().message);
        }
        return std::move(*attach);
    }
    case ordinal::certify: {
        auto certify = parse_certify(body);
        if (!certify) {
            return bad(status_of(certify.error().code), certify.error().message);
        }
        return std::move(*certify);
    }
    case ordinal::load_hash_key:
    case ordinal::get_boot_hash:
    case ordinal::handed_over:
    case ordinal::invite:
    case ordinal::reset_info:
        if (!body.empty()) {
            return bad(Status::bad_param_size, fmt::format("ordinal {} with a body of {} bytes", h.code, body.size()));
        }
        if (h.code == ordinal::load_hash_key) {
            return LoadRequest{};
        }
        if (h.code == ordinal::handed_over) {
            return HandedOverRequest{};
        }
        if (h.code == ordinal::invite) {
            return InviteRequest{};
        }
        if (h.code == ordinal::reset_info) {
            return ResetInfoRequest{};
        }
        return BootHashRequest{};
    default:
        return bad(Status::bad_ordinal, fmt::format("unknown ordinal 0x{:x}", h.code));
    }
}

} // namespace

Request parse_request(ByteView frame) {
    auto header = parse_frame(frame);
    if (!header) {
        return bad(Status::bad_param_size, header.error().message);
    }
    switch (header->tag) {
    case tag::request:
        return parse_ours(*header, body_of(frame));
    case tag::tpm12_command:
    case tag::tpm20_command:
        if (!may_pass(*header)) {
            return BadRequest{encode_tpm_refusal(header->tag, TpmRefusal::no_such_command),
                              fmt::format("TPM command 0x{:x} is not passed on", header->code)};
        }
        return TpmCommand{to_bytes(frame)};
    case tag::management:
        return ManagementRequest{to_bytes(frame)};
    default:
        return bad(Status::bad_tag, fmt::format("unknown tag 0x{:04x}", header->tag));
    }
}

Bytes encode_hello_reply(const HelloReply& reply) {
    WireWriter out;
    out.be16(protocol_version);
    out.be32((reply.known ? reply_known : 0) | (reply.has_record ? reply_has_record : 0) |
             (reply.may_create ? reply_may_create : 0) | (reply.was_reset ? reply_was_reset : 0));
    out.u8(reply.known ? static_cast<std::uint8_t>(reply.version) : 0);
    return encode_success(out.view());
}

Bytes encode_reset_info_reply(const ResetInfo& info) {
    WireWriter out;
    out.be64(info.sequence).be64(info.when);
    out.u8(static_cast<std::uint8_t>(info.given_up.size())).bytes(info.given_up);
    return encode_success(out.view());
}

Bytes encode_success(ByteView body) { return status_frame(Status::success, body); }

Bytes encode_error(const Error& error) { return status_frame(status_of(error.code)); }

Bytes encode_hello_error(const Error& error) {
    std::string_view text(error.message);
    return status_frame(status_of(error), as_bytes(text.substr(0, error_text_limit)));
}

Bytes encode_tpm_refusal(std::uint16_t command_tag, TpmRefusal why) {
    const bool failed = why == TpmRefusal::failed;
    if (command_tag == tag::tpm20_command) {
        return make_frame(tag::tpm20_command, failed ? tpm20_rc_failure : tpm20_rc_command_code);
    }
    return make_frame(tag::tpm12_response, static_cast<std::uint32_t>(failed ? Status::fail : Status::bad_ordinal));
}

Bytes encode_hello(const HelloRequest& request) {
    WireWriter out;
    out.be16(protocol_version).bytes(request.uuid.bytes).u8(static_cast<std::uint8_t>(request.version));
    out.be32((request.create ? hello_create : 0) | (request.incoming ? hello_incoming : 0));
    return make_frame(tag::request, ordinal::hello, out.view());
}

Bytes encode_save(ByteView hash_key) { return make_frame(tag::request, ordinal::save_hash_key, hash_key); }
Bytes encode_save_over(ByteView over, ByteView hash_key) {
    WireWriter out;
    out.u8(static_cast<std::uint8_t>(over.size())).bytes(over).bytes(hash_key);
    Bytes body = out.take();
    Bytes frame = make_frame(tag::request, ordinal::save_over, body);
    cleanse(body);
    return frame;
}
Bytes encode_load() { return make_frame(tag::request, ordinal::load_hash_key); }
Bytes encode_get_boot_hash() { return make_frame(tag::request, ordinal::get_boot_hash); }
Bytes encode_handed_over() { return make_frame(tag::request, ordinal::handed_over); }
Bytes encode_reset_info() { return make_frame(tag::request, ordinal::reset_info); }

Result<ByteView> parse_response(ByteView frame) {
    auto header = parse_frame(frame);
    if (!header) {
        return std::move(header).error();
    }
    if (header->tag != tag::response) {
        return make_error(Errc::protocol, "an answer with tag 0x{:04x}, expected 0x{:04x}", header->tag, tag::response);
    }
    if (header->code != static_cast<std::uint32_t>(Status::success)) {
        return status_error(header->code);
    }
    return body_of(frame);
}

Result<HelloReply> parse_hello_reply(ByteView frame) {
    auto body = parse_response(frame);
    if (!body) {
        Error e = std::move(body).error();
        if (auto h = parse_frame(frame); h && h->tag == tag::response && frame.size() > header_size) {
            const ByteView text = body_of(frame);
            e.message = "the manager says: " +
                        printable({reinterpret_cast<const char*>(text.data()), text.size()}, error_text_limit);
        }
        return e;
    }
    WireReader in(*body);
    HelloReply reply;
    const std::uint16_t version = in.be16();
    const std::uint32_t flags = in.be32();
    const std::uint8_t tpm = in.u8();
    if (!in.expect_end()) {
        return make_error(Errc::protocol, "HELLO's answer has a body of {} bytes", body->size());
    }
    if (version != protocol_version) {
        return make_error(Errc::version, "the manager speaks protocol version {}, this program {}", version,
                          protocol_version);
    }
    reply.known = (flags & reply_known) != 0;
    reply.has_record = (flags & reply_has_record) != 0;
    reply.may_create = (flags & reply_may_create) != 0;
    reply.was_reset = (flags & reply_was_reset) != 0;
    const auto tpm_version = version_from(tpm);
    if ((reply.known && !tpm_version) || ((reply.has_record || reply.was_reset) && !reply.known)) {
        return make_error(Errc::protocol, "HELLO's answer says flags 0x{:x} with TPM version {}", flags, tpm);
    }
    if (tpm_version) {
        reply.version = *tpm_version;
    }
    return reply;
}

Result<void> parse_save_reply(ByteView frame) {
    auto body = parse_response(frame);
    if (!body) {
        return std::move(body).error();
    }
    if (!body->empty()) {
        return make_error(Errc::protocol, "SAVEHASHKEY's answer has a body of {} bytes", body->size());
    }
    return {};
}

Result<std::optional<SecretBytes>> parse_load_reply(ByteView frame) {
    auto body = parse_response(frame);
    if (!body) {
        if (body.error().detail == static_cast<unsigned>(Status::bad_index)) {
            return std::optional<SecretBytes>{};
        }
        return std::move(body).error();
    }
    if (body->size() != hash_key_short && body->size() != hash_key_long) {
        return make_error(Errc::protocol, "LOADHASHKEY's answer has a body of {} bytes", body->size());
    }
    return std::optional<SecretBytes>(SecretBytes(*body));
}

Result<BootHash> parse_boot_hash_reply(ByteView frame) {
    auto body = parse_response(frame);
    if (!body) {
        return std::move(body).error();
    }
    if (body->size() != boot_hash_size) {
        return make_error(Errc::protocol, "GET_BOOT_HASH's answer has a body of {} bytes", body->size());
    }
    WireReader in(*body);
    return in.array<boot_hash_size>();
}

Result<ResetInfo> parse_reset_info_reply(ByteView frame) {
    auto body = parse_response(frame);
    if (!body) {
        return std::move(body).error();
    }
    WireReader in(*body);
    ResetInfo info;
    info.sequence = in.be64();
    info.when = in.be64();
    info.given_up = to_bytes(in.bytes(in.u8()));
    if (!in.expect_end() || info.sequence == 0 || !is_slot_hash_size(info.given_up.size())) {
        return make_error(Errc::protocol, "RESET_INFO's answer has a body of {} bytes, number {}, a hash of {}",
                          body->size(), info.sequence, info.given_up.size());
    }
    return info;
}

} // namespace vtpmd::proto
