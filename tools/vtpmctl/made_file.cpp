#include "made_file.hpp"

#include "options.hpp"
#include "store/journal.hpp"

#include <array>
#include <cerrno>
#include <climits>
#include <cstdlib>
#include <cstring>
#include <fcntl.h>
#include <fmt/format.h>
#include <memory>
#include <sys/stat.h>
#include <sysexits.h>
#include <unistd.h>
#include <utility>

namespace vtpmctl {

namespace {

/// With its links resolved; as it is if nothing is there.
std::string resolved(const std::string& path) {
    const std::unique_ptr<char, decltype(&std::free)> real(::realpath(path.c_str(), nullptr), &std::free);
    return real ? std::string(real.get()) : path;
}

/// The process that has it open to write, as a vtpmd does; 0 if there is none, -1 if it is not told.
pid_t holder_of(int fd) {
    struct flock whole {};
    whole.l_type = F_WRLCK;
    whole.l_whence = SEEK_SET;
    if (::fcntl(fd, F_OFD_GETLK, &whole) != 0 || whole.l_type == F_UNLCK) {
        return 0;
    }
    // The process' own lock, far beyond any content, says who (util/block_file.cpp).
    struct flock marker {};
    marker.l_type = F_WRLCK;
    marker.l_whence = SEEK_SET;
    marker.l_start = off_t{1} << 62;
    marker.l_len = 1;
    const bool told = ::fcntl(fd, F_OFD_GETLK, &marker) == 0 && marker.l_type != F_UNLCK && marker.l_pid > 0;
    return told ? marker.l_pid : -1;
}

[[noreturn]] void refuse(const MadeFile& file, std::string_view why) {
    fail(EX_CANTCREAT, fmt::format("{}: {}; nothing was changed there", file.path, why));
}

bool same_file(const std::string& path, const struct stat& st) {
    struct stat other {};
    return !path.empty() && ::stat(path.c_str(), &other) == 0 && other.st_dev == st.st_dev && other.st_ino == st.st_ino;
}

class OpenFile {
  public:
    explicit OpenFile(const std::string& path)
        : fd_(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY)) {}
    OpenFile(const OpenFile&) = delete;
    OpenFile& operator=(const OpenFile&) = delete;
    ~OpenFile() { ::close(fd_); }
    [[nodiscard]] int get() const { return fd_; }

  private:
    int fd_;
};

} // namespace

void check_place(const MadeFile& file) {
    struct stat st {};
    if (::stat(file.path.c_str(), &st) != 0) {
        if (::lstat(file.path.c_str(), &st) == 0) {
            refuse(file, "is a link to nothing; name the file itself");
        }
        return; // what else is wrong shows when it is made
    }
    if (!S_ISREG(st.st_mode)) {
        refuse(file, "is no regular file; name another");
    }
    if (same_file(file.live, st)) {
        refuse(file,
               fmt::format("is the manager's store itself ({}), which nothing replaces; name another file", file.live));
    }
    const OpenFile there(file.path);
    vtpmd::Bytes head(made_file_head);
    const ssize_t got = ::pread(there.get(), head.data(), head.size(), 0);
    if (got < 0) {
        refuse(file, fmt::format("is there, and cannot be looked at ({}); name another file", std::strerror(errno)));
    }
    if (const pid_t holder = holder_of(there.get()); holder != 0) {
        refuse(file, fmt::format("is in use by another process{}: a store or a vTPM's image; name another file",
                                 holder > 0 ? fmt::format(" (pid {})", holder) : ""));
    }
    head.resize(static_cast<std::size_t>(got));
    if (st.st_size != 0 && !file.is_one(head, static_cast<std::uint64_t>(st.st_size))) {
        refuse(file, fmt::format("is there, and is not {}: that is not replaced, whatever is said; name another file",
                                 file.what));
    }
    if (!file.replace) {
        refuse(file, file.asked.empty() ? "is there already; name another file" : file.asked);
    }
}

Draft::Draft(MadeFile file)
    : file_(std::move(file))
    , target_(resolved(file_.path))
    , name_(target_ + ".XXXXXX")
    , fd_(::mkostemp(name_.data(), O_CLOEXEC)) { // mode 0600
    if (fd_ < 0) {
        name_.clear();
        fail_with_errno("name a place that can be written");
    }
    if (file_.mode != 0600) {
        const mode_t mask = ::umask(0);
        ::umask(mask);
        (void)::fchmod(fd_, file_.mode & ~mask);
    }
}

Draft::~Draft() {
    ::close(fd_);
    if (!name_.empty()) {
        ::unlink(name_.c_str());
    }
}

void Draft::fail_with_errno(std::string_view next) const {
    fail(EX_CANTCREAT, fmt::format("{}: {}; {}", file_.path, std::strerror(errno), next));
}

void Draft::write(vtpmd::ByteView bytes) {
    while (!bytes.empty()) {
        const ssize_t n = ::write(fd_, bytes.data(), bytes.size());
        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n < 0) {
            fail_with_errno("nothing is kept there; make room, or name another place");
        }
        bytes = bytes.subspan(static_cast<std::size_t>(n));
    }
}

void Draft::become() {
    if (::fsync(fd_) != 0) {
        fail_with_errno("nothing is kept there; make room, or name another place");
    }
    check_place(file_); // somebody may have come first
    // Where nothing was, nothing is gone over; else it is a file that may be.
    const bool made = ::link(name_.c_str(), target_.c_str()) == 0;
    if (made ? ::unlink(name_.c_str()) != 0 : ::rename(name_.c_str(), target_.c_str()) != 0) {
        fail_with_errno("nothing was changed; name another file");
    }
    name_.clear();
    const std::size_t slash = target_.rfind('/');
    const std::string folder = slash == std::string::npos ? "." : target_.substr(0, slash + 1);
    const int fd = ::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    const bool synced = fd >= 0 && ::fsync(fd) == 0;
    ::close(fd);
    if (!synced) {
        fail_with_errno("the file is there, but may not survive a loss of power");
    }
}

void make_file(MadeFile file, vtpmd::ByteView content) {
    check_place(file);
    Draft draft(std::move(file));
    draft.write(content);
    draft.become();
}

} // namespace vtpmctl
