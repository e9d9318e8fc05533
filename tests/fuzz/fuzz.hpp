// A harness is one file NAME_fuzz.cpp that ends with a Harness of that NAME and stands in `fuzz_targets` in meson.build.
// With -Dfuzz=true libFuzzer drives each as a program of its own; without, one program has them all and runs each for a
// second or so over its seeds and many mutations of them, the same every time, as a test of the suite `fuzz` (driver.cpp).
#pragma once

#include "util/bytes.hpp"

#include <string_view>
#include <vector>

namespace vtpmd::fuzz {

struct Harness {
    using Seeds = std::vector<Bytes> (*)();
    using Run = void (*)(ByteView input);

    /// Enters itself into all(). `name` stays where it is.
    Harness(std::string_view name, Seeds seeds, Run run);

    std::string_view name;
    Seeds seeds; ///< good inputs to start from
    Run run;     ///< tells by fuzz_check() of a property that does not hold

    /// Those of this program.
    static std::vector<const Harness*>& all();
};

/// Ends the program with the property's text, which stops a fuzzer as a crash does.
void fuzz_check(bool holds, const char* property);

} // namespace vtpmd::fuzz
