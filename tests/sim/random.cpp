#include "random.hpp"

#include <cstddef>
#include <openssl/rand.h>
#include <sys/types.h>

namespace vtpmd::sim {

namespace {

Random& chance() {
    static Random random(1);
    return random;
}

int fill(unsigned char* into, int count) {
    for (int i = 0; i < count; ++i) {
        into[i] = static_cast<unsigned char>(chance().next() >> 56U);
    }
    return 1;
}
int always() { return 1; }

} // namespace

void seed_chance(std::uint64_t seed) {
    chance() = Random(seed);
    // Deprecated in favour of providers, of which one that only answers with numbers takes three hundred lines.
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wdeprecated-declarations"
    static const RAND_METHOD method{
        .seed = nullptr, .bytes = fill, .cleanup = nullptr, .add = nullptr, .pseudorand = fill, .status = always};
    RAND_set_rand_method(&method);
#pragma GCC diagnostic pop
}

} // namespace vtpmd::sim

/// In place of the C library's, for this program.
// NOLINTNEXTLINE(readability-inconsistent-declaration-parameter-name): the library's are reserved names
extern "C" ssize_t getrandom(void* buffer, std::size_t length, unsigned /*flags*/) {
    (void)vtpmd::sim::fill(static_cast<unsigned char*>(buffer), static_cast<int>(length));
    return static_cast<ssize_t>(length);
}
