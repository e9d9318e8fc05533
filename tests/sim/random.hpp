// Numbers from a seed: the same on every machine (the distributions of the standard library are not).
#pragma once

#include <cstdint>

namespace vtpmd::sim {

/// SplitMix64.
class Random {
  public:
    explicit Random(std::uint64_t seed)
        : state_(seed) {}
    std::uint64_t next() {
        std::uint64_t z = (state_ += 0x9E3779B97F4A7C15);
        z = (z ^ (z >> 30U)) * 0xBF58476D1CE4E5B9;
        z = (z ^ (z >> 27U)) * 0x94D049BB133111EB;
        return z ^ (z >> 31U);
    }
    /// In [0, n).
    std::uint32_t below(std::uint32_t n) { return static_cast<std::uint32_t>((next() >> 32U) * n >> 32U); }
    bool chance(std::uint32_t in) { return below(in) == 0; }

  private:
    std::uint64_t state_;
};

/// From here on everything that the program takes for chance (OpenSSL's, the kernel's) follows this seed: the same seed, the same
/// keys, nonces, signatures and UUIDs.
void seed_chance(std::uint64_t seed);

} // namespace vtpmd::sim
