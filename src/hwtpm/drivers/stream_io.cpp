#include "hwtpm/drivers/stream_io.hpp"

#include "hwtpm/device.hpp"
#include "util/wire.hpp"

#include <algorithm>
#include <cerrno>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

namespace vtpmd::hwtpm {

Result<void> wait_ready(int fd, short events, Deadline deadline, std::string_view what) {
    for (;;) {
        auto left = std::chrono::ceil<std::chrono::milliseconds>(deadline - std::chrono::steady_clock::now()).count();
        if (left <= 0) {
            return make_error(Errc::timed_out, "{}: no answer in time", what);
        }
        pollfd p{.fd = fd, .events = events, .revents = 0};
        int n = ::poll(&p, 1, static_cast<int>(std::min<long long>(left, 60'000)));
        if (n > 0) {
            return {};
        }
        if (n < 0 && errno != EINTR) {
            return errno_error(errno, what);
        }
    }
}

Result<void> write_all(int fd, ByteView data, Deadline deadline, std::string_view what) {
    while (!data.empty()) {
        ssize_t n = ::send(fd, data.data(), data.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
        if (n > 0) {
            data = data.subspan(static_cast<std::size_t>(n));
        } else if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) {
            if (auto r = wait_ready(fd, POLLOUT, deadline, what); !r) {
                return r;
            }
        } else if (n < 0 && errno != EINTR) {
            return errno_error(errno, what);
        }
    }
    return {};
}

Result<void> read_all(int fd, MutByteView into, Deadline deadline, std::string_view what) {
    while (!into.empty()) {
        ssize_t n = ::recv(fd, into.data(), into.size(), MSG_DONTWAIT);
        if (n > 0) {
            into = into.subspan(static_cast<std::size_t>(n));
        } else if (n == 0) {
            return make_error(Errc::closed, "{}: the TPM closed the connection", what);
        } else if (errno == EAGAIN || errno == EWOULDBLOCK) {
            if (auto r = wait_ready(fd, POLLIN, deadline, what); !r) {
                return r;
            }
        } else if (errno != EINTR) {
            return errno_error(errno, what);
        }
    }
    return {};
}

Result<Bytes> read_response(int fd, Deadline deadline, std::string_view what) {
    Bytes out(tpm_header_size);
    if (auto r = read_all(fd, out, deadline, what); !r) {
        return r.error();
    }
    WireReader header(out);
    header.skip(2);
    std::uint32_t size = header.be32();
    if (size < tpm_header_size || size > tpm_buffer_limit) {
        return make_error(Errc::protocol, "{}: a response that says it has {} bytes (10 to {} are possible)", what,
                          size, tpm_buffer_limit);
    }
    out.resize(size);
    if (auto r = read_all(fd, MutByteView(out).subspan(tpm_header_size), deadline, what); !r) {
        return r.error();
    }
    return out;
}

bool readable_now(int fd) noexcept {
    pollfd p{.fd = fd, .events = POLLIN, .revents = 0};
    return ::poll(&p, 1, 0) > 0;
}

} // namespace vtpmd::hwtpm
