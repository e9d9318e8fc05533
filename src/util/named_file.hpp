// A file by its path, that can be looked at by a process which has another root directory since, or has given up its
// rights to the way there.
#pragma once

#include "util/fd.hpp"

#include <cstdint>
#include <optional>
#include <string>

namespace vtpmd {

struct FilePlace {
    std::uint64_t device = 0; ///< major and minor number
    std::uint64_t inode = 0;
    bool operator==(const FilePlace&) const = default;
};

/// What a file is, but for its times: where they are asked for, Linux 6.13 and later give each write that follows a
/// time of its own, and the inode is written at every fdatasync: a disk request more for each durable change.
struct FileFacts {
    FilePlace place;
    std::uint64_t size = 0; ///< bytes
    std::uint32_t links = 0;
};

/// Of an open file. nullopt with errno.
[[nodiscard]] std::optional<FileFacts> facts_of(int fd);

class NamedFile {
  public:
    explicit NamedFile(const std::string& path);
    /// What is there now, by its path. Where the process gave up paths (give_up_paths()): by what its path was without
    /// links, from the root directory as it was; where that is not allowed, by its name in the folder as it was opened.
    /// nullopt with errno.
    [[nodiscard]] std::optional<FileFacts> look() const;
    /// nullopt: nothing is there, or it cannot be told.
    [[nodiscard]] std::optional<FilePlace> place() const;
    [[nodiscard]] const std::string& path() const noexcept { return path_; }

  private:
    std::string path_; ///< absolute
    std::string real_; ///< without links: they would lead from the new root directory
    std::string name_;
    UniqueFd root_;
    UniqueFd folder_;
};

/// From now on paths mean nothing here any more.
void give_up_paths() noexcept;

} // namespace vtpmd
