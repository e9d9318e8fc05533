#include "util/ring_restrictions.hpp"

#include <array>
#include <atomic>
#include <cerrno>
#include <liburing.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace vtpmd {

namespace {

std::atomic<bool> all_restricted{true};

// Asio's, of its io_uring services, then block_file_uring's.
constexpr std::array opcodes{
    IORING_OP_NOP,     IORING_OP_POLL_ADD, IORING_OP_ASYNC_CANCEL, IORING_OP_TIMEOUT,     IORING_OP_TIMEOUT_REMOVE,
    IORING_OP_READV,   IORING_OP_WRITEV,   IORING_OP_READ_FIXED,   IORING_OP_WRITE_FIXED, IORING_OP_RECVMSG,
    IORING_OP_SENDMSG, IORING_OP_ACCEPT,   IORING_OP_CONNECT,      IORING_OP_READ,        IORING_OP_WRITE,
    IORING_OP_FSYNC,   IORING_OP_FALLOCATE};
constexpr unsigned flags_of_requests =
    IOSQE_IO_LINK | IOSQE_IO_DRAIN | IOSQE_IO_HARDLINK | IOSQE_ASYNC | IOSQE_CQE_SKIP_SUCCESS;

/// Debian 12's liburing does not export the two calls.
int register_at(int ring, unsigned what, const void* argument, unsigned count) {
    return ::syscall(SYS_io_uring_register, ring, what, argument, count) < 0 ? -errno : 0;
}

int restrict_ring(int ring) {
    std::array<io_uring_restriction, opcodes.size() + 2> rules{};
    for (std::size_t i = 0; i < opcodes.size(); ++i) {
        rules[i].opcode = IORING_RESTRICTION_SQE_OP;
        rules[i].sqe_op = static_cast<__u8>(opcodes[i]);
    }
    rules[opcodes.size()].opcode = IORING_RESTRICTION_SQE_FLAGS_ALLOWED;
    rules[opcodes.size()].sqe_flags = static_cast<__u8>(flags_of_requests);
    rules[opcodes.size() + 1].opcode = IORING_RESTRICTION_REGISTER_OP;
    rules[opcodes.size() + 1].register_op = IORING_REGISTER_EVENTFD;
    if (const int rc = register_at(ring, IORING_REGISTER_RESTRICTIONS, rules.data(), rules.size()); rc < 0) {
        return rc;
    }
    return register_at(ring, IORING_REGISTER_ENABLE_RINGS, nullptr, 0);
}

} // namespace

int restricted_queue_init(unsigned entries, io_uring* ring, unsigned flags) {
    if (::io_uring_queue_init(entries, ring, flags | IORING_SETUP_R_DISABLED) == 0) {
        if (restrict_ring(ring->ring_fd) == 0) {
            return 0;
        }
        ::io_uring_queue_exit(ring);
    }
    const int rc = ::io_uring_queue_init(entries, ring, flags);
    if (rc == 0) {
        all_restricted = false;
    }
    return rc;
}

bool rings_are_restricted() noexcept { return all_restricted; }

} // namespace vtpmd
