#include "backup.hpp"

#include <array>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <sysexits.h>
#include <unistd.h>
#include <utility>

namespace vtpmctl {

namespace {

[[noreturn]] void fail_with_errno(const std::string& path, std::string_view next) {
    fail(EX_CANTCREAT, fmt::format("{}: {}; {}", path, std::strerror(errno), next));
}

/// Beside the file that it becomes; gone again unless it becomes that.
class Draft {
  public:
    explicit Draft(std::string path)
        : path_(std::move(path))
        , name_(path_ + ".XXXXXX")
        , fd_(::mkostemp(name_.data(), O_CLOEXEC)) { // mode 0600
        if (fd_ < 0) {
            fail_with_errno(path_, "name a place that can be written");
        }
    }
    Draft(const Draft&) = delete;
    Draft& operator=(const Draft&) = delete;
    ~Draft() {
        ::close(fd_);
        if (!name_.empty()) {
            ::unlink(name_.c_str());
        }
    }

    void write(std::string_view bytes) {
        while (!bytes.empty()) {
            const ssize_t n = ::write(fd_, bytes.data(), bytes.size());
            if (n < 0 && errno == EINTR) {
                continue;
            }
            if (n < 0) {
                fail_with_errno(path_, "nothing is kept there; make room, or name another place");
            }
            bytes.remove_prefix(static_cast<std::size_t>(n));
        }
    }

    /// Durable on return.
    void become(bool replace) {
        if (::fsync(fd_) != 0) {
            fail_with_errno(path_, "nothing is kept there; make room, or name another place");
        }
        const bool there = replace ? ::rename(name_.c_str(), path_.c_str()) == 0
                                   : ::link(name_.c_str(), path_.c_str()) == 0 && ::unlink(name_.c_str()) == 0;
        if (!there) {
            fail_with_errno(path_, "nothing was changed; name another file, or give --yes to replace it");
        }
        name_.clear();
        const std::size_t slash = path_.rfind('/');
        const std::string folder = slash == std::string::npos ? "." : path_.substr(0, slash + 1);
        const int fd = ::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        const bool synced = fd >= 0 && ::fsync(fd) == 0;
        ::close(fd);
        if (!synced) {
            fail_with_errno(folder, "the backup is there, but may not survive a loss of power");
        }
    }

  private:
    const std::string path_;
    std::string name_; ///< empty once it is the file
    int fd_;
};

/// One line, over and over, on a terminal only.
class Bar {
  public:
    Bar() = default;
    Bar(const Bar&) = delete;
    Bar& operator=(const Bar&) = delete;
    ~Bar() {
        if (shown_ >= 0) {
            std::fputc('\n', stderr);
        }
    }
    void show(std::uint64_t done, std::uint64_t total) {
        if (::isatty(STDERR_FILENO) == 0 || total == 0) {
            return;
        }
        const int percent = static_cast<int>(done * 100 / total);
        if (percent == shown_) {
            return;
        }
        shown_ = percent;
        constexpr double mebi = 1024.0 * 1024.0;
        const std::string bar(static_cast<std::size_t>(percent) * 40 / 100, '#');
        const std::string line = fmt::format("\r[{:40}] {:3} %  {:.1f} of {:.1f} MiB", bar, percent,
                                             static_cast<double>(done) / mebi, static_cast<double>(total) / mebi);
        std::fputs(line.c_str(), stderr);
    }

  private:
    int shown_ = -1;
};

} // namespace

std::uint64_t backup(const Options& o, const std::string& path, const Fetch& fetch) {
    if (struct stat there{}; !o.has("yes") && ::lstat(path.c_str(), &there) == 0) {
        fail(EX_CANTCREAT, fmt::format("{}: is there already; name another file, or give --yes to replace it", path));
    }
    Draft draft(path);
    std::uint64_t done = 0;
    {
        Bar bar;
        fetch([&](std::string_view piece, std::uint64_t total) {
            draft.write(piece);
            done += piece.size();
            bar.show(done, total);
        });
    }
    draft.become(o.has("yes"));
    return done;
}

} // namespace vtpmctl
