#include "util/named_file.hpp"

#include <atomic>
#include <cerrno>
#include <fcntl.h>
#include <filesystem>
#include <sys/stat.h>
#include <system_error>

namespace vtpmd {

namespace {

std::atomic<bool> paths_given_up{false};

std::string absolute_of(const std::string& path) {
    std::error_code ec;
    std::string out = std::filesystem::absolute(path, ec).string();
    return ec ? path : out;
}

std::string without_links(const std::string& path) {
    std::error_code ec;
    std::string out = std::filesystem::weakly_canonical(path, ec).string();
    return ec || out.empty() || out.front() != '/' ? path : out;
}

UniqueFd open_folder(const std::filesystem::path& path) {
    return UniqueFd(::open(path.c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC));
}

} // namespace

void give_up_paths() noexcept { paths_given_up = true; }

NamedFile::NamedFile(const std::string& path)
    : path_(absolute_of(path))
    , real_(without_links(path_))
    , name_(std::filesystem::path(real_).filename().string())
    , root_(open_folder("/"))
    , folder_(open_folder(std::filesystem::path(real_).parent_path())) {}

bool NamedFile::look(struct stat& out) const {
    if (!paths_given_up) {
        return ::stat(path_.c_str(), &out) == 0;
    }
    if (root_ && ::fstatat(root_.get(), real_.c_str() + 1, &out, AT_SYMLINK_NOFOLLOW) == 0) {
        return true;
    }
    if (root_ && errno != EACCES) {
        return false;
    }
    if (!folder_) {
        errno = EACCES;
        return false;
    }
    return ::fstatat(folder_.get(), name_.c_str(), &out, AT_SYMLINK_NOFOLLOW) == 0;
}

std::optional<NamedFile::Place> NamedFile::place() const {
    struct stat st {};
    return look(st) ? std::optional(Place{st.st_dev, st.st_ino}) : std::nullopt;
}

} // namespace vtpmd
