#include "util/sandbox.hpp"

#include "util/fd.hpp"
#include "util/named_file.hpp"
#include "util/ring_restrictions.hpp"

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <ctime>
#include <dirent.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <grp.h>
#include <initializer_list>
#include <linux/audit.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <memory>
#include <openssl/crypto.h>
#include <openssl/rand.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#if defined(__SANITIZE_ADDRESS__)
#define VTPMD_LOOKS_FOR_LEAKS
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define VTPMD_LOOKS_FOR_LEAKS
#endif
#endif

#ifdef VTPMD_LOOKS_FOR_LEAKS
namespace {
int entered = 0;
}
/// LeakSanitizer asks at the end; it starts a process that looks at this one's memory, which the sandbox refuses.
extern "C" int __lsan_is_turned_off() { return entered; } // NOLINT
#endif

namespace vtpmd {

namespace {

constexpr rlim_t most_descriptors = 4096; ///< an endpoint has 1024 connections at most

std::string why(int error) { return std::generic_category().message(error); }

// ---- threads

/// The kernel's own for rings, which take their rights from each request, are not counted.
std::size_t threads() {
    const std::unique_ptr<DIR, int (*)(DIR*)> tasks(::opendir("/proc/self/task"), ::closedir);
    std::size_t n = 0;
    while (const dirent* entry = tasks ? ::readdir(tasks.get()) : nullptr) {
        if (entry->d_name[0] == '.') {
            continue;
        }
        const std::string path = fmt::format("/proc/self/task/{}/comm", entry->d_name);
        const UniqueFd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
        std::array<char, 16> name{};
        const ssize_t got = fd ? ::read(fd.get(), name.data(), name.size()) : 0;
        n += got > 4 && std::string_view(name.data(), 4) == "iou-" ? 0 : 1;
    }
    return n;
}

// ---- user, capabilities

int take_user(uid_t user) {
    if (::setgroups(0, nullptr) != 0 || ::setresgid(user, user, user) != 0 || ::setresuid(user, user, user) != 0) {
        return errno;
    }
    return 0;
}

/// What a program that is run could have at most. Who may not take it away runs none, for want of privileges to be had.
void empty_bounding_set() {
    for (unsigned long c = 0; c <= CAP_LAST_CAP; ++c) {
        (void)::prctl(PR_CAPBSET_DROP, c, 0, 0, 0);
    }
}

int drop_capabilities() {
    (void)::prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0);
    __user_cap_header_struct header{.version = _LINUX_CAPABILITY_VERSION_3, .pid = 0};
    std::array<__user_cap_data_struct, 2> none{};
    return ::syscall(SYS_capset, &header, none.data()) == 0 ? 0 : errno;
}

// ---- Landlock. The C library has no calls for it, and old headers not all of it.

struct Ruleset {
    std::uint64_t files;
    std::uint64_t network;
    std::uint64_t scoped;
};
constexpr unsigned make_ruleset = 444; // the same on all architectures
constexpr unsigned restrict_self = 446;
constexpr unsigned ask_version = 1;
constexpr std::uint64_t files_1 = (1U << 13U) - 1; // execute ... make_sym
constexpr std::uint64_t refer = 1U << 13U;         // 2
constexpr std::uint64_t truncate = 1U << 14U;      // 3
constexpr std::uint64_t bind_and_connect_tcp = 3;  // 4
constexpr std::uint64_t device_ioctl = 1U << 15U;  // 5
constexpr std::uint64_t abstract_and_signals = 3;  // 6

int landlock() {
    const long version = ::syscall(make_ruleset, nullptr, 0, ask_version);
    if (version < 0) {
        return errno;
    }
    Ruleset rules{.files = files_1, .network = 0, .scoped = 0};
    rules.files |= version >= 2 ? refer : 0;
    rules.files |= version >= 3 ? truncate : 0;
    rules.files |= version >= 5 ? device_ioctl : 0;
    rules.network = version >= 4 ? bind_and_connect_tcp : 0;
    rules.scoped = version >= 6 ? abstract_and_signals : 0;
    const std::size_t size = version >= 6 ? sizeof rules : version >= 4 ? 2 * sizeof rules.files : sizeof rules.files;
    const UniqueFd fd(static_cast<int>(::syscall(make_ruleset, &rules, size, 0)));
    if (!fd || ::syscall(restrict_self, fd.get(), 0) != 0) {
        return errno;
    }
    return 0;
}

// ---- seccomp

#if defined(__x86_64__)
constexpr std::uint32_t architecture = AUDIT_ARCH_X86_64;
#elif defined(__aarch64__)
constexpr std::uint32_t architecture = AUDIT_ARCH_AARCH64;
#else
constexpr std::uint32_t architecture = 0;
#endif

/// What an instance calls once it serves, as it was traced (21 kinds in a day of a guest's life), and what the C and
/// C++ libraries, allocation failure, and either event loop add.
constexpr auto allowed_calls = std::to_array<unsigned>({
    SYS_io_uring_enter,
    SYS_read,
    SYS_write,
    SYS_readv,
    SYS_writev,
    SYS_pread64,
    SYS_pwrite64,
    SYS_preadv,
    SYS_pwritev,
    SYS_sendto,
    SYS_sendmsg,
    SYS_recvfrom,
    SYS_recvmsg,
    SYS_accept,
    SYS_accept4,
    SYS_connect,
    SYS_shutdown,
    SYS_getsockopt,
    SYS_setsockopt,
    SYS_getsockname,
    SYS_getpeername,
    SYS_close,
    SYS_fcntl,
    SYS_lseek,
    SYS_fstat,
    SYS_newfstatat,
    SYS_statx,
    SYS_fsync,
    SYS_fdatasync,
    SYS_fallocate,
    SYS_ftruncate,
    SYS_ppoll,
    SYS_pselect6,
    SYS_epoll_ctl,
    SYS_epoll_pwait,
    SYS_epoll_create1,
    SYS_eventfd2,
    SYS_timerfd_create,
    SYS_timerfd_settime,
    SYS_timerfd_gettime,
    SYS_pipe2,
    SYS_brk,
    SYS_munmap,
    SYS_mremap,
    SYS_madvise,
    SYS_mlock,
    SYS_munlock,
    SYS_futex,
    SYS_set_robust_list,
    SYS_get_robust_list,
    SYS_rseq,
    SYS_membarrier,
    SYS_sched_yield,
    SYS_sched_getaffinity,
    SYS_getpid,
    SYS_gettid,
    SYS_getppid,
    SYS_getuid,
    SYS_geteuid,
    SYS_getgid,
    SYS_getegid,
    SYS_getrandom,
    SYS_clock_gettime,
    SYS_clock_getres,
    SYS_clock_nanosleep,
    SYS_nanosleep,
    SYS_gettimeofday,
    SYS_times,
    SYS_getrusage,
    SYS_sysinfo,
    SYS_uname,
    SYS_rt_sigaction,
    SYS_rt_sigprocmask,
    SYS_rt_sigreturn,
    SYS_rt_sigtimedwait,
    SYS_sigaltstack,
    SYS_restart_syscall,
    SYS_exit,
    SYS_exit_group,
    SYS_umask,
#ifdef __x86_64__
    SYS_pipe, // sanitizers ask with it whether memory can be read
    SYS_poll,
    SYS_select,
    SYS_epoll_wait,
    SYS_time,
    SYS_arch_prctl,
#endif
});
constexpr auto allowed_ioctls =
    std::to_array<unsigned>({FIONBIO, FIONREAD, 0x5401 /* TCGETS */, 0x80081272 /* BLKGETSIZE64 */});

/// A program for the kernel's filter machine (seccomp(2), bpf).
class Filter {
  public:
    void load(std::size_t offset) { add(BPF_LD | BPF_W | BPF_ABS, static_cast<std::uint32_t>(offset)); }
    /// Of a system call's argument, its lower half: what is looked at here has no more.
    void load_argument(unsigned n) { load(offsetof(seccomp_data, args) + std::size_t{8} * n); }
    void answer(std::uint32_t what) { add(BPF_RET | BPF_K, what); }
    /// `then` instructions follow for this case only.
    void unless_equal_skip(std::uint32_t value, std::uint8_t then) { jump(BPF_JEQ, value, 0, then); }
    void unless_any_bit_skip(std::uint32_t bits, std::uint8_t then) { jump(BPF_JSET, bits, 0, then); }
    void allow_if_equal(std::uint32_t value) {
        unless_equal_skip(value, 1);
        answer(SECCOMP_RET_ALLOW);
    }
    [[nodiscard]] int install() {
        sock_fprog program{.len = static_cast<unsigned short>(code_.size()), .filter = code_.data()};
        return ::prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program, 0, 0) == 0 ? 0 : errno;
    }

