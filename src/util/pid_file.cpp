#include "util/pid_file.hpp"

#include "util/fd.hpp"

#include <cerrno>
#include <cstdio>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

namespace vtpmd {

Result<PidFile> PidFile::write(const std::string& path) {
    const std::string text = fmt::format("{}\n", ::getpid());
    const bool passed = path.starts_with("/dev/fd/");
    // Into the file that is there: whoever waits may have it open.
    const UniqueFd fd(::open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | (passed ? 0 : O_NOFOLLOW), 0600));
    struct stat made {};
    if (!fd || ::fstat(fd.get(), &made) != 0) {
        return errno_error(errno, path);
    }
    const bool is_file = !passed && S_ISREG(made.st_mode);
    if ((is_file && ::fchmod(fd.get(), 0644) != 0) ||
        ::write(fd.get(), text.data(), text.size()) != static_cast<ssize_t>(text.size())) {
        return errno_error(errno, path);
    }
    return PidFile(is_file ? path : std::string(), made.st_ino);
}

PidFile::~PidFile() {
    struct stat there {};
    if (!path_.empty() && ::lstat(path_.c_str(), &there) == 0 && there.st_ino == inode_) {
        (void)::unlink(path_.c_str());
    }
}

} // namespace vtpmd
