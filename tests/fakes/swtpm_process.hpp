// A real swtpm as the hardware TPM: its own process and state directory, gone with the object.
#pragma once

#include "tpm/version.hpp"

#include <filesystem>
#include <string>
#include <sys/types.h>

namespace vtpmd::fakes {

/// mkdtemp, removed with its content.
class TempDir {
  public:
    TempDir();
    TempDir(const TempDir&) = delete;
    TempDir& operator=(const TempDir&) = delete;
    ~TempDir();
    [[nodiscard]] const std::filesystem::path& path() const { return path_; }

  private:
    std::filesystem::path path_;
};

class SwtpmProcess {
  public:
    struct Config {
        TpmVersion version = TpmVersion::tpm20;
        bool powered = true; ///< --flags not-need-init,startup-clear; else CMD_INIT is somebody's business
    };
    /// Starts it on a fresh state directory; throws if it does not come up.
    explicit SwtpmProcess(Config config);
    SwtpmProcess()
        : SwtpmProcess(Config{}) {}
    SwtpmProcess(const SwtpmProcess&) = delete;
    SwtpmProcess& operator=(const SwtpmProcess&) = delete;
    ~SwtpmProcess();

    void stop();  ///< kill, wait: a power cut
    void start(); ///< again on the same state

    [[nodiscard]] std::string driver() const { return "swtpm:unix:" + socket(); }
    [[nodiscard]] std::string socket() const { return (dir_.path() / "tpm.sock").string(); }
    [[nodiscard]] std::filesystem::path state_dir() const { return dir_.path() / "state"; }

  private:
    Config config_;
    TempDir dir_;
    pid_t pid_ = -1;
};

} // namespace vtpmd::fakes
