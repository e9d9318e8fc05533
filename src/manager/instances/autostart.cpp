#include "manager/instances/autostart.hpp"

#include "util/fd.hpp"

#include <cerrno>
#include <fcntl.h>
#include <filesystem>
#include <functional>
#include <sys/stat.h>
#include <thread>
#include <unistd.h>

namespace vtpmd::manager {

namespace {

/// Runs what waits for a disk on a thread of its own, to its end: the loop goes on.
Task<Result<void>> aside(std::function<Result<void>()> work) {
    auto executor = co_await asio::this_coro::executor;
    co_await asio::this_coro::reset_cancellation_state(asio::disable_cancellation());
    asio::steady_timer done(executor, asio::steady_timer::time_point::max());
    Result<void> outcome;
    bool finished = false;
    std::thread thread([&] {
        outcome = work();
        asio::post(executor, [&] {
            finished = true;
            done.cancel();
        });
    });
    while (!finished) {
        (void)co_await done.async_wait(use_tuple);
    }
    thread.join();
    co_return outcome;
}

Result<void> sync_directory(const std::string& path) {
    UniqueFd dir(::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    return dir && ::fsync(dir.get()) == 0 ? Result<void>{} : Result<void>(errno_error(errno, path));
}

Result<void> write_mark(const std::string& state_dir, const std::string& dir, const std::string& path, bool on) {
    if (!on) {
        if (::unlink(path.c_str()) != 0 && errno != ENOENT) {
            return errno_error(errno, path);
        }
        return sync_directory(dir);
    }
    if (::mkdir(dir.c_str(), 0700) == 0) {
        if (auto synced = sync_directory(state_dir); !synced) {
            return synced;
        }
    } else if (errno == ENOENT) {
        return make_error(Errc::not_found, "{} (--state-dir) is not there; is its volume mounted?", state_dir);
    } else if (errno != EEXIST) {
        return errno_error(errno, dir);
    }
    if (UniqueFd fd(::open(path.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600)); !fd) {
        return errno_error(errno, path);
    }
    return sync_directory(dir);
}

} // namespace

Result<bool> make_state_dir(const std::string& path) {
    const std::filesystem::path wanted = std::filesystem::path(path + "/").parent_path();
    const std::filesystem::path parent = wanted.has_parent_path() ? wanted.parent_path() : ".";
    if (::mkdir(wanted.c_str(), 0700) == 0) {
        auto synced = sync_directory(parent);
        return synced ? Result<bool>(true) : Result<bool>(synced.error());
    }
    const int why = errno;
    struct stat there {};
    if (why == EEXIST && ::stat(wanted.c_str(), &there) == 0) {
        return S_ISDIR(there.st_mode) ? Result<bool>(false)
                                      : make_error(Errc::usage, "--state-dir={}: it is no directory", path);
    }
    if (why == ENOENT) {
        return make_error(Errc::not_found,
                          "--state-dir={}: neither it nor {} is there; mount what belongs there, or make it", path,
                          parent.string());
    }
    return in_context(errno_error(why == EEXIST ? errno : why, path), "--state-dir");
}

Autostart::Autostart(const asio::any_io_executor& executor, std::string state_dir)
    : dir_(std::move(state_dir) + "/autostart")
    , changing_(executor) {
    std::error_code ec;
    for (std::filesystem::directory_iterator it(dir_, ec), end; !ec && it != end; it.increment(ec)) {
        if (auto uuid = parse_uuid(it->path().filename().string())) {
            wanted_.insert(*uuid);
        }
    }
    if (ec && ec != std::errc::no_such_file_or_directory) {
        read_ = errno_error(ec.value(), dir_);
    }
}

Task<Result<void>> Autostart::set(Uuid uuid, bool on) {
    auto turn = co_await changing_.acquire();
    if (!turn) {
        co_return turn.error();
    }
    if (has(uuid) == on) {
        co_return Result<void>{};
    }
    const std::string path = fmt::format("{}/{}", dir_, uuid);
    const std::string state_dir = std::filesystem::path(dir_).parent_path();
    std::function<Result<void>()> work = [this, state_dir, path, on] { return write_mark(state_dir, dir_, path, on); };
    auto done = co_await aside(std::move(work));
    if (!done) {
        co_return in_context(done.error(), "autostart");
    }
    on ? (void)wanted_.insert(uuid) : (void)wanted_.erase(uuid);
    co_return done;
}

} // namespace vtpmd::manager
