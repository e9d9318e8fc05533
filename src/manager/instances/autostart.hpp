// Which vTPMs are to run whenever the manager does: a file of no content for each, STATE_DIR/autostart/UUID. Kept beside the images and
// not in the store: a copy of the store that is put back starts nothing that was stopped since, and an older program reads the store.
#pragma once

#include "util/asio.hpp"
#include "util/fifo_lock.hpp"
#include "util/result.hpp"
#include "util/uuid.hpp"

#include <string>
#include <unordered_set>

namespace vtpmd::manager {

/// The directory of spawned instances' images: made (mode 0700, durable) where only it is missing. True: it was.
/// Errc::usage: it is something else; not_found: what it is to be in is missing too, as where a volume is not mounted.
[[nodiscard]] Result<bool> make_state_dir(const std::string& path);

class Autostart {
  public:
    /// Reads what is there. A folder that cannot be read is an error of set(), and of read().
    Autostart(const asio::any_io_executor& executor, std::string state_dir);

    /// Durable on success; success at once if it is so already. The disk is waited for on another thread.
    Task<Result<void>> set(Uuid uuid, bool on);
    [[nodiscard]] bool has(const Uuid& uuid) const { return wanted_.contains(uuid); }
    [[nodiscard]] const std::unordered_set<Uuid>& all() const noexcept { return wanted_; }
    /// Whether the folder could be read.
    [[nodiscard]] const Result<void>& read() const noexcept { return read_; }

  private:
    const std::string dir_;
    FifoLock changing_; ///< one change at a time, in the order in which they were asked for
    std::unordered_set<Uuid> wanted_;
    Result<void> read_;
};

} // namespace vtpmd::manager
