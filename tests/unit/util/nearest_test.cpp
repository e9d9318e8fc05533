#include "util/nearest.hpp"

#include <doctest/doctest.h>

namespace nearest_test {

using namespace vtpmd;

TEST_SUITE("util") {
    TEST_CASE("edit distance") {
        CHECK(edit_distance("", "") == 0);
        CHECK(edit_distance("", "abc") == 3);
        CHECK(edit_distance("abc", "") == 3);
        CHECK(edit_distance("pcr", "pcrs") == 1);
        CHECK(edit_distance("store", "sotre") == 2);
        CHECK(edit_distance("kitten", "sitting") == 3);
    }
    TEST_CASE("what is nearest, if it is near") {
        CHECK(nearest("pcrs", {"host-pcr", "pcr", "key"}) == "pcr");
        CHECK(nearest("host-pcrs", {"pcr", "host-pcr"}) == "host-pcr");
        CHECK(nearest("sock", {"socket", "store"}) == "socket");
        CHECK(nearest("colour", {"store", "guest"}).empty());
        CHECK(nearest("", {"store"}).empty());
        CHECK(nearest("x", {}).empty());
    }
}

} // namespace nearest_test
