// vtpm-proxy: joins the raw TPM 2.0 that xen-tpmfront gives a PV guest to the kernel's tpm_vtpm_proxy. The driver was made for
// TPM 1.2: it passes a TPM 2.0's commands through /dev/tpm0, but makes no /dev/tpmrm0 and knows nothing of what it carries. The
// proxy's device, /dev/tpmN with its resource manager /dev/tpmrmN, is an ordinary TPM 2.0.
//
// It runs inside the guest and links with nothing but the C++ library. It never looks at what it carries but for the header,
// and wipes it.
#include "guest/vtpmx_device.hpp"

#include <algorithm>
#include <array>
#include <cerrno>
#include <csignal>
#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <fcntl.h>
#include <filesystem>
#include <initializer_list>
#include <optional>
#include <poll.h>
#include <span>
#include <string>
#include <string_view>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sysexits.h>
#include <unistd.h>

namespace {

constexpr std::string_view usage =
    "vtpm-proxy: a proper TPM 2.0 device for a Xen PV guest, on the raw one of its xen-tpmfront\n"
    "\n"
    "  --device=/dev/tpmN   the raw device; found by its driver if not given\n"
    "  --vtpmx=/dev/vtpmx   the kernel's proxy (module tpm_vtpm_proxy)\n"
    "  --help\n";

// TCG, TPM 2.0 Library, part 2 and TPM Main 1.2, part 2.
constexpr std::uint16_t tag_tpm20 = 0x8001;
constexpr std::uint32_t rc_success = 0;
constexpr std::uint32_t rc_failure = 0x101;
constexpr std::uint32_t rc_locality = 0x107;
constexpr std::size_t header_size = 10;
constexpr std::size_t command_limit = 4096;
constexpr int reopen_tries = 100; ///< a guest that was saved and restored gets its device again after a moment
constexpr int reopen_pause_ms = 100;
constexpr int remake_tries = 20; ///< on a busy host the kernel may find the TPM too slow at first
constexpr int remake_pause_ms = 1000;

/// A descriptor and its close.
class Descriptor {
  public:
    explicit Descriptor(int fd = -1) noexcept
        : fd_(fd) {}
    Descriptor(const Descriptor&) = delete;
    Descriptor& operator=(const Descriptor&) = delete;
    ~Descriptor() { reset(-1); }
    void reset(int fd) noexcept {
        if (fd_ >= 0) {
            ::close(fd_);
        }
        fd_ = fd;
    }
    [[nodiscard]] int get() const noexcept { return fd_; }

  private:
    int fd_;
};

__attribute__((format(printf, 2, 3))) int fail(int status, const char* format, ...) {
    va_list arguments;
    va_start(arguments, format);
    std::fputs("vtpm-proxy: ", stderr);
    std::vfprintf(stderr, format, arguments);
    std::fputc('\n', stderr);
    va_end(arguments);
    return status;
}

std::uint32_t be32_at(std::span<const std::uint8_t> frame, std::size_t at) {
    return (std::uint32_t{frame[at]} << 24U) | (std::uint32_t{frame[at + 1]} << 16U) |
           (std::uint32_t{frame[at + 2]} << 8U) | frame[at + 3];
}

/// xen-tpmfront's device; another's number after the guest was restored, where IMA holds the first one's.
std::optional<std::string> find_front_end() {
    std::error_code ignored;
    for (const auto& device : std::filesystem::directory_iterator("/sys/bus/xen/drivers/vtpm", ignored)) {
        for (const auto& tpm : std::filesystem::directory_iterator(device.path() / "tpm", ignored)) {
            return "/dev/" + tpm.path().filename().string();
        }
    }
    return std::nullopt;
}

/// One frame's room, wiped when it is done with.
struct Frame {
    std::array<std::uint8_t, command_limit> bytes{};
    std::size_t size = 0;

    Frame() = default;
    Frame(const Frame&) = delete;
    Frame& operator=(const Frame&) = delete;
    ~Frame() { ::explicit_bzero(bytes.data(), bytes.size()); }

    [[nodiscard]] std::span<const std::uint8_t> view() const { return {bytes.data(), size}; }
    void set_answer(std::uint32_t code) {
        const std::array<std::uint8_t, header_size> header{tag_tpm20 >> 8U,
                                                           tag_tpm20 & 0xFFU,
                                                           0,
                                                           0,
                                                           0,
                                                           header_size,
                                                           static_cast<std::uint8_t>(code >> 24U),
                                                           static_cast<std::uint8_t>(code >> 16U),
                                                           static_cast<std::uint8_t>(code >> 8U),
                                                           static_cast<std::uint8_t>(code)};
        std::copy(header.begin(), header.end(), bytes.begin());
        size = header.size();
    }
};

class RawTpm {
  public:
    explicit RawTpm(std::string given)
        : given_(std::move(given)) {}

