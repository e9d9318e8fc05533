// An instance in its sandbox can make no file: when its image is deleted, or another is renamed over it, it cannot copy what it
// holds beside its path (file_watch.hpp). So its manager has the image open as well, and copies it when it has no name any more:
// at once where it sees that happen in the folder (watch_folder()), and at the latest when the process ends, however it ends.
#pragma once

#include "util/asio.hpp"
#include "util/fd.hpp"
#include "util/log.hpp"
#include "util/uuid.hpp"

#include <functional>
#include <string>
#include <string_view>

namespace vtpmd::manager {

class ImageKeeper {
  public:
    ImageKeeper(const Uuid& uuid, std::string path, const Log& log)
        : uuid_(uuid)
        , path_(std::move(path))
        , log_(log) {}
    /// Opens the image once it is there, as long as a process has it; copies it if it has no name any more.
    void look();

  private:
    const Uuid uuid_;
    const std::string path_;
    const Log& log_;
    UniqueFd image_; ///< a regular file
    bool away_ = false;
};

/// Until it is cancelled. `changed` is told of each name that appears or goes. That the folder itself goes is logged.
Task<> watch_folder(std::string path, std::function<void(std::string_view)> changed, const Log& log);

} // namespace vtpmd::manager
