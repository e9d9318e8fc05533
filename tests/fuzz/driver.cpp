// Runs a harness without libFuzzer:  HARNESS RUNS  mutates its seeds RUNS times, always in the same way;
// HARNESS FILE...  runs it once on each file (what a fuzzer found).
#include "fuzz.hpp"

#include <charconv>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <iterator>
#include <random>

using vtpmd::Bytes;

namespace {

void run(const Bytes& input) {
    LLVMFuzzerTestOneInput(reinterpret_cast<const std::uint8_t*>(input.data()), input.size());
}

/// One small damage: a byte changed, a bit flipped, a tail cut off or repeated, a stretch of a sort that lengths like.
void mutate(Bytes& b, std::mt19937& random) {
    const std::size_t at = b.empty() ? 0 : random() % b.size();
    switch (b.empty() ? 3 : random() % 6) {
    case 0:
        b[at] = static_cast<std::byte>(random());
        break;
    case 1:
        b[at] ^= static_cast<std::byte>(1U << random() % 8);
        break;
    case 2:
        b.resize(at);
        break;
    case 3:
        b.insert(b.end(), random() % 64, static_cast<std::byte>(random()));
        break;
    case 4:
        for (std::size_t i = at; i < b.size() && i < at + 4; ++i) {
            b[i] = random() % 2 == 0 ? std::byte{0xff} : std::byte{0};
        }
        break;
    default:
        b.erase(b.begin() + static_cast<std::ptrdiff_t>(at));
        break;
    }
}

} // namespace

int main(int argc, char** argv) {
    unsigned runs = 0;
    const char* end = argc == 2 ? argv[1] + std::strlen(argv[1]) : nullptr;
    if (argc == 2 && std::from_chars(argv[1], end, runs).ptr == end) {
        const std::vector<Bytes> seeds = vtpmd::fuzz::seeds();
        std::mt19937 random(1); // NOLINT(bugprone-random-generator-seed): the same every time
        for (const Bytes& seed : seeds) {
            run(seed);
        }
        for (unsigned i = 0; i < runs; ++i) {
            Bytes input = seeds.empty() ? Bytes{} : seeds[random() % seeds.size()];
            for (auto n = random() % 4; n != 0; --n) {
                mutate(input, random);
            }
            run(input);
        }
        return 0;
    }
    for (int i = 1; i < argc; ++i) {
        std::ifstream in(argv[i], std::ios::binary);
        const std::vector<char> content{std::istreambuf_iterator<char>(in), {}};
        run(vtpmd::to_bytes(std::as_bytes(std::span(content))));
    }
    return 0;
}
