#include "device_model.hpp"

#include "guest/control_codec.hpp"
#include "tpm/commands.hpp"
#include "util/wire.hpp"

#include <cerrno>
#include <cstring>
#include <fmt/format.h>
#include <stdexcept>
#include <sys/socket.h>

namespace bench {

using namespace vtpmd;
using guest::ControlCommand;

namespace {

constexpr std::uint32_t buffer_size = 4096;
constexpr std::uint32_t rc_non_fatal = 0x800; ///< of swtpm, for a blob that there is not

[[noreturn]] void fail_control(std::string_view what) {
    throw std::runtime_error(fmt::format("the control channel: {}: {}", what, std::strerror(errno)));
}

std::uint32_t number(ControlCommand command) { return static_cast<std::uint32_t>(command); }

Bytes words(std::initializer_list<std::uint32_t> values) {
    WireWriter w;
    for (const std::uint32_t v : values) {
        w.be32(v);
    }
    return w.take();
}

void send_with(int socket, ByteView data, int descriptor) {
    iovec part{const_cast<std::byte*>(data.data()), data.size()}; // sendmsg does not write there
    alignas(cmsghdr) std::array<std::byte, CMSG_SPACE(sizeof(int))> room{};
    msghdr message{};
    message.msg_iov = &part;
    message.msg_iovlen = 1;
    message.msg_control = room.data();
    message.msg_controllen = room.size();
    cmsghdr* head = CMSG_FIRSTHDR(&message);
    head->cmsg_level = SOL_SOCKET;
    head->cmsg_type = SCM_RIGHTS;
    head->cmsg_len = CMSG_LEN(sizeof(int));
    std::memcpy(CMSG_DATA(head), &descriptor, sizeof descriptor);
    if (sendmsg(socket, &message, MSG_NOSIGNAL) != static_cast<ssize_t>(data.size())) {
        fail_control("handing the descriptor over");
    }
}

} // namespace

DeviceModel::DeviceModel(const std::filesystem::path& control, std::chrono::milliseconds patience)
    : DeviceModel(control, patience, [] {
        std::array<int, 2> pair{};
        if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair.data()) != 0) {
            fail_control("socketpair");
        }
        return Ends{UniqueFd(pair[0]), UniqueFd(pair[1])};
    }()) {}

DeviceModel::DeviceModel(const std::filesystem::path& control, std::chrono::milliseconds patience, Ends ends)
    : Client(std::move(ends.mine))
    , control_(connect_to(control, patience)) {
    send_with(control_.get(), words({number(ControlCommand::set_datafd)}), ends.tpms.get());
    if (receive(4) != words({0})) {
        throw std::runtime_error("the TPM takes no descriptor");
    }
    (void)exchange(tpm::get_random_command(TpmVersion::tpm20, 1)); // QEMU asks for its version, before it is on
    (void)call(number(ControlCommand::get_capability), {}, 4);
    (void)call(number(ControlCommand::stop), {}, 0);
    (void)call(number(ControlCommand::set_buffersize), words({buffer_size}), 12);
}

void DeviceModel::power_on() { (void)call(number(ControlCommand::init), words({0}), 0); }

void DeviceModel::start_up() { must(tpm::startup_command(TpmVersion::tpm20, tpm::StartupMode::clear)); }

MovingState DeviceModel::state_out() {
    MovingState out;
    for (std::uint32_t type = 1; type <= out.blobs.size(); ++type) {
        MovingState::Blob& blob = out.blobs.at(type - 1);
        request(number(ControlCommand::get_stateblob), words({guest::state_decrypted, type, 0}));
        const Bytes head = receive(16);
        WireReader in(head);
        if (const std::uint32_t result = in.be32();
            result != 0 && (result & rc_non_fatal) == 0) { // QEMU's own condition
            throw std::runtime_error(fmt::format("a state blob: error {:#x}", result));
        }
        blob.flags = in.be32();
        const std::uint32_t total = in.be32();
        if (in.be32() != total || total > guest::state_blob_limit) {
            throw std::runtime_error("a state blob does not come at once");
        }
        blob.data = receive(total);
    }
    return out;
}

void DeviceModel::state_in(const MovingState& state) {
    (void)call(number(ControlCommand::stop), {}, 0);
    for (std::uint32_t type = 1; type <= state.blobs.size(); ++type) {
        const MovingState::Blob& blob = state.blobs.at(type - 1);
        if (!blob.data.empty()) {
            WireWriter w;
            w.be32(blob.flags).be32(type).be32(static_cast<std::uint32_t>(blob.data.size())).bytes(blob.data);
            (void)call(number(ControlCommand::set_stateblob), w.view(), 0);
        }
    }
}

Bytes DeviceModel::call(std::uint32_t command, ByteView body, std::size_t answer) {
    request(command, body);
    const Bytes result = receive(4);
    if (result != words({0})) {
        throw std::runtime_error(
            fmt::format("the control channel: command {}: error {:#x}", command, WireReader(result).be32()));
    }
    return receive(answer);
}

void DeviceModel::request(std::uint32_t command, ByteView body) {
    WireWriter w;
    w.be32(command).bytes(body);
    if (send(control_.get(), w.view().data(), w.size(), MSG_NOSIGNAL) != static_cast<ssize_t>(w.size())) {
        fail_control(fmt::format("command {}", command));
    }
}

Bytes DeviceModel::receive(std::size_t size) {
    Bytes out(size);
    for (std::size_t have = 0; have < size;) {
        const ssize_t n = recv(control_.get(), out.data() + have, size - have, 0);
        if (n <= 0) {
            fail_control(n == 0 ? "the TPM hung up" : "reading");
        }
        have += static_cast<std::size_t>(n);
    }
    return out;
}

} // namespace bench
