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

std::optional<FileFacts> facts_at(int folder, const char* path, int flags) {
    struct statx found {};
    if (::statx(folder, path, flags, STATX_INO | STATX_NLINK | STATX_SIZE, &found) != 0) {
        return std::nullopt;
    }
    constexpr unsigned half = 32;
    const std::uint64_t device = (std::uint64_t{found.stx_dev_major} << half) | found.stx_dev_minor;
    return FileFacts{
        .place = {.device = device, .inode = found.stx_ino}, .size = found.stx_size, .links = found.stx_nlink};
}

} // namespace

std::optional<FileFacts> facts_of(int fd) { return facts_at(fd, "", AT_EMPTY_PATH); }

void give_up_paths() noexcept { paths_given_up = true; }

NamedFile::NamedFile(const std::string& path)
    : path_(absolute_of(path))
    , real_(without_links(path_))
    , name_(std::filesystem::path(real_).filename().string())
    , root_(open_folder("/"))
    , folder_(open_folder(std::filesystem::path(real_).parent_path())) {}

std::optional<FileFacts> NamedFile::look() const {
    if (!paths_given_up) {
        return facts_at(AT_FDCWD, path_.c_str(), 0);
    }
    if (root_) {
        if (auto found = facts_at(root_.get(), real_.c_str() + 1, AT_SYMLINK_NOFOLLOW)) {
            return found;
        }
        if (errno != EACCES) {
            return std::nullopt;
        }
    }
    if (!folder_) {
        errno = EACCES;
        return std::nullopt;
    }
    return facts_at(folder_.get(), name_.c_str(), AT_SYMLINK_NOFOLLOW);
}

std::optional<FilePlace> NamedFile::place() const {
    const auto found = look();
    return found ? std::optional(found->place) : std::nullopt;
}

} // namespace vtpmd
