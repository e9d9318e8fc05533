#include "client.hpp"

#include "tpm/commands.hpp"
#include "util/wire.hpp"

#include <cerrno>
#include <cstring>
#include <stdexcept>
#include <sys/socket.h>
#include <sys/un.h>
#include <thread>

namespace bench {

using namespace vtpmd;

namespace {

[[noreturn]] void system_error(const std::string& what) {
    throw std::runtime_error(fmt::format("{}: {}", what, std::strerror(errno)));
}

Bytes with_password(std::uint32_t code, std::initializer_list<std::uint32_t> handles, ByteView parameters) {
    WireWriter w;
    w.be16(tpm::st_sessions).be32(0).be32(code);
    for (auto h : handles) {
        w.be32(h);
    }
    w.be32(9).be32(tpm::rh::pw).be16(0).u8(0).be16(0).bytes(parameters);
    w.patch_be32(2, static_cast<std::uint32_t>(w.size()));
    return w.take();
}

} // namespace

UniqueFd connect_to(const std::filesystem::path& socket, std::chrono::milliseconds patience) {
    const auto deadline = std::chrono::steady_clock::now() + patience;
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    const std::string path = socket.string();
    if (path.size() >= sizeof address.sun_path) {
        throw std::runtime_error(fmt::format("{}: too long for a socket's path", path));
    }
    std::memcpy(address.sun_path, path.c_str(), path.size() + 1);
    for (;;) {
        UniqueFd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
        if (connect(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0) {
            return fd;
        }
        if (std::chrono::steady_clock::now() > deadline) {
            system_error(path);
        }
        std::this_thread::sleep_for(std::chrono::microseconds(100));
    }
}

ByteView Client::exchange(ByteView command) {
    if (send(fd_.get(), command.data(), command.size(), MSG_NOSIGNAL) != static_cast<ssize_t>(command.size())) {
        system_error("sending a command");
    }
    std::size_t have = 0;
    std::size_t want = tpm::header_size;
    while (have < want) {
        const ssize_t n = recv(fd_.get(), answer_.data() + have, answer_.size() - have, 0);
        if (n <= 0) {
            system_error("the TPM hung up");
        }
        have += static_cast<std::size_t>(n);
        if (have >= tpm::header_size) {
            want = tpm::peek_header(view_of(answer_.data(), have)).size;
        }
    }
    return {answer_.data(), have};
}

ByteView Client::must(ByteView command) {
    const ByteView answer = exchange(command);
    if (auto ok = tpm::check_response(answer, fmt::format("command {:#x}", tpm::peek_header(command).code)); !ok) {
        throw std::runtime_error(ok.error().message);
    }
    return answer;
}

Bytes nv_define(std::uint32_t index, std::uint16_t size) {
    WireWriter w;
    w.be16(0).be16(14).be32(index).be16(tpm::alg::sha256).be32(0x02040004).be16(0).be16(size);
    return with_password(tpm::cc::nv_define_space, {tpm::rh::owner}, w.view());
}

Bytes nv_write(std::uint32_t index, ByteView data) {
    WireWriter w;
    w.be16(static_cast<std::uint16_t>(data.size())).bytes(data).be16(0);
    return with_password(tpm::cc::nv_write, {index, index}, w.view());
}

Bytes extend_16() {
    const tpm::HashValue value{tpm::alg::sha256, Bytes(32)};
    return tpm::pcr_extend_command(16, std::span(&value, 1));
}

} // namespace bench
