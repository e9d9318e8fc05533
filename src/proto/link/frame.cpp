#include "proto/link/frame.hpp"

#include "util/wire.hpp"

#include <cstdlib>

namespace vtpmd::proto {

Result<FrameHeader> parse_header(ByteView data) {
    WireReader in(data);
    FrameHeader h;
    h.tag = in.be16();
    h.size = in.be32();
    h.code = in.be32();
    if (!in.ok()) {
        return make_error(Errc::protocol, "a frame of {} bytes, shorter than its header", data.size());
    }
    if (h.size < header_size || h.size > frame_limit) {
        return make_error(Errc::protocol, "a frame says it has {} bytes; {} to {} are allowed", h.size, header_size,
                          frame_limit);
    }
    return h;
}

Result<FrameHeader> parse_frame(ByteView frame) {
    auto h = parse_header(frame);
    if (h && h->size != frame.size()) {
        return make_error(Errc::protocol, "a frame of {} bytes says it has {}", frame.size(), h->size);
    }
    return h;
}

Bytes make_frame(std::uint16_t tag, std::uint32_t code, ByteView body) {
    const std::size_t size = header_size + body.size();
    if (size > frame_limit) {
        std::abort();
    }
    WireWriter out(size);
    out.be16(tag).be32(static_cast<std::uint32_t>(size)).be32(code).bytes(body);
    return out.take();
}

} // namespace vtpmd::proto
