#include "fuzz.hpp"

#include <cstdio>
#include <cstdlib>

void vtpmd::fuzz::fuzz_check(bool holds, const char* property) {
    if (!holds) {
        std::fprintf(stderr, "does not hold: %s\n", property);
        std::abort();
    }
}
