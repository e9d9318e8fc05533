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

} // namespace

void give_up_paths() noexcept { paths_given_up = true; }

NamedFile::NamedFile(const std::string& path)
    : path_(absolute_of(path))
    , name_(std::filesystem::path(path_).filename().string())
    , folder_(::open(std::filesystem::path(path_).parent_path().c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC)) {}

bool NamedFile::look(struct stat& out) const {
    if (!paths_given_up) {
        return ::stat(path_.c_str(), &out) == 0;
    }
    if (!folder_) {
        errno = EACCES;
        return false;
    }
    return ::fstatat(folder_.get(), name_.c_str(), &out, 0) == 0;
}

std::optional<NamedFile::Place> NamedFile::place() const {
    struct stat st {};
    return look(st) ? std::optional(Place{st.st_dev, st.st_ino}) : std::nullopt;
}

} // namespace vtpmd
