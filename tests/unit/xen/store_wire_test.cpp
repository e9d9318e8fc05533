#include "xen/store_wire.hpp"

#include "check.hpp"
#include <algorithm>
#include <cerrno>

namespace xen_store_wire_test {

using namespace vtpmd;
using namespace vtpmd::xen;

TEST_SUITE("xen") {
    TEST_CASE("xenstore wire: a header is sixteen bytes in host order and comes back as it was") {
        std::string out;
        append_header(out, {StoreOp::write, 7, 0x01020304, 42});
        REQUIRE(out.size() == store_header_size);
        CHECK(out[0] == 11);
        CHECK(out[8] == 4);
        std::array<char, store_header_size> raw{};
        std::copy(out.begin(), out.end(), raw.begin());
        StoreHeader h = parse_header(raw);
        CHECK(h.op == StoreOp::write);
        CHECK(h.request == 7);
        CHECK(h.transaction == 0x01020304);
        CHECK(h.length == 42);
    }
    TEST_CASE("xenstore wire: strings end in NUL, the last one need not") {
        using namespace std::string_view_literals;
        CHECK(split_strings(""sv).empty());
        CHECK(split_strings("a\0bc\0"sv) == std::vector<std::string>{"a", "bc"});
        CHECK(split_strings("a\0bc"sv) == std::vector<std::string>{"a", "bc"});
        CHECK(split_strings("\0"sv) == std::vector<std::string>{""});
    }
    TEST_CASE("xenstore wire: errors have names, unknown ones are EIO") {
        CHECK(store_error("ENOENT", "x").code == Errc::not_found);
        CHECK(store_error("EACCES", "x").code == Errc::permission);
        CHECK(store_error("EAGAIN", "x").code == Errc::busy);
        CHECK(store_error("EWHAT", "x").code == Errc::io);
        CHECK(store_error(store_error_name(E2BIG), "x").code == Errc::too_large);
    }
    TEST_CASE("xenstore wire: a part of a directory ends the list by an empty name") {
        using namespace std::string_view_literals;
        auto part = parse_directory_part("5\0a\0bb\0"sv);
        REQUIRE(part);
        CHECK(part->generation == "5");
        CHECK(part->names == std::vector<std::string>{"a", "bb"});
        CHECK(part->bytes == 5);
        CHECK_FALSE(part->last);
        part = parse_directory_part("5\0c\0\0"sv);
        REQUIRE(part);
        CHECK(part->names == std::vector<std::string>{"c"});
        CHECK(part->last);
        CHECK(parse_directory_part("5\0\0"sv)->last);
        CHECK_FALSE(parse_directory_part("5"sv));
    }
}

} // namespace xen_store_wire_test
