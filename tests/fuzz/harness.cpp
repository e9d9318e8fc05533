#include "fuzz.hpp"

#include <cstdio>
#include <cstdlib>

namespace vtpmd::fuzz {

Harness::Harness(std::string_view name_, Seeds seeds_, Run run_)
    : name(name_)
    , seeds(seeds_)
    , run(run_) {
    all().push_back(this);
}

std::vector<const Harness*>& Harness::all() {
    static std::vector<const Harness*> harnesses;
    return harnesses;
}

void fuzz_check(bool holds, const char* property) {
    if (!holds) {
        std::fprintf(stderr, "does not hold: %s\n", property);
        std::abort();
    }
}

} // namespace vtpmd::fuzz
