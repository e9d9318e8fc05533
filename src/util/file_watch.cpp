#include "util/file_watch.hpp"

#include "util/fd.hpp"

#include <algorithm>
#include <array>
#include <cerrno>
#include <fcntl.h>
#include <filesystem>
#include <sys/stat.h>
#include <unistd.h>
#include <utility>

namespace vtpmd {

namespace {

constexpr unsigned rescue_names = 10;
constexpr std::size_t chunk_size = std::size_t{256} * 1024;

/// As much as there is, without a hole being filled; durable.
bool copy_all(int from, int to) {
    struct stat st {};
    if (::fstat(from, &st) != 0 || ::ftruncate(to, st.st_size) != 0) {
        return false;
    }
    Bytes chunk(chunk_size);
    for (off_t at = 0; at < st.st_size;) {
        const auto want = static_cast<std::size_t>(std::min<off_t>(static_cast<off_t>(chunk.size()), st.st_size - at));
        const ssize_t n = ::pread(from, chunk.data(), want, at);
        if (n <= 0 && errno == EINTR) {
            continue;
        }
        if (n <= 0) {
            return false;
        }
        const ByteView got = ByteView(chunk).first(static_cast<std::size_t>(n));
        const bool hole = std::ranges::all_of(got, [](std::byte b) { return b == std::byte{0}; });
        if (!hole && ::pwrite(to, got.data(), got.size(), at) != n) {
            return false;
        }
        at += n;
    }
    return ::fsync(to) == 0;
}

/// Another process has copied it there already.
bool holds_the_same(int fd, const std::string& name) {
    const UniqueFd other(::open(name.c_str(), O_RDONLY | O_NONBLOCK | O_CLOEXEC | O_NOFOLLOW));
    struct stat mine {};
    struct stat its {};
    if (!other || ::fstat(fd, &mine) != 0 || ::fstat(other.get(), &its) != 0 || !S_ISREG(its.st_mode) ||
        mine.st_size != its.st_size) {
        return false;
    }
    Bytes one(chunk_size);
    Bytes two(chunk_size);
    for (off_t at = 0; at < mine.st_size;) {
        const ssize_t n = ::pread(fd, one.data(), one.size(), at);
        if (n <= 0 || ::pread(other.get(), two.data(), static_cast<std::size_t>(n), at) != n ||
            !std::equal(one.begin(), one.begin() + n, two.begin())) {
            return false;
        }
        at += n;
    }
    return true;
}

} // namespace

bool pulled_away(const Error& e) noexcept { return e.code == Errc::io && e.detail == ESTALE; }

FileWatch::FileWatch(int fd, const std::string& path)
    : fd_(fd)
    , there_(path)
    , path_(there_.path()) {
    const auto mine = facts_of(fd_);
    const auto there = there_.look();
    has_path_ = mine && there && mine->place == there->place;
    place_ = mine ? mine->place : FilePlace{};
}

Result<void> FileWatch::may_write() {
    if (away_) {
        if (auto back = in_place(0); !back) {
            return back;
        }
        away_ = false;
    }
    look_before_write();
    ++writing_;
    return {};
}

/// Whether somebody else has written since we did last. (The file's times would tell too, but see facts_of().)
void FileWatch::look_before_write() {
    if (writing_ == 0) {
        overwritten_ = overwritten_ || !holds_last();
    }
}

bool FileWatch::holds_last() const {
    std::array<std::byte, tail_size> now{};
    if (tail_.empty()) {
        return true;
    }
    const ssize_t n = ::pread(fd_, now.data(), tail_.size(), static_cast<off_t>(tail_at_));
    if (n < 0) {
        return true; // a disk that cannot be read is none of it
    }
    return n == static_cast<ssize_t>(tail_.size()) && std::ranges::equal(ByteView(now).first(tail_.size()), tail_);
}

void FileWatch::grew() {
    if (writing_ > 0) {
        --writing_;
    }
}

void FileWatch::failed() {
    grew();
    tail_.clear();
    tail_is_ours_ = true;
}

void FileWatch::wrote(std::uint64_t offset, ByteView data) {
    grew();
    const ByteView tail = data.last(std::min(data.size(), tail_size));
    tail_at_ = offset + data.size() - tail.size();
    tail_.assign(tail.begin(), tail.end());
    tail_is_ours_ = true;
}

void FileWatch::read(std::uint64_t offset, ByteView data) {
    if (tail_is_ours_) {
        return;
    }
    const ByteView tail = data.last(std::min(data.size(), tail_size));
    tail_at_ = offset + data.size() - tail.size();
    tail_.assign(tail.begin(), tail.end());
}

Result<void> FileWatch::check(std::uint64_t size) {
    if (auto there = in_place(size); !there) {
        away_ = true;
        return there;
    }
    if (overwritten_) {
        overwritten_ = false;
        return lost(Loss::changed, "another program has written into it");
    }
    return {};
}

Result<void> FileWatch::in_place(std::uint64_t size) const {
    if (has_path_) {
        if (const auto there = there_.look(); there && there->place == place_ && there->size >= size) {
            return {};
        }
    }
    return why_not_in_place(size);
}

Result<void> FileWatch::why_not_in_place(std::uint64_t size) const {
    const auto mine = facts_of(fd_);
    if (!mine) {
        return errno_error(errno, path_ + ": statx");
    }
    if (mine->links == 0) {
        return lost(Loss::nameless, "it was deleted, or another file was renamed over it");
    }
    if (has_path_) {
        const auto there = there_.look();
        if (!there) {
            // Who has given up its rights since it opened the file cannot look any more.
            if (errno != EACCES && errno != EPERM) {
                return lost(Loss::elsewhere, "it is not at its path any more: it was renamed, or its directory was");
            }
        } else if (there->place != place_) {
            return lost(Loss::elsewhere,
                        "another file is at its path: it was renamed, or something was mounted over it");
        }
    }
    if (mine->size < size) {
        return lost(Loss::changed, "another program has cut it short");
    }
    return {};
}

Error FileWatch::lost(Loss kind, std::string_view what) const {
    const std::string live = fmt::format("/proc/{}/fd/{}", ::getpid(), fd_);
    Error e = make_error(Errc::io, "{}: {}, while it is open (inode {}). ", path_, what, place_.inode);
    e.detail = ESTALE;
    if (kind == Loss::changed) {
        e.message +=
            "What this process has in memory is newer: end that program, and let this one write all of it again "
            "at the next change, before anything ends it";
        return e;
    }
    e.message += "What is written there now would be lost, so nothing is acknowledged. ";
    if (kind == Loss::elsewhere) {
        e.message += fmt::format("Put it back to go on; it is {} as long as this process lives", live);
        return e;
    }
    const std::string copy = rescue();
    e.message += copy.empty()
                     ? fmt::format("All that was acknowledged is in {0} as long as this process lives: copy it "
                                   "first, if nobody has yet (cp {0} {1}.rescued)",
                                   live, path_)
                     : fmt::format("All that was acknowledged is in {}", copy);
    e.message += fmt::format("; then end this process, put the copy in the place of {}, and start again", path_);
    return e;
}

/// Copies what has no name any more; where to, or nothing.
std::string FileWatch::rescue() const {
    if (!std::exchange(rescue_tried_, true)) {
        rescued_ = rescue_copy(fd_, path_);
    }
    return rescued_;
}

std::string rescue_copy(int fd, const std::string& path) {
    for (unsigned n = 0; n < rescue_names; ++n) {
        std::string name = path + (n == 0 ? ".rescued" : fmt::format(".rescued.{}", n));
        const UniqueFd copy(::open(name.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600));
        if (!copy && errno == EEXIST) {
            if (holds_the_same(fd, name)) {
                return name;
            }
            continue;
        }
        if (!copy) {
            return {};
        }
        if (!copy_all(fd, copy.get())) {
            (void)::unlink(name.c_str());
            return {};
        }
        const std::string parent = std::filesystem::path(path).parent_path().string();
        const UniqueFd directory(::open(parent.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
        (void)(directory && ::fsync(directory.get()) == 0);
        return name;
    }
    return {};
}

} // namespace vtpmd
