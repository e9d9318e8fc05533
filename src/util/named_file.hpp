// A file by its path, that can be looked at by a process which has another root directory since, or has given up its
// rights to the way there.
#pragma once

#include "util/fd.hpp"

#include <optional>
#include <string>
#include <sys/types.h>
#include <utility>

struct stat;

namespace vtpmd {

class NamedFile {
  public:
    explicit NamedFile(const std::string& path);
    /// What is there now, by its path. Where the process gave up paths (give_up_paths()): by what its path was without
    /// links, from the root directory as it was; where that is not allowed, by its name in the folder as it was opened.
    /// False with errno.
    [[nodiscard]] bool look(struct stat& out) const;
    using Place = std::pair<dev_t, ino_t>;
    /// nullopt: nothing is there, or it cannot be told.
    [[nodiscard]] std::optional<Place> place() const;
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
