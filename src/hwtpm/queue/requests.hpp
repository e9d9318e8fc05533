// Requests of many vTPMs that one TPM command can serve: random bytes from a pool, PCR values from a shared read. The
// decisions, pure; hardware_root.cpp runs them.
#pragma once

#include "tpm/pcr.hpp"
#include "util/secret_bytes.hpp"

#include <optional>

namespace vtpmd::hwtpm {

/// Random bytes that the TPM gave and nobody has got yet. Every byte is handed out once, then cleansed. Fetched in
/// chunks, so that urgent work gets its turn in between, and a little more than is asked for, so that the next asks
/// nobody.
class RandomPool {
  public:
    struct Config {
        std::size_t chunk = 64;  ///< bytes of one trip to the TPM: one or two commands
        std::size_t spare = 128; ///< kept for who comes next
    };
    explicit RandomPool(Config config)
        : config_(config) {}

    /// `count` bytes, or nothing if there are not as many.
    std::optional<Bytes> take(std::size_t count);
    void add(ByteView fresh);
    /// How many bytes to fetch now, with requests for `asked` bytes waiting: 0 if nobody waits.
    [[nodiscard]] std::size_t fetch_size(std::size_t asked) const noexcept;
    [[nodiscard]] std::size_t available() const noexcept { return kept_.size() - used_; }

  private:
    Config config_;
    SecretBytes kept_;
    std::size_t used_ = 0; ///< from the front, cleansed
};

/// One selection a bank with the PCRs of all of them, banks and indices ascending.
[[nodiscard]] std::vector<PcrSelection> merged(const std::vector<std::vector<PcrSelection>>& requests);
/// The values that this request asked for.
[[nodiscard]] std::vector<PcrValue> part_of(const std::vector<PcrValue>& values,
                                            const std::vector<PcrSelection>& request);

} // namespace vtpmd::hwtpm
