// Both images on a real block device (a loop device). Without the right to make one this is skipped (exit 77), unless
// VTPMD_TEST_REQUIRE_LOOP=1: then it fails.
#define DOCTEST_CONFIG_IMPLEMENT
#include "loop_device.hpp"

#include <cstdio>
#include <cstdlib>
#include <doctest/doctest.h>
#include <string_view>

int main(int argc, char** argv) {
    if (const std::string why = vtpmd::test::LoopDevice::unusable(); !why.empty()) {
        const char* required = std::getenv("VTPMD_TEST_REQUIRE_LOOP");
        const bool fail = required != nullptr && std::string_view(required) == "1";
        std::fprintf(stderr, "no loop device can be made here: %s\n", why.c_str());
        return fail ? 1 : 77;
    }
    doctest::Context context(argc, argv);
    return context.run();
}