  private:
    void add(unsigned code, std::uint32_t k) { code_.push_back({static_cast<__u16>(code), 0, 0, k}); }
    void jump(unsigned how, std::uint32_t k, std::uint8_t yes, std::uint8_t no) {
        code_.push_back({static_cast<__u16>(BPF_JMP | how | BPF_K), yes, no, k});
    }
    std::vector<sock_filter> code_;
};

constexpr std::uint32_t refuse(int error) {
    return SECCOMP_RET_ERRNO | (static_cast<std::uint32_t>(error) & SECCOMP_RET_DATA);
}

int seccomp() {
    if (architecture == 0) {
        return ENOSYS;
    }
    Filter f;
    f.load(offsetof(seccomp_data, arch));
    f.unless_equal_skip(architecture, 1);
    f.load(offsetof(seccomp_data, nr)); // else the number, which is then the architecture's, and of no call
    for (const unsigned call : allowed_calls) {
        f.allow_if_equal(call);
    }
    // A Unix socket to come back to the manager with; nothing else.
    f.unless_equal_skip(SYS_socket, 4);
    f.load_argument(0);
    f.allow_if_equal(AF_UNIX);
    f.answer(refuse(EAFNOSUPPORT));
    // Memory, but none that is run.
    for (const unsigned call : {SYS_mmap, SYS_mprotect}) {
        f.unless_equal_skip(call, 4);
        f.load_argument(2);
        f.unless_any_bit_skip(PROT_EXEC, 1);
        f.answer(refuse(EPERM));
        f.answer(SECCOMP_RET_ALLOW);
    }
    // Threads, but no processes. clone3() has its flags where they cannot be looked at; the C library then calls
    // clone().
    f.unless_equal_skip(SYS_clone3, 1);
    f.answer(refuse(ENOSYS));
    f.unless_equal_skip(SYS_clone, 4);
    f.load_argument(0);
    f.unless_any_bit_skip(CLONE_THREAD, 1);
    f.answer(SECCOMP_RET_ALLOW);
    f.answer(refuse(EPERM));
    f.unless_equal_skip(SYS_tgkill, 4); // abort()
    f.load_argument(0);
    f.allow_if_equal(static_cast<std::uint32_t>(::getpid()));
    f.answer(refuse(EPERM));
    f.unless_equal_skip(SYS_ioctl, static_cast<std::uint8_t>(2 + 2 * allowed_ioctls.size()));
    f.load_argument(1);
    for (const unsigned request : allowed_ioctls) {
        f.allow_if_equal(request);
    }
    f.answer(refuse(ENOTTY));
    f.answer(refuse(EPERM));
    return f.install();
}