    /// 0, or the exit status after having said why.
    int open() {
        const auto path = given_.empty() ? find_front_end() : std::optional(given_);
        if (!path) {
            return fail(EX_UNAVAILABLE,
                        "no TPM of xen-tpmfront here: the domain needs vtpm=[\"backend=...,uuid=...\"] in its "
                        "configuration, and the module xen-tpmfront");
        }
        path_ = *path;
        fd_.reset(::open(path_.c_str(), O_RDWR | O_CLOEXEC));
        if (fd_.get() < 0) {
            const int error = errno;
            return fail(error == EBUSY ? EX_TEMPFAIL : EX_UNAVAILABLE, "%s: %s%s", path_.c_str(), std::strerror(error),
                        error == EBUSY ? "; a TPM has one user, end the other" : "");
        }
        return 0;
    }

    /// TPM2_GetCapability (TPM_PT_MANUFACTURER): a TPM 1.2 answers it with a tag of its own.
    int check_version() {
        Frame frame;
        const std::array<std::uint8_t, 22> question{0x80, 0x01, 0, 0, 0, 22, 0, 0, 0x01, 0x7A, 0,
                                                    0,    0,    6, 0, 0, 1,  5, 0, 0,    0,    1};
        std::copy(question.begin(), question.end(), frame.bytes.begin());
        frame.size = question.size();
        if (const int error = exchange(frame)) {
            return fail(EX_UNAVAILABLE, "%s does not answer: %s", path_.c_str(), std::strerror(error));
        }
        if (frame.bytes[0] != tag_tpm20 >> 8U) {
            return fail(EX_USAGE, "%s is a TPM 1.2: it needs no proxy, use it as it is", path_.c_str());
        }
        return 0;
    }

    /// The command in the frame is replaced by its answer, whatever that has to be.
    void execute(Frame& frame) {
        int error = exchange(frame);
        // EPIPE: the driver has let go of this device (suspend, resume) before it took the command.
        for (int i = 0; error == EPIPE && i < reopen_tries; ++i) {
            ::poll(nullptr, 0, reopen_pause_ms);
            if (const auto path = given_.empty() ? find_front_end() : std::optional(given_)) {
                const int fd = ::open(path->c_str(), O_RDWR | O_CLOEXEC);
                if (fd >= 0) {
                    fd_.reset(fd);
                    path_ = *path;
                    error = exchange(frame);
                }
            }
        }
        if (error != 0) {
            (void)fail(0, "%s: %s", path_.c_str(), std::strerror(error));
            frame.set_answer(rc_failure);
        }
    }

    [[nodiscard]] const std::string& path() const noexcept { return path_; }

  private:
    /// 0 or an errno; the command is still in the frame after EPIPE.
    int exchange(Frame& frame) {
        if (::write(fd_.get(), frame.bytes.data(), frame.size) != static_cast<ssize_t>(frame.size)) {
            return errno != 0 ? errno : EIO;
        }
        const ssize_t n = ::read(fd_.get(), frame.bytes.data(), frame.bytes.size());
        if (n < 0) {
            return errno;
        }
        frame.size = static_cast<std::size_t>(n);
        return frame.size < header_size || be32_at(frame.view(), 2) != frame.size ? EPROTO : 0;
    }

    const std::string given_;
    std::string path_;
    Descriptor fd_;
};

/// READY=1 and the like, where systemd asks for it (sd_notify(3)).
void notify_systemd(std::string_view state) {
    const char* path = std::getenv("NOTIFY_SOCKET");
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    if (path == nullptr || std::strlen(path) >= sizeof address.sun_path) {
        return;
    }
    std::memcpy(address.sun_path, path, std::strlen(path));
    const auto length = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + std::strlen(path));
    if (address.sun_path[0] == '@') {
        address.sun_path[0] = '\0';
    }
    const Descriptor socket(::socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0));
    (void)::sendto(socket.get(), state.data(), state.size(), MSG_NOSIGNAL, reinterpret_cast<const sockaddr*>(&address),
                   length);
}

