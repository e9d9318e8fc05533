// libFuzzer's way into the one harness of its program.
#include "fuzz.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    vtpmd::fuzz::Harness::all().at(0)->run(vtpmd::view_of(data, size));
    return 0;
}
