#include "manager/instances/image_keeper.hpp"

#include "util/file_watch.hpp"

#include <array>
#include <cerrno>
#include <cstddef>
#include <cstring>
#include <fcntl.h>
#include <sys/inotify.h>
#include <sys/stat.h>
#include <unistd.h>

namespace vtpmd::manager {

namespace {

void tell(int inotify, const std::string& path, const std::function<void(std::string_view)>& changed, const Log& log) {
    alignas(inotify_event) std::array<char, 4096> buffer{};
    const ssize_t got = ::read(inotify, buffer.data(), buffer.size());
    for (std::size_t at = 0; got > 0 && at + sizeof(inotify_event) <= static_cast<std::size_t>(got);) {
        inotify_event event{};
        std::memcpy(&event, buffer.data() + at, sizeof event);
        at += sizeof event;
        if ((event.mask & (IN_MOVE_SELF | IN_DELETE_SELF)) != 0) {
            log.error("{}: this folder was renamed or deleted, while instances have images in it: put it back", path);
        } else if (event.len != 0) {
            changed(std::string_view(buffer.data() + at));
        }
        at += event.len;
    }
}

} // namespace

void ImageKeeper::look() {
    if (away_) {
        return;
    }
    struct stat st {};
    if (!image_) {
        UniqueFd fd(::open(path_.c_str(), O_RDONLY | O_NONBLOCK | O_NOFOLLOW | O_CLOEXEC));
        if (!fd || ::fstat(fd.get(), &st) != 0 || !S_ISREG(st.st_mode)) {
            return;
        }
        image_ = std::move(fd);
    }
    if (::fstat(image_.get(), &st) != 0 || st.st_nlink != 0) {
        return;
    }
    away_ = true;
    const std::string copy = rescue_copy(image_.get(), path_);
    if (copy.empty()) {
        log_.error(
            "vTPM {}: its image {} was deleted, or another file was renamed over it, and there is no room to copy what it "
            "holds: it is in /proc/{}/fd/{} as long as this manager lives and the vTPM is not stopped; copy it first",
            uuid_, path_, ::getpid(), image_.get());
        return;
    }
    log_.error(
        "vTPM {}: its image {} was deleted, or another file was renamed over it. All that was acknowledged is in {}; stop the "
        "vTPM, put the copy in the place of the image, and start it again",
        uuid_, path_, copy);
}

Task<> watch_folder(std::string path, std::function<void(std::string_view)> changed, const Log& log) {
    UniqueFd fd(::inotify_init1(IN_NONBLOCK | IN_CLOEXEC));
    constexpr std::uint32_t events =
        IN_CREATE | IN_DELETE | IN_MOVED_FROM | IN_MOVED_TO | IN_MOVE_SELF | IN_DELETE_SELF;
    if (!fd || ::inotify_add_watch(fd.get(), path.c_str(), events | IN_ONLYDIR) < 0) {
        if (errno == ENOENT) {
            co_return; // there are no images
        }
        log.warning(
            "{}; an image that is deleted while an instance in a sandbox has it is copied only when that one ends",
            errno_error(errno, path + ": cannot be watched").message);
        co_return;
    }
    asio::posix::stream_descriptor in(co_await asio::this_coro::executor, fd.release());
    for (;;) {
        co_await in.async_wait(asio::posix::stream_descriptor::wait_read, asio::use_awaitable);
        tell(in.native_handle(), path, changed, log);
    }
}

} // namespace vtpmd::manager
