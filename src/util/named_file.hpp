// A file by its name in a folder that was opened once: it can be looked at by a process that has given up its rights to
// the way there, or has another root directory.
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
    /// What is there now, by its path; where the process gave up paths (paths_given_up()), by its name in the folder as
    /// it was opened. False with errno.
    [[nodiscard]] bool look(struct stat& out) const;
    using Place = std::pair<dev_t, ino_t>;
    /// nullopt: nothing is there, or it cannot be told.
    [[nodiscard]] std::optional<Place> place() const;
    [[nodiscard]] const std::string& path() const noexcept { return path_; }

  private:
    std::string path_; ///< absolute
    std::string name_;
    UniqueFd folder_;
};

/// From now on paths mean nothing here any more.
void give_up_paths() noexcept;

} // namespace vtpmd