/// What libraries would open when they are first used.
void warm_up() {
    ::tzset();
    (void)::OPENSSL_init_crypto(OPENSSL_INIT_LOAD_CONFIG | OPENSSL_INIT_ADD_ALL_CIPHERS | OPENSSL_INIT_ADD_ALL_DIGESTS |
                                    OPENSSL_INIT_LOAD_CRYPTO_STRINGS,
                                nullptr);
    std::array<unsigned char, 16> byte{};
    (void)::RAND_bytes(byte.data(), byte.size());
    (void)::RAND_priv_bytes(byte.data(), byte.size());
}

int limit_resources() {
    const rlimit files{most_descriptors, most_descriptors};
    const rlimit none{0, 0};
    return ::setrlimit(RLIMIT_NOFILE, &files) == 0 && ::setrlimit(RLIMIT_CORE, &none) == 0 ? 0 : errno;
}

} // namespace

Result<SandboxMode> parse_sandbox_mode(std::string_view text) {
    if (text == "auto") {
        return SandboxMode::automatic;
    }
    if (text == "on") {
        return SandboxMode::on;
    }
    if (text == "off") {
        return SandboxMode::off;
    }
    return make_error(Errc::usage, "--sandbox={}: on, off or auto is needed", text);
}

SandboxReport enter_sandbox(const SandboxPlan& plan) {
    SandboxReport report;
    const auto note = [&report](std::string layer, int error) {
        if (error == 0) {
            report.holds.push_back(std::move(layer));
        } else {
            report.lacks.push_back(fmt::format("{} ({})", layer, why(error)));
        }
        return error == 0;
    };
    if (const std::size_t n = threads(); n != 1) {
        report.lacks.push_back(fmt::format("all of it (the process has {} threads already)", n));
        return report;
    }
    warm_up();
#ifdef VTPMD_LOOKS_FOR_LEAKS
    entered = 1;
#endif
    if (plan.root_here && note("a root directory of its own", ::chroot(".") == 0 ? 0 : errno)) {
        give_up_paths();
    }
    empty_bounding_set(); // which takes a capability that goes with the user
    if (plan.user) {
        note(fmt::format("user {}", *plan.user), take_user(*plan.user));
    }
    note("no capabilities", drop_capabilities());
    note("limits", limit_resources());
    forbid_dumping(); // a change of user may have changed that
    if (!note("no new privileges", ::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 ? 0 : errno)) {
        return report;
    }
    note("Landlock", landlock());
    if (rings_are_restricted()) {
        report.holds.emplace_back("restricted rings");
    } else {
        report.lacks.emplace_back("restricted rings (the kernel has no restrictions for io_uring)");
    }
    note("seccomp", seccomp());
    return report;
}

void forbid_dumping() noexcept { (void)::prctl(PR_SET_DUMPABLE, 0, 0, 0, 0); }

} // namespace vtpmd
