#include "proto/vtpm_managerd/messages.hpp"

#include "util/wire.hpp"

#include <fmt/format.h>

namespace vtpmd::proto::legacy {

namespace {

constexpr std::uint16_t tag_request = 0x01C1;
constexpr std::uint16_t tag_answer = 0x01C4;
constexpr std::uint32_t privileged = 0x01000000;
constexpr std::uint32_t ord_open = privileged | 1;
constexpr std::uint32_t ord_close = privileged | 2;
constexpr std::uint32_t ord_delete = privileged | 3;
constexpr std::uint8_t kind_pv = 1;
constexpr std::uint8_t kind_hvm = 2;

Refused invalid(std::string why) { return {.status = Status::invalid, .why = std::move(why)}; }

Request parse_open(WireReader& in) {
    const unsigned migratable = in.u8();
    const unsigned start = in.u8();
    const unsigned kind = in.u8();
    const std::uint32_t instance = in.be32();
    if (!in.expect_end() || migratable > 1 || start < 1 || start > 3 || (kind != kind_pv && kind != kind_hvm) ||
        instance == 0) {
        return invalid(fmt::format("OPEN: migratable {}, start {}, kind {}, instance {}: malformed", migratable, start,
                                   kind, instance));
    }
    return Open{.migratable = migratable == 1,
                .start = static_cast<Start>(start),
                .hvm = kind == kind_hvm,
                .instance = instance};
}

template <typename T>
Request parse_instance(WireReader& in, std::string_view name) {
    const T request{.instance = in.be32()};
    if (!in.expect_end() || request.instance == 0) {
        return invalid(fmt::format("{}: instance {}: malformed", name, request.instance));
    }
    return request;
}

Bytes frame(std::uint16_t tag, std::uint32_t code, ByteView body) {
    WireWriter w;
    w.be32(0).be16(tag).be32(static_cast<std::uint32_t>(header_size - prefix_size + body.size())).be32(code);
    return w.bytes(body).take();
}

Bytes instance_request(std::uint32_t ordinal, std::uint32_t instance) {
    const WireWriter body = WireWriter().be32(instance);
    return frame(tag_request, ordinal, body.view());
}

} // namespace

Result<std::size_t> request_size(ByteView header) {
    WireReader in(header);
    in.skip(prefix_size + 2);
    const std::uint32_t size = in.be32();
    if (!in.ok() || size < header_size - prefix_size || size > request_limit - prefix_size) {
        return make_error(Errc::protocol, "a request of {} bytes: {} to {}", size, header_size - prefix_size,
                          request_limit - prefix_size);
    }
    return prefix_size + size;
}

Request parse(ByteView request) {
    WireReader in(request);
    const std::uint32_t channel = in.be32();
    const unsigned tag = in.be16();
    const std::uint32_t size = in.be32();
    const std::uint32_t ordinal = in.be32();
    if (!in.ok() || tag != tag_request || prefix_size + std::uint64_t{size} != request.size()) {
        return invalid(fmt::format("{} bytes, tag 0x{:x}, size {}: no request", request.size(), tag, size));
    }
    if (channel != 0) {
        return Refused{.status = Status::forbidden,
                       .why = fmt::format("a request of instance {}: this channel is the privileged one, 0", channel)};
    }
    switch (ordinal) {
    case ord_open:
        return parse_open(in);
    case ord_close:
        return parse_instance<Close>(in, "CLOSE");
    case ord_delete:
        return parse_instance<Delete>(in, "DELETE");
    default:
        return Refused{.status = Status::unsupported, .why = fmt::format("ordinal 0x{:x} is not offered", ordinal)};
    }
}

Bytes encode_answer(Status status) { return frame(tag_answer, static_cast<std::uint32_t>(status), {}); }

Bytes encode(const Open& request) {
    WireWriter body;
    body.u8(request.migratable ? 1 : 0).u8(static_cast<std::uint8_t>(request.start));
    body.u8(request.hvm ? kind_hvm : kind_pv).be32(request.instance);
    return frame(tag_request, ord_open, body.view());
}
Bytes encode(const Close& request) { return instance_request(ord_close, request.instance); }
Bytes encode(const Delete& request) { return instance_request(ord_delete, request.instance); }

} // namespace vtpmd::proto::legacy
