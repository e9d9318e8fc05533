#include "guest/control_codec.hpp"

#include "util/wire.hpp"

#include <algorithm>
#include <optional>

namespace vtpmd::guest {

namespace {

constexpr std::size_t command_code_size = 4;

/// Bytes of the body before any variable part; nullopt: no such command.
std::optional<std::size_t> fixed_body(std::uint32_t command) {
    switch (static_cast<ControlCommand>(command)) {
    case ControlCommand::get_capability:
    case ControlCommand::shutdown:
    case ControlCommand::get_established:
    case ControlCommand::hash_start:
    case ControlCommand::hash_end:
    case ControlCommand::cancel:
    case ControlCommand::store_volatile:
    case ControlCommand::stop:
    case ControlCommand::get_config:
    case ControlCommand::set_datafd:
        return 0;
    case ControlCommand::set_locality:
    case ControlCommand::reset_established:
        return 1;
    case ControlCommand::init:
    case ControlCommand::hash_data:
    case ControlCommand::set_buffersize:
    case ControlCommand::lock_storage:
        return 4;
    case ControlCommand::get_stateblob:
    case ControlCommand::set_stateblob:
        return 12;
    case ControlCommand::get_info:
        return 16;
    }
    return std::nullopt;
}

} // namespace

Result<std::size_t> control_size(ByteView so_far) {
    WireReader in(so_far);
    const std::uint32_t command = in.be32();
    if (!in.ok()) {
        return command_code_size;
    }
    const std::size_t fixed = command_code_size + fixed_body(command).value_or(0);
    const bool hash = command == static_cast<std::uint32_t>(ControlCommand::hash_data);
    if ((!hash && command != static_cast<std::uint32_t>(ControlCommand::set_stateblob)) || so_far.size() < fixed) {
        return fixed;
    }
    in.skip(fixed - command_code_size - 4);
    const std::uint32_t n = in.be32();
    if (hash) {
        return fixed + std::min<std::size_t>(n, hash_data_piece);
    }
    if (n > state_blob_limit) {
        return make_error(Errc::too_large, "control command {} with {} bytes of data; at most {} are taken", command, n,
                          state_blob_limit);
    }
    return fixed + n;
}

Result<ControlRequest> parse_control(ByteView request) {
    WireReader in(request);
    ControlRequest out;
    const std::uint32_t command = in.be32();
    if (!in.ok()) {
        return make_error(Errc::protocol, "a control command of {} bytes", request.size());
    }
    if (!fixed_body(command)) {
        return make_error(Errc::unsupported, "control command {} is unknown", command);
    }
    out.command = static_cast<ControlCommand>(command);
    switch (out.command) {
    case ControlCommand::set_locality:
    case ControlCommand::reset_established:
        out.value = in.u8();
        break;
    case ControlCommand::init:
        out.flags = in.be32();
        break;
    case ControlCommand::set_buffersize:
    case ControlCommand::lock_storage:
        out.value = in.be32();
        break;
    case ControlCommand::hash_data: {
        const std::uint32_t n = in.be32();
        out.data = to_bytes(in.bytes(std::min<std::size_t>(n, hash_data_piece)));
        out.more = n - out.data.size();
        break;
    }
    case ControlCommand::get_stateblob:
        out.flags = in.be32();
        out.type = in.be32();
        out.offset = in.be32();
        break;
    case ControlCommand::set_stateblob:
        out.flags = in.be32();
        out.type = in.be32();
        out.data = to_bytes(in.bytes(in.be32()));
        break;
    case ControlCommand::get_info:
        out.flags = in.be64();
        out.offset = in.be32();
        in.skip(4);
        break;
    default:
        break;
    }
    if (!in.ok()) {
        return make_error(Errc::protocol, "control command {} is cut short at {} bytes", command, request.size());
    }
    return out;
}

Bytes control_answer(ControlResult result, ByteView body) {
    WireWriter out(4 + body.size());
    out.be32(static_cast<std::uint32_t>(result)).bytes(body);
    return out.take();
}

} // namespace vtpmd::guest
