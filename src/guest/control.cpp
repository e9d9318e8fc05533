#include "guest/control.hpp"

#include "util/secret_bytes.hpp"
#include "util/wire.hpp"

#include <algorithm>

namespace vtpmd::guest {

namespace {

constexpr std::uint8_t highest_locality = 4; // PC Client TIS section 4
constexpr std::uint32_t blob_types = 3;

ControlResult result_of(const Result<void>& r) {
    if (r) {
        return ControlResult::success;
    }
    switch (r.error().code) {
    case Errc::usage:
    case Errc::mismatch:
    case Errc::corrupt:
    case Errc::too_large:
        return ControlResult::bad_parameter;
    case Errc::unsupported:
        return ControlResult::bad_ordinal;
    case Errc::io:
    case Errc::no_space:
    case Errc::unavailable:
        return ControlResult::io_error;
    case Errc::tpm:
        return r.error().detail == 0 ? ControlResult::fail : static_cast<ControlResult>(r.error().detail);
    default:
        return ControlResult::fail;
    }
}

enum class RunState { any, running, stopped };

RunState allowed_in(ControlCommand command) {
    switch (command) {
    case ControlCommand::get_established:
    case ControlCommand::hash_start:
    case ControlCommand::hash_data:
    case ControlCommand::hash_end:
    case ControlCommand::cancel:
    case ControlCommand::store_volatile:
    case ControlCommand::reset_established:
    case ControlCommand::get_stateblob:
        return RunState::running;
    case ControlCommand::set_stateblob:
        return RunState::stopped;
    default:
        return RunState::any;
    }
}

bool allowed(ControlCommand command, bool running) {
    const RunState s = allowed_in(command);
    return s == RunState::any || (s == RunState::running) == running;
}

Task<Bytes> get_stateblob(const ControlRequest& request, TpmService& service) {
    if (request.type == 0 || request.type > blob_types) {
        co_return control_answer(ControlResult::bad_parameter);
    }
    if ((request.flags & state_decrypted) == 0) {
        co_return control_answer(ControlResult::fail); // in clear or not at all: there is no key that both sides have
    }
    auto blob = co_await service.get_blob(request.type);
    if (!blob) {
        co_return control_answer(result_of(blob.error()));
    }
    if (request.offset > blob->size()) {
        cleanse(*blob);
        co_return control_answer(ControlResult::bad_parameter);
    }
    const ByteView part = ByteView(*blob).subspan(request.offset);
    WireWriter body(12 + part.size());
    body.be32(0); // not encrypted: the channel is the operator's, and QEMU asks for it so
    body.be32(static_cast<std::uint32_t>(blob->size())).be32(static_cast<std::uint32_t>(part.size())).bytes(part);
    Bytes answer = control_answer(ControlResult::success, body.view());
    cleanse(*blob);
    Bytes used = body.take();
    cleanse(used);
    co_return answer;
}

Task<Bytes> get_info(const ControlRequest& request, TpmService& service) {
    const std::string json = co_await service.info(request.flags);
    if (request.offset > json.size()) {
        co_return control_answer(ControlResult::bad_parameter);
    }
    const std::string_view part = std::string_view(json).substr(request.offset, info_chunk_limit);
    WireWriter body;
    body.be32(static_cast<std::uint32_t>(json.size()))
        .be32(static_cast<std::uint32_t>(part.size()))
        .bytes(as_bytes(part));
    co_return control_answer(ControlResult::success, body.view());
}

Task<Bytes> set_buffersize(const ControlRequest& request, TpmService& service) {
    auto now = co_await service.buffer_size(request.value);
    if (!now) {
        co_return control_answer(result_of(now.error()));
    }
    WireWriter body;
    body.be32(now->size).be32(now->min).be32(now->max);
    co_return control_answer(ControlResult::success, body.view());
}

Bytes be32_answer(std::uint32_t value) {
    WireWriter body;
    body.be32(value);
    return control_answer(ControlResult::success, body.view());
}

Task<Result<void>> do_command(ControlRequest request, TpmService& service, EndpointState& endpoint, ControlPeer peer) {
    switch (request.command) {
    case ControlCommand::init:
        co_return co_await service.init((request.flags & init_delete_volatile) != 0, peer);
    case ControlCommand::stop:
        co_return co_await service.stop();
    case ControlCommand::hash_start:
        co_return co_await service.hash_start();
    case ControlCommand::hash_data:
        co_return co_await service.hash_data(std::move(request.data));
    case ControlCommand::hash_end:
        co_return co_await service.hash_end();
    case ControlCommand::store_volatile:
        co_return co_await service.store_volatile();
    case ControlCommand::reset_established:
        co_return co_await service.reset_established(static_cast<std::uint8_t>(request.value));
    case ControlCommand::set_stateblob:
        if (request.type == 0 || request.type > blob_types || (request.flags & state_encrypted) != 0) {
            co_return make_error(Errc::usage, "a state blob of type {} with flags {}", request.type, request.flags);
        }
        co_return co_await service.set_blob(request.type, std::move(request.data), peer);
    case ControlCommand::set_locality:
        if (request.value > highest_locality) {
            Error e = make_error(Errc::tpm, "locality {}", request.value);
            e.detail = static_cast<unsigned>(ControlResult::bad_locality);
            co_return e;
        }
        endpoint.locality = static_cast<std::uint8_t>(request.value);
        co_return Result<void>{};
    case ControlCommand::cancel:
        if (service.version() == TpmVersion::tpm12) {
            co_return make_error(Errc::tpm, "a TPM 1.2 runs its commands to the end"); // TPM_FAIL, as swtpm says
        }
        service.cancel();
        co_return Result<void>{};
    case ControlCommand::shutdown: // the caller does it, after the answer
        co_return Result<void>{};
    case ControlCommand::lock_storage: // the image is locked for as long as this process lives
        if (service.handed_over()) {
            co_return make_error(Errc::unavailable, "another host has this TPM");
        }
        co_return Result<void>{};
    default:
        co_return make_error(Errc::unsupported, "control command {}", static_cast<std::uint32_t>(request.command));
    }
}

} // namespace

std::uint32_t control_capabilities(const EndpointState& endpoint) noexcept {
    // Bits 0-16 in this order: INIT, SHUTDOWN, GET_TPMESTABLISHED, SET_LOCALITY, HASHING, CANCEL_TPM_CMD,
    // STORE_VOLATILE, RESET_TPMESTABLISHED, GET_STATEBLOB, SET_STATEBLOB, STOP, GET_CONFIG, SET_DATAFD, SET_BUFFERSIZE,
    // GET_INFO, SEND_COMMAND_HEADER, LOCK_STORAGE.
    constexpr std::uint32_t all = (1U << 17) - 1;
    constexpr std::uint32_t state_blobs = 3U << 8;
    constexpr std::uint32_t set_datafd = 1U << 12;
    constexpr std::uint32_t send_command_header = 1U << 15;
    return all & ~send_command_header & ~(endpoint.data_descriptor ? 0 : set_datafd) &
           ~(endpoint.state_blobs ? 0 : state_blobs);
}

Task<Bytes> carry_out(ControlRequest request, TpmService& service, EndpointState& endpoint, ControlPeer peer) {
    const bool blob =
        request.command == ControlCommand::get_stateblob || request.command == ControlCommand::set_stateblob;
    if (!allowed(request.command, service.running()) || (blob && !endpoint.state_blobs)) {
        co_return control_answer(ControlResult::bad_ordinal);
    }
    switch (request.command) {
    case ControlCommand::get_capability:
        co_return be32_answer(control_capabilities(endpoint));
    case ControlCommand::get_config:
        co_return be32_answer(0); // blobs are neither encrypted on the way out nor expected so on the way in
    case ControlCommand::get_established: {
        auto established = co_await service.established();
        if (!established) {
            co_return control_answer(result_of(established.error()));
        }
        const std::byte body[4] = {std::byte{*established}};
        co_return control_answer(ControlResult::success, body);
    }
    case ControlCommand::get_stateblob:
        co_return co_await get_stateblob(request, service);
    case ControlCommand::get_info:
        co_return co_await get_info(request, service);
    case ControlCommand::set_buffersize:
        co_return co_await set_buffersize(request, service);
    default: {
        auto done = co_await do_command(std::move(request), service, endpoint, peer);
        co_return control_answer(result_of(done));
    }
    }
}

} // namespace vtpmd::guest
