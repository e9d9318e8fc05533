// Child processes of the benchmark: started, stopped and measured; none outlives it.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <sys/types.h>
#include <vector>

namespace bench {

/// A running program. The destructor ends it: SIGTERM, five seconds, SIGKILL.
class Process {
  public:
    Process() = default;
    /// Throws std::runtime_error. Standard output and error go to `log`, from which complaints are quoted.
    Process(const std::vector<std::string>& argv, std::filesystem::path log);
    Process(Process&& other) noexcept;
    Process& operator=(Process&& other) noexcept;
    Process(const Process&) = delete;
    Process& operator=(const Process&) = delete;
    ~Process() { stop(); }

    void stop() noexcept;
    [[nodiscard]] bool running();
    [[nodiscard]] pid_t pid() const { return pid_; }
    /// The last lines that it wrote.
    [[nodiscard]] std::string complaint() const;
    /// Proportional set size in KiB (/proc/PID/smaps_rollup); nothing if the kernel does not let us look.
    [[nodiscard]] std::optional<double> pss_kib() const;
    /// User and system time of all its threads so far, in seconds, to the nanosecond.
    [[nodiscard]] double cpu_seconds() const;

  private:
    pid_t pid_ = -1;
    std::filesystem::path log_;
};

} // namespace bench
