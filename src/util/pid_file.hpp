// The process's number in a file, for whoever waits for it or ends it.
#pragma once

#include "util/result.hpp"

#include <string>
#include <sys/types.h>

namespace vtpmd {

/// Removed when it goes, unless another process has put its own there.
class PidFile {
  public:
    /// Mode 0644; a file that is there is written anew. A pipe, or a descriptor (/dev/fd/N), is written to and stays.
    [[nodiscard]] static Result<PidFile> write(const std::string& path);
    PidFile(PidFile&& other) noexcept
        : path_(std::exchange(other.path_, {}))
        , inode_(other.inode_) {}
    PidFile& operator=(PidFile&&) = delete;
    PidFile(const PidFile&) = delete;
    PidFile& operator=(const PidFile&) = delete;
    ~PidFile();

  private:
    PidFile(std::string path, ino_t inode)
        : path_(std::move(path))
        , inode_(inode) {}
    std::string path_; ///< empty: not a file
    ino_t inode_;
};

} // namespace vtpmd