/// The proxy's side for the kernel's requests; says which device it made. Negative: an error, which was said.
int make_device(const std::string& vtpmx, const std::string& raw) {
    const vtpmd::guest::VtpmxDevice device = vtpmd::guest::make_vtpmx_device(vtpmx.c_str(), true);
    if (device.error != 0) {
        (void)fail(0, "%s: %s (it belongs to the module tpm_vtpm_proxy: modprobe tpm_vtpm_proxy)", vtpmx.c_str(),
                   std::strerror(device.error));
        return -1;
    }
    std::printf("vtpm-proxy: /dev/tpm%u and /dev/tpmrm%u stand for %s\n", device.number, device.number, raw.c_str());
    std::fflush(stdout);
    notify_systemd("READY=1");
    return device.fd;
}

/// Requests of the kernel until a signal; one that is under way is finished. The exit status; EX_TEMPFAIL: the kernel has given
/// the device up, since it did not get an answer in time while it got to know it.
int serve(RawTpm& raw, int proxy, int signals) {
    for (;;) {
        std::array<pollfd, 2> ready{{{proxy, POLLIN, 0}, {signals, POLLIN, 0}}};
        if (::poll(ready.data(), ready.size(), -1) < 0 && errno != EINTR) {
            return fail(EX_OSERR, "poll: %s", std::strerror(errno));
        }
        if (ready[1].revents != 0) {
            return EX_OK;
        }
        if (ready[0].revents == 0) {
            continue;
        }
        Frame frame;
        const ssize_t n = ::read(proxy, frame.bytes.data(), frame.bytes.size());
        if (n < 0 && (errno == EINTR || errno == EAGAIN)) {
            continue;
        }
        if (n < 0 && errno == EPIPE) {
            return EX_TEMPFAIL;
        }
        if (n < static_cast<ssize_t>(header_size)) {
            return fail(EX_OSERR, "the kernel's proxy device: %s", n < 0 ? std::strerror(errno) : "a short request");
        }
        frame.size = static_cast<std::size_t>(n);
        if (be32_at(frame.view(), 6) == vtpmd::guest::vtpmx_set_locality) {
            // The kernel asks this of the proxy itself. What xen-tpmfront sends is of locality 0.
            const bool zero = frame.size == header_size + 1 && frame.bytes[header_size] == 0;
            frame.set_answer(zero ? rc_success : rc_locality);
        } else {
            raw.execute(frame);
        }
        // EPIPE, or EIO where only this command was given up: the kernel does not wait for it any more.
        if (::write(proxy, frame.bytes.data(), frame.size) < 0 && errno != EPIPE && errno != EIO) {
            return fail(EX_OSERR, "the kernel's proxy device: %s", std::strerror(errno));
        }
    }
}

} // namespace

int main(int argc, char** argv) {
    std::string device;
    std::string vtpmx = vtpmd::guest::vtpmx_control;
    for (int i = 1; i < argc; ++i) {
        const std::string_view word(argv[i]);
        if (word == "--help") {
            std::fputs(usage.data(), stdout);
            return EX_OK;
        }
        if (word.starts_with("--device=")) {
            device = word.substr(word.find('=') + 1);
        } else if (word.starts_with("--vtpmx=")) {
            vtpmx = word.substr(word.find('=') + 1);
        } else {
            return fail(EX_USAGE, "%s: no such option; --help lists them", argv[i]);
        }
    }
    ::prctl(PR_SET_DUMPABLE, 0);
    (void)::mlockall(MCL_CURRENT); // not allowed everywhere; commands may carry secrets
    sigset_t set;
    sigemptyset(&set);
    for (const int number : {SIGTERM, SIGINT, SIGHUP}) {
        sigaddset(&set, number);
    }
    ::sigprocmask(SIG_BLOCK, &set, nullptr);
    const Descriptor signals(::signalfd(-1, &set, SFD_CLOEXEC));

    RawTpm raw(device);
    if (const int status = raw.open()) {
        return status;
    }
    if (const int status = raw.check_version()) {
        return status;
    }
    for (int i = 0;; ++i) {
        const Descriptor proxy(make_device(vtpmx, raw.path()));
        if (proxy.get() < 0) {
            return EX_UNAVAILABLE;
        }
        const int status = serve(raw, proxy.get(), signals.get());
        if (status != EX_TEMPFAIL || i == remake_tries) {
            return status;
        }
        (void)fail(0, "the kernel has given its device up: %s did not answer in time; making another",
                   raw.path().c_str());
        pollfd asked_to_end{signals.get(), POLLIN, 0};
        if (::poll(&asked_to_end, 1, remake_pause_ms) > 0) {
            return EX_OK;
        }
    }
}
