// A process that is shut in as an instance is: what it tries is refused, and what an instance does works.
#include "util/sandbox.hpp"

#include "check.hpp"
#include "util/block_file_queue.hpp"
#include "util/fd.hpp"
#include "util/ring_restrictions.hpp"

#include <array>
#include <cerrno>
#include <csignal>
#include <fcntl.h>
#include <functional>
#include <liburing.h>
#include <map>
#include <sched.h>
#include <string>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <thread>
#include <unistd.h>

namespace util_sandbox_test {

using namespace vtpmd;

namespace {

/// Runs in a child that has one thread, and comes back with what it wrote.
std::string in_child(const std::function<std::string()>& run) {
    std::array<int, 2> ends{};
    REQUIRE(::pipe2(ends.data(), O_CLOEXEC) == 0);
    const pid_t child = ::fork();
    if (child == 0) {
        const std::string text = run();
        (void)(::write(ends[1], text.data(), text.size()) < 0);
        ::_exit(0);
    }
    ::close(ends[1]);
    const UniqueFd from(ends[0]);
    std::string text;
    std::array<char, 4096> piece{};
    for (ssize_t n = 0; (n = ::read(from.get(), piece.data(), piece.size())) > 0;) {
        text.append(piece.data(), static_cast<std::size_t>(n));
    }
    int status = -1;
    REQUIRE(::waitpid(child, &status, 0) == child);
    CHECK(status == 0);
    return text;
}

long raw(long number, long a = 0, long b = 0, long c = 0, long d = 0) { return ::syscall(number, a, b, c, d); }

/// One request on a ring that there was before; its result.
int by_ring(io_uring& ring, const std::function<void(io_uring_sqe*)>& prepare) {
    io_uring_sqe* sqe = io_uring_get_sqe(&ring);
    prepare(sqe);
    if (io_uring_submit(&ring) < 0) {
        return -1;
    }
    io_uring_cqe* cqe = nullptr;
    if (io_uring_wait_cqe(&ring, &cqe) < 0) {
        return -1;
    }
    const int result = cqe->res;
    io_uring_cqe_seen(&ring, cqe);
    return result;
}

} // namespace

TEST_SUITE("util") {
    TEST_CASE("sandbox: each forbidden thing is refused: open, connect, exec, ptrace, kill, mount, rings") {
        const std::string did = in_child([] {
            const pid_t other = ::getppid();
            io_uring ring{};
            if (restricted_queue_init(8, &ring, 0) != 0) {
                return std::string("no ring");
            }
            const SandboxReport report = enter_sandbox({});
            std::string out;
            for (const std::string& lack : report.lacks) {
                out += "lacks " + lack + "\n";
            }
            const auto must_fail = [&out](std::string_view what, long result) {
                if (result >= 0) {
                    out += "did " + std::string(what) + "\n";
                }
            };
            must_fail("open", ::open("/etc/passwd", O_RDONLY));
            must_fail("create", ::open("/tmp/vtpmd-sandbox-test", O_WRONLY | O_CREAT, 0600));
            must_fail("TCP", ::socket(AF_INET, SOCK_STREAM, 0));
            must_fail("netlink", ::socket(AF_NETLINK, SOCK_RAW, 0));
            must_fail("exec", ::execl("/bin/true", "true", nullptr));
            must_fail("fork", ::fork());
            must_fail("vfork by clone", raw(SYS_clone, SIGCHLD));
            must_fail("clone3", raw(SYS_clone3));
            must_fail("ptrace", raw(SYS_ptrace, PTRACE_ATTACH, other));
            must_fail("process_vm_readv", raw(SYS_process_vm_readv, other));
            must_fail("kill", ::kill(other, 0));
            must_fail("tgkill of another", raw(SYS_tgkill, other, other, 0));
            must_fail("pidfd_open", raw(SYS_pidfd_open, other));
            must_fail("mount", ::mount("none", "/tmp", "tmpfs", 0, nullptr));
            must_fail("unshare", ::unshare(CLONE_NEWUSER));
            must_fail("setuid", ::setuid(0));
            must_fail("chroot", ::chroot("/"));
            must_fail("chdir", ::chdir("/"));
            must_fail("unlink", ::unlink("/tmp/vtpmd-sandbox-test"));
            must_fail("rename", ::rename("/tmp/a", "/tmp/b"));
            must_fail("bpf", raw(SYS_bpf));
            must_fail("a new ring", raw(SYS_io_uring_setup, 8));
            must_fail("a ring that can do more",
                      raw(SYS_io_uring_register, ring.ring_fd, IORING_REGISTER_ENABLE_RINGS));
            const int all = PROT_READ | PROT_WRITE | PROT_EXEC;
            if (::mmap(nullptr, 4096, all, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) != MAP_FAILED) {
                out += "did memory that is written and run\n";
            }
            void* plain = ::mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
            must_fail("mprotect to run", ::mprotect(plain, 4096, PROT_READ | PROT_EXEC));
            must_fail("open by a ring", by_ring(ring, [](io_uring_sqe* sqe) {
                          io_uring_prep_openat(sqe, AT_FDCWD, "/etc/passwd", O_RDONLY, 0);
                      }));
            must_fail("socket by a ring", by_ring(ring, [](io_uring_sqe* sqe) {
                          io_uring_prep_nop(sqe);
                          sqe->opcode = 45; // IORING_OP_SOCKET
                          sqe->fd = AF_INET;
                          sqe->off = SOCK_STREAM;
                      }));
            must_fail("unlink by a ring", by_ring(ring, [](io_uring_sqe* sqe) {
                          io_uring_prep_unlinkat(sqe, AT_FDCWD, "/tmp/vtpmd-sandbox-test", 0);
                      }));
            return out;
        });
        CHECK(did == "");
    }
    TEST_CASE(
        "sandbox: what an instance does works: threads, memory, its files and sockets, its ring, what libraries do") {
        const std::string failed = in_child([] {
            io_uring ring{};
            const UniqueFd file(::memfd_create("image", MFD_CLOEXEC));
            std::array<int, 2> pair{};
            if (restricted_queue_init(8, &ring, 0) != 0 || ::socketpair(AF_UNIX, SOCK_STREAM, 0, pair.data()) != 0) {
                return std::string("no ring or sockets");
            }
            (void)enter_sandbox({});
            std::string out;
            const auto must = [&out](std::string_view what, bool done) {
                if (!done) {
                    out += "could not: " + std::string(what) + "\n";
                }
            };
            const std::array<char, 3> text{'a', 'b', 'c'};
            must("write by the ring", by_ring(ring, [&](io_uring_sqe* sqe) {
                                          io_uring_prep_write(sqe, file.get(), text.data(), 3, 0);
                                      }) == 3);
            must("sync by the ring",
                 by_ring(ring, [&](io_uring_sqe* sqe) { io_uring_prep_fsync(sqe, file.get(), 0); }) == 0);
            must("pwrite", ::pwrite(file.get(), text.data(), 3, 0) == 3 && ::fdatasync(file.get()) == 0);
            must("send", ::send(pair[0], text.data(), 3, 0) == 3);
            std::array<char, 3> got{};
            must("receive", ::recv(pair[1], got.data(), 3, 0) == 3 && got == text);
            must("a Unix socket", ::socket(AF_UNIX, SOCK_STREAM, 0) >= 0);
            int ran = 0;
            std::thread([&ran] { ran = 1; }).join();
            must("a thread", ran == 1);
            must("memory", std::string(std::size_t{8} << 20U, 'x').size() != 0);
            try {
                throw std::string("an exception");
            } catch (const std::string& s) {
                must("exceptions", s == "an exception");
            }
            return out;
        });
        CHECK(failed == "");
    }
    TEST_CASE("sandbox: a process with threads is not half shut in") {
        const std::string said = in_child([] {
            std::array<int, 2> ends{};
            (void)(::pipe2(ends.data(), O_CLOEXEC) != 0);
            std::thread waits([&ends] {
                char byte = 0;
                (void)(::read(ends[0], &byte, 1) < 0);
            });
            const SandboxReport report = enter_sandbox({});
            (void)(::write(ends[1], "x", 1) < 0);
            waits.join();
            return std::string(report.holds.empty() && report.lacks.size() == 1 ? "said so" : "did something");
        });
        CHECK(said == "said so");
    }
}

} // namespace util_sandbox_test
