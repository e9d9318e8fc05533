#include "hwtpm/drivers/kernel_device.hpp"

#include "hwtpm/drivers/stream_io.hpp"
#include "tpm/header.hpp"
#include "util/text.hpp"

#include <algorithm>
#include <cerrno>
#include <fcntl.h>
#include <poll.h>

namespace vtpmd::hwtpm {

namespace {

Result<UniqueFd> open_node(const std::string& path) {
    // Non-blocking: write() queues the command, poll() says when the answer is there (Linux 4.20 and later); an older
    // kernel works within write().
    UniqueFd fd(::open(path.c_str(), O_RDWR | O_CLOEXEC | O_NONBLOCK));
    if (fd) {
        return fd;
    }
    switch (errno) {
    case ENOENT:
    case ENXIO:
    case ENODEV:
        return make_error(Errc::not_found,
                          "{}: the kernel has no TPM there (no chip, disabled in the firmware, or its "
                          "driver is not loaded)",
                          path);
    case EBUSY:
        return make_error(Errc::busy, "{}: another program has it open (tcsd, tpm2-abrmd); stop it, or use /dev/tpmrm0",
                          path);
    case EACCES:
    case EPERM:
        return make_error(Errc::permission, "{}: no right to open it (root, or the group tss)", path);
    default:
        return errno_error(errno, path);
    }
}

class KernelDevice final : public TpmDevice {
  public:
    KernelDevice(UniqueFd fd, std::string path)
        : fd_(std::move(fd))
        , path_(std::move(path)) {}

    [[nodiscard]] std::string description() const override { return "device:" + path_; }
    [[nodiscard]] bool exclusive() const override { return path_.find("tpmrm") == std::string::npos; }

    Result<void> claim() override {
        return fd_ ? Result<void>() : Result<void>(make_error(Errc::closed, "{}: closed after an error", path_));
    }
    Result<void> restart() override {
        fd_.reset(); // the kernel lets only one in
        auto fd = open_node(path_);
        if (!fd) {
            return fd.error();
        }
        fd_ = std::move(*fd);
        return {};
    }
    Result<Bytes> transmit(ByteView command, std::chrono::milliseconds limit) override {
        auto answer = exchange(command, limit);
        if (!answer) {
            fd_.reset(); // an answer that comes now would be to an older question
        }
        return answer;
    }

  private:
    Result<Bytes> exchange(ByteView command, std::chrono::milliseconds limit);

    UniqueFd fd_;
    std::string path_;
};

Result<Bytes> KernelDevice::exchange(ByteView command, std::chrono::milliseconds limit) {
    if (!fd_) {
        return make_error(Errc::closed, "{}: not open", path_);
    }
    const auto deadline = std::chrono::steady_clock::now() + limit;
    ssize_t n = 0;
    // One write is one command. EBUSY: the one before is still being worked on; EAGAIN: the queue is full.
    while ((n = ::write(fd_.get(), command.data(), command.size())) < 0) {
        if (errno == EINTR) {
            continue;
        }
        if (errno != EAGAIN && errno != EBUSY) {
            return errno_error(errno, path_ + ": sending a command");
        }
        if (auto r = wait_ready(fd_.get(), POLLOUT, deadline, path_); !r) {
            return r.error();
        }
    }
    if (static_cast<std::size_t>(n) != command.size()) {
        return make_error(Errc::io, "{}: took {} of {} bytes", path_, n, command.size());
    }
    Bytes out(tpm_buffer_limit);
    // One read is one answer.
    for (;;) {
        if (auto r = wait_ready(fd_.get(), POLLIN, deadline, path_); !r) {
            return r.error();
        }
        n = ::read(fd_.get(), out.data(), out.size());
        if (n > 0) {
            break;
        }
        if (n == 0) {
            return make_error(Errc::closed, "{}: no answer from the kernel's driver", path_);
        }
        if (errno != EINTR && errno != EAGAIN) {
            return errno_error(errno, path_ + ": reading the answer");
        }
    }
    out.resize(static_cast<std::size_t>(n));
    if (auto header = tpm::parse_header(out); !header) {
        return in_context(header.error(), path_);
    }
    return out;
}

} // namespace

std::vector<std::string> kernel_tpms(const std::filesystem::path& sysfs_class) {
    constexpr std::string_view prefix = "tpm";
    std::vector<std::uint64_t> numbers;
    std::error_code ec;
    for (const auto& entry : std::filesystem::directory_iterator(sysfs_class, ec)) {
        const std::string name = entry.path().filename();
        auto number = parse_number(std::string_view(name).substr(std::min(prefix.size(), name.size())), UINT32_MAX);
        if (name.starts_with(prefix) && number && std::filesystem::exists(entry.path() / "device", ec)) {
            numbers.push_back(*number);
        }
    }
    std::sort(numbers.begin(), numbers.end());
    std::vector<std::string> names;
    names.reserve(numbers.size());
    for (const std::uint64_t n : numbers) {
        names.push_back(fmt::format("{}{}", prefix, n));
    }
    return names;
}

Result<std::unique_ptr<TpmDevice>> open_kernel_device(const std::string& path) {
    auto fd = open_node(path);
    if (!fd) {
        return fd.error();
    }
    return make_kernel_device(std::move(*fd), path);
}

std::unique_ptr<TpmDevice> make_kernel_device(UniqueFd fd, std::string path) {
    return std::make_unique<KernelDevice>(std::move(fd), std::move(path));
}

} // namespace vtpmd::hwtpm
