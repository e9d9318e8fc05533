#include "guest/stream.hpp"

#include "util/deadline.hpp"
#include "util/secret_bytes.hpp"

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <sys/socket.h>

namespace vtpmd::guest {

namespace {

/// A TPM command fits; a larger request makes the buffer grow to its size, within the limits of its measure.
constexpr std::size_t usual_request = 4096;

Error stream_error(const error_code& ec, std::string_view what) {
    if (ec == asio::error::operation_aborted) {
        return make_error(Errc::canceled, "{} was cancelled", what);
    }
    if (ec == asio::error::eof) {
        return make_error(Errc::closed, "the peer closed the connection");
    }
    return errno_error(ec.value(), what);
}

} // namespace

Task<Result<Bytes>> GuestStream::receive() {
    if (buffer_.empty()) {
        buffer_.resize(usual_request);
    }
    if (filled_ == 0) { // between requests a peer may be silent for ever
        if (finishing_) {
            co_return make_error(Errc::closed, "the connection is being finished");
        }
        auto begun = co_await fill(1);
        if (!begun) {
            co_return std::move(begun).error();
        }
    }
    auto wanted = measure();
    if (!wanted) {
        co_return std::move(wanted).error();
    }
    if (*wanted <= filled_) {
        co_return take(*wanted);
    }
    co_return co_await with_deadline(clock_, stall_limit, "the rest of a request", rest(*wanted));
}

/// Measures until the answer does not change: the whole size, or more bytes than there are.
Result<std::size_t> GuestStream::measure() {
    std::size_t known = 0;
    for (;;) {
        auto wanted = measure_(pending().first(known));
        if (!wanted || *wanted > filled_ || *wanted == known) {
            return wanted;
        }
        known = *wanted;
    }
}

Task<Result<Bytes>> GuestStream::rest(std::size_t wanted) {
    for (;;) {
        auto more = co_await fill(wanted);
        if (!more) {
            co_return std::move(more).error();
        }
        auto now = measure();
        if (!now) {
            co_return std::move(now).error();
        }
        if (*now <= filled_) {
            co_return take(*now);
        }
        wanted = *now;
    }
}

Task<Result<Bytes>> GuestStream::receive_more(std::size_t size) {
    if (size <= filled_) {
        co_return take(size);
    }
    co_return co_await with_deadline(clock_, stall_limit, "the rest of a request", exactly(size));
}

Task<Result<Bytes>> GuestStream::exactly(std::size_t wanted) {
    while (filled_ < wanted) {
        auto more = co_await fill(wanted);
        if (!more) {
            co_return std::move(more).error();
        }
    }
    co_return take(wanted);
}

/// Asio has no recvmsg(): wait for the socket, then take what there is.
Task<Result<void>> GuestStream::fill_with_descriptors() {
    for (;;) {
        auto [ec] = co_await socket_.async_wait(asio::socket_base::wait_read, use_tuple);
        if (ec) {
            co_return stream_error(ec, "receiving");
        }
        iovec part{buffer_.data() + filled_, buffer_.size() - filled_};
        // Room for more than the one that is wanted, so that none of a peer's is lost track of.
        alignas(cmsghdr) std::array<char, CMSG_SPACE(8 * sizeof(int))> control{};
        msghdr message{};
        message.msg_iov = &part;
        message.msg_iovlen = 1;
        message.msg_control = control.data();
        message.msg_controllen = control.size();
        const ssize_t n = ::recvmsg(socket_.native_handle(), &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
        if (n < 0 && (errno == EAGAIN || errno == EINTR)) {
            continue;
        }
        if (n < 0) {
            co_return errno_error(errno, "receiving");
        }
        for (cmsghdr* c = CMSG_FIRSTHDR(&message); c != nullptr; c = CMSG_NXTHDR(&message, c)) {
            if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS) {
                continue;
            }
            const std::size_t bytes = c->cmsg_len - CMSG_LEN(0);
            for (std::size_t at = 0; at + sizeof(int) <= bytes; at += sizeof(int)) {
                int fd = -1;
                std::memcpy(&fd, CMSG_DATA(c) + at, sizeof fd);
                descriptor_.reset(fd);
            }
        }
        if (n == 0) {
            if (filled_ != 0) {
                co_return make_error(Errc::protocol, "the connection ended inside a request");
            }
            co_return make_error(Errc::closed, "the peer closed the connection");
        }
        filled_ += static_cast<std::size_t>(n);
        co_return Result<void>{};
    }
}

Task<Result<void>> GuestStream::fill(std::size_t wanted) {
    if (buffer_.size() < wanted) {
        // Not at once to what a length field claims: as it comes, at most double what has come.
        if (auto room = make_room(std::min(wanted, std::max(usual_request, 2 * buffer_.size()))); !room) {
            co_return room;
        }
    }
    if (descriptors_ == Descriptors::taken) {
        co_return co_await fill_with_descriptors();
    }
    auto [ec, n] =
        co_await socket_.async_read_some(asio::buffer(buffer_.data() + filled_, buffer_.size() - filled_), use_tuple);
    if (ec) {
        if (ec == asio::error::eof && filled_ != 0) {
            co_return make_error(Errc::protocol, "the connection ended inside a request");
        }
        co_return stream_error(ec, "receiving");
    }
    filled_ += n;
    co_return Result<void>{};
}

Result<void> GuestStream::make_room(std::size_t wanted) {
    const std::size_t more = wanted - buffer_.size();
    if (room_ != nullptr) {
        if (more > room_->left) {
            return make_error(Errc::too_large,
                              "too many long requests at once: the bytes of those that are not whole are bounded");
        }
        room_->left -= more;
        held_ += more;
    }
    Bytes larger(wanted);
    std::copy_n(buffer_.begin(), filled_, larger.begin());
    buffer_.swap(larger);
    cleanse(larger);
    return {};
}

void GuestStream::leave_room() noexcept {
    if (room_ != nullptr) {
        room_->left += std::exchange(held_, 0);
    }
}

Bytes GuestStream::take(std::size_t size) {
    spoke_ = true;
    Bytes request = to_bytes(pending().first(size));
    const MutByteView all(buffer_);
    std::copy(buffer_.begin() + static_cast<std::ptrdiff_t>(size),
              buffer_.begin() + static_cast<std::ptrdiff_t>(filled_), buffer_.begin());
    cleanse(all.subspan(filled_ - size, size)); // authorisation values, state blobs
    filled_ -= size;
    if (filled_ == 0 && buffer_.size() > usual_request) {
        Bytes small(usual_request);
        buffer_.swap(small);
        leave_room();
    }
    return request;
}

Task<Result<void>> GuestStream::send(ByteView answer) {
    const ssize_t n = ::send(socket_.native_handle(), answer.data(), answer.size(), MSG_DONTWAIT | MSG_NOSIGNAL);
    if (n == static_cast<ssize_t>(answer.size())) {
        co_return Result<void>{};
    }
    if (n < 0 && errno != EAGAIN && errno != EINTR) {
        co_return errno_error(errno, "sending");
    }
    co_return co_await with_deadline(clock_, stall_limit, "taking an answer",
                                     send_rest(answer.subspan(n < 0 ? 0 : static_cast<std::size_t>(n))));
}

Task<Result<void>> GuestStream::send_rest(ByteView data) {
    auto [ec, n] = co_await asio::async_write(socket_, asio::buffer(data.data(), data.size()), use_tuple);
    if (ec) {
        co_return stream_error(ec, "sending");
    }
    co_return Result<void>{};
}

std::string GuestStream::peer() {
    ucred who{};
    socklen_t size = sizeof who;
    if (::getsockopt(socket_.native_handle(), SOL_SOCKET, SO_PEERCRED, &who, &size) != 0 || who.pid == 0) {
        return "a peer that the kernel does not name";
    }
    return fmt::format("pid {} uid {}", who.pid, who.uid);
}

void GuestStream::finish() noexcept {
    finishing_ = true;
    (void)::shutdown(socket_.native_handle(), SHUT_RD);
}

} // namespace vtpmd::guest
