#include "hwtpm/drivers/swtpm_device.hpp"

#include "hwtpm/drivers/stream_io.hpp"
#include "tpm/commands.hpp"
#include "tpm/header.hpp"
#include "util/fd.hpp"
#include "util/free_by.hpp"
#include "util/wire.hpp"

#include <cerrno>
#include <cstring>
#include <fcntl.h>
#include <mutex>
#include <netdb.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>

namespace vtpmd::hwtpm {

namespace {

using namespace std::chrono_literals;

constexpr auto connect_limit = 5s;
constexpr auto control_limit = 10s; // CMD_INIT of a TPM 1.2 that makes its keys takes a while
constexpr auto locality_limit = 2s;
constexpr auto cancel_grace = 2s; // from the cancel to the TPM's answer

// The control channel's commands (swtpm_ioctls(3)).
constexpr std::uint32_t cmd_init = 2;
constexpr std::uint32_t cmd_set_locality = 5;
constexpr std::uint32_t cmd_cancel = 9;

Result<UniqueFd> finish_connect(UniqueFd fd, const sockaddr* address, socklen_t size, const std::string& what) {
    if (::connect(fd.get(), address, size) == 0) {
        return fd;
    }
    if (errno != EINPROGRESS) {
        return errno_error(errno, what);
    }
    if (auto r = wait_ready(fd.get(), POLLOUT, std::chrono::steady_clock::now() + connect_limit, what); !r) {
        return r.error();
    }
    int err = 0;
    socklen_t n = sizeof err;
    if (::getsockopt(fd.get(), SOL_SOCKET, SO_ERROR, &err, &n) != 0 || err != 0) {
        return errno_error(err != 0 ? err : errno, what);
    }
    return fd;
}

Result<UniqueFd> connect_unix(const std::string& path) {
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    if (path.size() >= sizeof address.sun_path) {
        return make_error(Errc::usage, "{}: longer than a Unix socket's path may be ({} bytes)", path,
                          sizeof address.sun_path - 1);
    }
    std::memcpy(address.sun_path, path.data(), path.size());
    UniqueFd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
    if (!fd) {
        return errno_error(errno, path);
    }
    return finish_connect(std::move(fd), reinterpret_cast<const sockaddr*>(&address), sizeof address, path);
}

Result<UniqueFd> connect_tcp(const std::string& host, unsigned port) {
    const std::string what = fmt::format("{}:{}", host, port);
    addrinfo hints{};
    hints.ai_socktype = SOCK_STREAM;
    hints.ai_flags = AI_NUMERICSERV;
    addrinfo* list = nullptr;
    if (int rc = ::getaddrinfo(host.c_str(), std::to_string(port).c_str(), &hints, &list); rc != 0) {
        return make_error(Errc::not_found, "{}: {}", what, ::gai_strerror(rc));
    }
    std::unique_ptr<addrinfo, FreeBy<::freeaddrinfo>> owner(list);
    Result<UniqueFd> last = make_error(Errc::not_found, "{}: no address", what);
    for (addrinfo* a = list; a != nullptr; a = a->ai_next) {
        UniqueFd fd(::socket(a->ai_family, a->ai_socktype | SOCK_CLOEXEC | SOCK_NONBLOCK, a->ai_protocol));
        if (!fd) {
            last = errno_error(errno, what);
            continue;
        }
        int on = 1;
        (void)::setsockopt(fd.get(), IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        last = finish_connect(std::move(fd), a->ai_addr, a->ai_addrlen, what);
        if (last) {
            break;
        }
    }
    return last;
}

class SwtpmDevice final : public TpmDevice {
  public:
    SwtpmDevice(DriverSpec spec, unsigned locality, const Log& log)
        : spec_(std::move(spec))
        , name_(to_string(spec_))
        , locality_(locality)
        , log_(log) {}

    Result<void> open();

    [[nodiscard]] std::string description() const override { return name_; }
    Result<Bytes> transmit(ByteView command, std::chrono::milliseconds limit) override;
    Result<void> claim() override;
    Result<void> restart() override;
    void cancel() noexcept override;
    [[nodiscard]] bool exclusive() const override { return true; }

  private:
    Result<UniqueFd> connect_data() const;
    Result<void> control(std::uint32_t command, ByteView body, std::chrono::seconds limit = control_limit) const;
    Result<void> power_on_if_needed();

    DriverSpec spec_;
    std::string name_;
    unsigned locality_;
    const Log& log_;

    UniqueFd data_;
};

Result<UniqueFd> SwtpmDevice::connect_data() const {
    return spec_.kind == DriverKind::swtpm_unix ? connect_unix(spec_.path) : connect_tcp(spec_.path, spec_.port);
}

Result<void> SwtpmDevice::control(std::uint32_t command, ByteView body, std::chrono::seconds limit) const {
    auto fd = spec_.kind == DriverKind::swtpm_unix ? connect_unix(spec_.path + ".ctrl")
                                                   : connect_tcp(spec_.path, spec_.port + 1U);
    if (!fd) {
        return in_context(fd.error(), name_ + ": control channel");
    }
    const auto deadline = std::chrono::steady_clock::now() + limit;
    WireWriter request;
    request.be32(command).bytes(body);
    const std::string what = fmt::format("{}: control command {}", name_, command);
    if (auto r = write_all(fd->get(), request.view(), deadline, what); !r) {
        return r;
    }
    Bytes answer(4);
    if (auto r = read_all(fd->get(), answer, deadline, what); !r) {
        return r;
    }
    if (std::uint32_t rc = WireReader(answer).be32(); rc != 0) {
        return make_error(Errc::tpm, "{}: refused with {:#x}", what, rc);
    }
    return {};
}

/// swtpm without the not-need-init flag answers every command with a fatal error until CMD_INIT.
Result<void> SwtpmDevice::power_on_if_needed() {
    // TPM2_GetCapability, no capability asked for: any running TPM of either family refuses it with something else.
    WireWriter probe;
    probe.be16(0x8001).be32(22).be32(0x17A).be32(6).be32(0x100).be32(1);
    auto answer = transmit(probe.view(), 10s);
    if (!answer) {
        return answer.error();
    }
    const std::uint32_t code = tpm::peek_header(*answer).code;
    const bool off12 = code == tpm::refusal_code(TpmVersion::tpm12, tpm::Refusal::failure);
    const bool off20 = code == tpm::refusal_code(TpmVersion::tpm20, tpm::Refusal::failure);
    if (!off12 && !off20) {
        return {};
    }
    WireWriter flags;
    flags.be32(0);
    if (auto done = control(cmd_init, flags.view()); !done) {
        return in_context(done.error(), "the TPM is not powered on and its control channel does not help");
    }
    // The firmware's part, too: TPM2_Startup is for localities 0 and 3, ours may be another.
    auto started = transmit(
        tpm::startup_command(off12 ? TpmVersion::tpm12 : TpmVersion::tpm20, tpm::StartupMode::clear), control_limit);
    return started ? Result<void>() : Result<void>(started.error());
}

Result<void> SwtpmDevice::open() {
    auto fd = connect_data();
    if (!fd) {
        Error e = in_context(fd.error(), name_);
        e.code = Errc::unavailable;
        return e;
    }
    data_ = std::move(*fd);
    if (auto r = power_on_if_needed(); !r) {
        return r;
    }
    // swtpm keeps the locality that somebody set before us. Without a control channel it has none but 0.
    WireWriter body;
    body.u8(static_cast<std::uint8_t>(locality_));
    if (auto r = control(cmd_set_locality, body.view(), locality_limit); !r && locality_ != 0) {
        return in_context(r.error(), fmt::format("setting locality {}", locality_));
    }
    return {};
}

Result<void> SwtpmDevice::restart() {
    data_.reset();
    return open();
}

Result<void> SwtpmDevice::claim() {
    if (!data_) {
        return make_error(Errc::closed, "{}: not connected", name_);
    }
    if (readable_now(data_.get())) {
        data_.reset();
        return make_error(Errc::closed, "{}: the connection was lost", name_);
    }
    return {};
}

Result<Bytes> SwtpmDevice::transmit(ByteView command, std::chrono::milliseconds limit) {
    if (!data_) {
        return make_error(Errc::closed, "{}: not connected", name_);
    }
    const auto deadline = std::chrono::steady_clock::now() + limit;
    auto sent = write_all(data_.get(), command, deadline, name_);
    Result<Bytes> answer = sent ? read_response(data_.get(), deadline, name_) : Result<Bytes>(sent.error());
    if (!answer && answer.error().code == Errc::timed_out && sent) {
        cancel();
        (void)read_response(data_.get(), std::chrono::steady_clock::now() + cancel_grace, name_);
    }
    if (!answer) {
        data_.reset(); // what comes now would be the answer to an older question
    }
    return answer;
}

void SwtpmDevice::cancel() noexcept {
    try {
        if (auto r = control(cmd_cancel, {}); !r) {
            log_.debug("cancel: {}", r.error().message);
        }
    } catch (const std::exception&) { // no memory for a message: the deadline of transmit() still holds
        return;
    }
}

} // namespace

Result<std::unique_ptr<TpmDevice>> open_swtpm(const DriverSpec& spec, unsigned locality, const Log& log) {
    auto device = std::make_unique<SwtpmDevice>(spec, locality, log);
    if (auto r = device->open(); !r) {
        return r.error();
    }
    return std::unique_ptr<TpmDevice>(std::move(device));
}

} // namespace vtpmd::hwtpm
