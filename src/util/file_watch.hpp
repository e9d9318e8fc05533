// An open file that can be taken from under the process which writes it: a restore tool unlinks it, renames another
// over it, moves its directory, mounts something over that, or copies over what is in it. What is written then is lost
// at the latest when the process ends. So whoever acknowledges something looks first whether the file is still the one
// at its path, and holds what was written last: two system calls for each write and its sync (tools/bench nv).
//
// Once it is found away nothing more is written to it, so that what it holds can be copied. One that has no name any
// more is copied at once, beside its path (".rescued"); one that is only elsewhere can be put back, and the process
// goes on. Who has given up the right to make files leaves the copying to its manager (image_keeper.hpp).
#pragma once

#include "util/bytes.hpp"
#include "util/named_file.hpp"
#include "util/result.hpp"

#include <cstdint>
#include <string>
#include <string_view>

namespace vtpmd {

/// True for an error of check() and may_write(), also with more of its story in front: Errc::io with ESTALE. It is
/// certain that nothing that was not acknowledged before will be found at the path.
[[nodiscard]] bool pulled_away(const Error& e) noexcept;

/// What an open file holds, copied beside the path that it had, durably; where to (there already, if another process
/// has done it), or nothing.
[[nodiscard]] std::string rescue_copy(int fd, const std::string& path);

class FileWatch {
  public:
    /// A regular file that has just been opened by this path. `fd` outlives it.
    FileWatch(int fd, const std::string& path);

    /// Before a write. An error: it was found away and is away still.
    Result<void> may_write();
    /// After a write; `data` is what should be there.
    void wrote(std::uint64_t offset, ByteView data);
    /// After a write that failed: what is there is not known.
    void failed();
    /// After an allocation, which may_write() comes before as well.
    void grew();
    /// The same for what was read, until something is written.
    void read(std::uint64_t offset, ByteView data);
    /// After a sync, before it is told to anybody. What another program wrote into it is an error once: the caller's
    /// next write may make it good. It must not be empty of the bytes up to `size`.
    Result<void> check(std::uint64_t size);

  private:
    [[nodiscard]] Result<void> in_place(std::uint64_t size) const;
    [[nodiscard]] Result<void> why_not_in_place(std::uint64_t size) const;
    void look_before_write();
    [[nodiscard]] bool holds_last() const;
    enum class Loss { nameless, elsewhere, changed };
    [[nodiscard]] Error lost(Loss kind, std::string_view what) const;
    [[nodiscard]] std::string rescue() const;

    static constexpr std::size_t tail_size = 64;

    int fd_;
    NamedFile there_;
    std::string path_; ///< absolute
    FilePlace place_;
    bool has_path_; ///< it could be found there when it was opened
    bool away_ = false;
    mutable std::string rescued_; ///< where its copy is
    mutable bool rescue_tried_ = false;
    unsigned writing_ = 0; ///< writes of ours that are not done
    bool overwritten_ = false;
    std::uint64_t tail_at_ = 0;
    Bytes tail_; ///< the end of what was written (before the first write: read) last; empty: not known
    bool tail_is_ours_ = false;
};

} // namespace vtpmd
