#include "util/wire.hpp"

#include <doctest/doctest.h>

namespace util_wire_test {

using namespace vtpmd;

TEST_SUITE("util") {
    TEST_CASE("wire: numbers keep the byte order of the method's name") {
        WireWriter w;
        w.u8(1).be16(0x0203).be32(0x04050607).be64(0x08090a0b0c0d0e0fULL).le16(0x1110).le32(0x15141312);
        WireReader r(w.view());
        for (unsigned i = 1; i <= 0x15; ++i) {
            CHECK(r.u8() == i);
        }
        CHECK(r.expect_end());
    }
    TEST_CASE("wire: truncation at every length fails and sticks") {
        WireWriter w;
        w.be32(7).be16(8).u8(9);
        for (std::size_t n = 0; n < w.size(); ++n) {
            WireReader r(w.view().first(n));
            r.be32();
            r.be16();
            r.u8();
            CHECK_FALSE(r.ok());
            CHECK(r.be64() == 0);
        }
    }
    TEST_CASE("wire: a trailing byte is not the end") {
        WireWriter w;
        w.be16(1).u8(0);
        WireReader r(w.view());
        CHECK(r.be16() == 1);
        CHECK(r.ok());
        CHECK_FALSE(r.expect_end());
    }
}

} // namespace util_wire_test
