#include "backup.hpp"

#include "made_file.hpp"
#include "store/journal.hpp"

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <fmt/format.h>
#include <fstream>
#include <sysexits.h>
#include <unistd.h>

namespace vtpmctl {

namespace {

/// One line, over and over, on a terminal only.
class Bar {
  public:
    Bar() = default;
    Bar(const Bar&) = delete;
    Bar& operator=(const Bar&) = delete;
    ~Bar() {
        if (shown_ >= 0) {
            std::fputc('\n', stderr);
        }
    }
    void show(std::uint64_t done, std::uint64_t total) {
        if (::isatty(STDERR_FILENO) == 0 || total == 0) {
            return;
        }
        const int percent = static_cast<int>(done * 100 / total);
        if (percent == shown_) {
            return;
        }
        shown_ = percent;
        constexpr double mebi = 1024.0 * 1024.0;
        const std::string bar(static_cast<std::size_t>(percent) * 40 / 100, '#');
        const std::string line = fmt::format("\r[{:40}] {:3} %  {:.1f} of {:.1f} MiB", bar, percent,
                                             static_cast<double>(done) / mebi, static_cast<double>(total) / mebi);
        std::fputs(line.c_str(), stderr);
    }

  private:
    int shown_ = -1;
};

} // namespace

bool is_backup(vtpmd::ByteView head, std::uint64_t /*size*/) {
    const auto read = vtpmd::store::ManagerImage::read_head(head, "");
    return read && read->backup;
}

std::uint64_t backup(const Options& o, const std::string& path, const std::string& store, const Fetch& fetch) {
    MadeFile file{.path = path,
                  .what = "a backup (one that a newer vtpmctl made, and that no manager has changed since)",
                  .is_one = is_backup,
                  .replace = o.has("yes"),
                  .asked = "is there already; name another file, or give --yes to replace it",
                  .live = store};
    check_place(file);
    Draft draft(std::move(file));
    std::uint64_t done = 0;
    {
        Bar bar;
        fetch([&](std::string_view piece, std::uint64_t total) {
            draft.write(vtpmd::as_bytes(piece));
            done += piece.size();
            bar.show(done, total);
        });
    }
    draft.become();
    return done;
}

std::string read_copy(const std::string& path) {
    std::ifstream in(path, std::ios::binary | std::ios::ate);
    const auto size = in ? static_cast<std::streamoff>(in.tellg()) : -1;
    if (size < 0) {
        fail(EX_NOINPUT, fmt::format("{}: {}; name a file that is there", path, std::strerror(errno)));
    }
    if (static_cast<std::uint64_t>(size) > vtpmd::store::ManagerImage::max_size) {
        fail(EX_DATAERR, fmt::format("{}: is larger than any store; is it the right file?", path));
    }
    std::string content(static_cast<std::size_t>(size), '\0');
    in.seekg(0);
    if (!in.read(content.data(), size)) {
        fail(EX_IOERR, fmt::format("{}: it cannot be read", path));
    }
    content.resize(std::max(content.find_last_not_of('\0') + 1, std::min(content.size(), made_file_head)));
    return content;
}

} // namespace vtpmctl
