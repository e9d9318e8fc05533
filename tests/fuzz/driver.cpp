// Runs harnesses without libFuzzer:  vtpmd-fuzz NAME RUNS  mutates that harness's seeds RUNS times, always in the same way;
// vtpmd-fuzz NAME FILE...  runs it once on each file (what a fuzzer found).
#include "fuzz.hpp"

#include <algorithm>
#include <charconv>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <iterator>
#include <random>
#include <sysexits.h>

using vtpmd::Bytes;
using vtpmd::fuzz::Harness;

namespace {

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

void run_mutations(const Harness& harness, unsigned runs) {
    const std::vector<Bytes> seeds = harness.seeds();
    std::mt19937 random(1); // NOLINT(bugprone-random-generator-seed): the same every time
    for (const Bytes& seed : seeds) {
        harness.run(seed);
    }
    for (unsigned i = 0; i < runs; ++i) {
        Bytes input = seeds.empty() ? Bytes{} : seeds[random() % seeds.size()];
        for (auto n = random() % 4; n != 0; --n) {
            mutate(input, random);
        }
        harness.run(input);
    }
}

bool run_file(const Harness& harness, const char* path) {
    std::ifstream in(path, std::ios::binary);
    const std::vector<char> content{std::istreambuf_iterator<char>(in), {}};
    if (!in) {
        std::fprintf(stderr, "%s: cannot be read\n", path);
        return false;
    }
    harness.run(vtpmd::to_bytes(std::as_bytes(std::span(content))));
    return true;
}

int usage() {
    std::fprintf(stderr, "vtpmd-fuzz NAME RUNS|FILE...; NAME is one of:");
    for (const Harness* harness : Harness::all()) {
        std::fprintf(stderr, " %.*s", static_cast<int>(harness->name.size()), harness->name.data());
    }
    std::fprintf(stderr, "\n");
    return EX_USAGE;
}

} // namespace

int main(int argc, char** argv) {
    const auto& all = Harness::all();
    const auto harness =
        std::find_if(all.begin(), all.end(), [&](const Harness* h) { return argc > 2 && h->name == argv[1]; });
    if (harness == all.end()) {
        return usage();
    }
    unsigned runs = 0;
    const char* end = argv[2] + std::strlen(argv[2]);
    if (argc == 3 && std::from_chars(argv[2], end, runs).ptr == end) {
        run_mutations(**harness, runs);
        return 0;
    }
    return std::all_of(argv + 2, argv + argc, [&](const char* path) { return run_file(**harness, path); }) ? 0 : 1;
}
