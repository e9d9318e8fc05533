// Where the lines of the log go: a descriptor that others read, or do not. A line is written if that can be done at
// once. One that cannot is dropped and counted, and the count is said as soon as something can be written again; so a
// pipe that is full, a terminal that is stopped or a reader that has gone stops no TPM.
//
// By kind: a file, /dev/null and the like are written. A socket is sent to without waiting. A pipe or a terminal is
// opened once more (own_standard_error), so that it does not block us and goes on blocking whoever shares it; where the
// kernel does not allow that, each write asks not to wait.
#pragma once

#include "util/log.hpp"

#include <atomic>
#include <cstdint>
#include <functional>
#include <mutex>
#include <string>
#include <string_view>

namespace vtpmd {

/// Makes standard error a description of our own that never blocks, if it is a pipe or a terminal: also for what
/// libraries write. Once, before there are threads. A terminal may then not stop us for writing to it either (SIGTTOU).
void own_standard_error();

class LogOutput {
  public:
    /// `fd` is the caller's, and stays open while this is used.
    explicit LogOutput(int fd);

    /// From any thread; never waits.
    void line(LogLevel level, std::string_view text);

    /// Called when lines begin to be dropped because nobody reads, by whichever thread wrote: at most once until
    /// catch_up() has said how many. Set before there are threads; it must not log.
    void when_dropping(std::function<void()> call) { when_dropping_ = std::move(call); }
    /// Writes what can be written of what is owed: the rest of a line, and how many were dropped. True if nothing is
    /// owed, or never can be paid (a reader that has gone).
    bool catch_up();
    /// The same at the end, with a short wait for a reader who is only slow.
    void finish();

  private:
    enum class Written { all, later, never };
    enum class How { write, send, ask };

    Written write_some(std::string_view& text) const;
    /// The rest of what was begun, and the count. Then a line may follow.
    Written settle();
    [[nodiscard]] std::string dress(LogLevel level, std::string_view text) const;

    const int fd_;
    const How how_;
    const bool terminal_;
    const bool journal_; ///< it is systemd's journal, which takes priorities and has times of its own
    std::function<void()> when_dropping_;
    std::mutex mutex_;
    std::string rest_; ///< of a line that was written in part
    std::uint64_t dropped_ = 0;
    bool told_ = false;
};

} // namespace vtpmd
