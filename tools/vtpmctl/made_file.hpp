// Files that are made for an operator: there whole and durable, or not at all. None goes over a file that is no such file, nor over
// one that a vtpmd has open, by whatever name or link it is called.
#pragma once

#include "util/bytes.hpp"

#include <functional>
#include <string>
#include <string_view>

namespace vtpmctl {

struct MadeFile {
    std::string path;
    std::string_view what; ///< "a backup", for messages
    /// Whether a file that is there is one of the kind: its first bytes (made_file_head at most), and how many it has.
    std::function<bool(vtpmd::ByteView head, std::uint64_t size)> is_one;
    bool replace = false; ///< one of the kind
    std::string_view
        asked; ///< what to do where it is one and not to be replaced; empty: nothing can be done but another name
    std::string live = {}; ///< the manager's store, which is never replaced; empty: unknown
    unsigned mode = 0600;  ///< what the umask leaves of it
};
inline constexpr std::size_t made_file_head = 131'072;

/// Ends the program if that file may not be made: before anything is asked for.
void check_place(const MadeFile& file);

/// Beside the file that it becomes; gone again unless it becomes that.
class Draft {
  public:
    explicit Draft(MadeFile file);
    Draft(const Draft&) = delete;
    Draft& operator=(const Draft&) = delete;
    ~Draft();
    void write(vtpmd::ByteView bytes);
    /// Durable on return.
    void become();

  private:
    [[noreturn]] void fail_with_errno(std::string_view next) const;

    MadeFile file_;
    std::string target_; ///< links resolved
    std::string name_;   ///< empty once it is the file
    int fd_;
};

/// All at once.
void make_file(MadeFile file, vtpmd::ByteView content);

} // namespace vtpmctl
