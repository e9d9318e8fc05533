// The state of an embedded TPM in a directory: one file, replaced as a whole and durable before replace() returns, and
// a lock that goes with the process.
//
//   DIR/lock           flock'ed
//   DIR/tpm20.state    "vtpmdTPM" | u32 version = 1 | u32 n | u32 m | permanent[n] | saved[m] | SHA-256 of all before
//   DIR/tpm20.state.new  the next one on its way; worth nothing
// All numbers big-endian. The state is not encrypted: whoever can read the directory has the TPM's seeds.
#pragma once

#include "engine/engine.hpp"
#include "util/fd.hpp"
#include "util/result.hpp"

#include <filesystem>
#include <optional>

namespace vtpmd::hwtpm {

class EmbeddedState {
  public:
    /// Locks the directory, making it (mode 0700) if `create`. Errc::busy: another process has it; not_found.
    static Result<EmbeddedState> open(const std::filesystem::path& dir, bool create);

    /// Empty if there never was a state. Errc::corrupt, version, io: there is one, and it is not to be replaced.
    Result<std::optional<EngineState>> load() const;
    /// On stable storage, or not at all.
    Result<void> replace(const EngineState& state) const;

    [[nodiscard]] const std::filesystem::path& dir() const noexcept { return dir_; }

  private:
    EmbeddedState(std::filesystem::path dir, UniqueFd dir_fd, UniqueFd lock)
        : dir_(std::move(dir))
        , dir_fd_(std::move(dir_fd))
        , lock_(std::move(lock)) {}

    std::filesystem::path dir_;
    UniqueFd dir_fd_;
    UniqueFd lock_;
};

// Pure: the file's codec.
[[nodiscard]] SecretBytes encode_embedded_state(const EngineState& state);
[[nodiscard]] Result<EngineState> decode_embedded_state(ByteView file);

} // namespace vtpmd::hwtpm
