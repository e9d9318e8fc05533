// A harness is one file NAME_fuzz.cpp that defines the two functions below and stands in `fuzz_targets` in meson.build.
// With -Dfuzz=true libFuzzer drives it; without, driver.cpp runs it for a second or so over its seeds and many mutations
// of them, the same every time, as a test of the suite `fuzz`. A property that does not hold is told by fuzz_check().
#pragma once

#include "util/bytes.hpp"

#include <cstdint>
#include <vector>

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size);

namespace vtpmd::fuzz {

/// Good inputs to start from.
std::vector<Bytes> seeds();

/// Ends the program with the property's text, which stops a fuzzer as a crash does.
void fuzz_check(bool holds, const char* property);

} // namespace vtpmd::fuzz
