#include "check.hpp"

#include "hwtpm/queue/requests.hpp"

namespace hwtpm_requests_test {

using namespace vtpmd;
using namespace vtpmd::hwtpm;

namespace {
Bytes counted(unsigned first, std::size_t n) {
    Bytes out;
    for (std::size_t i = 0; i < n; ++i) {
        out.push_back(static_cast<std::byte>(first + i));
    }
    return out;
}
} // namespace

TEST_SUITE("hwtpm") {
    TEST_CASE("the pool hands out every byte once, in order, and never fewer than asked") {
        RandomPool pool({.chunk = 64, .spare = 128});
        CHECK(!pool.take(1));
        pool.add(counted(0, 10));
        CHECK(pool.take(4).value() == counted(0, 4));
        CHECK(!pool.take(7));
        pool.add(counted(10, 5));
        CHECK(pool.available() == 11);
        CHECK(pool.take(11).value() == counted(4, 11));
        CHECK(pool.available() == 0);
        CHECK(pool.take(0).value().empty());
    }
    TEST_CASE("the pool fetches only for who waits, in chunks, with some to spare") {
        RandomPool pool({.chunk = 64, .spare = 128});
        CHECK(pool.fetch_size(0) == 0); // nobody waits: an idle host asks its TPM nothing
        CHECK(pool.fetch_size(1) == 64);
        pool.add(counted(0, 100));
        CHECK(pool.fetch_size(16) == 44);
        CHECK(pool.fetch_size(1000) == 64);
        pool.add(counted(0, 44));
        CHECK(pool.fetch_size(16) == 0);
        CHECK(pool.fetch_size(17) == 1);
    }
    TEST_CASE("PCR requests are merged without doubles, and taken apart again") {
        const std::vector<PcrSelection> one = {{HashAlg::sha256, {0, 7}}, {HashAlg::sha1, {3}}};
        const std::vector<PcrSelection> two = {{HashAlg::sha256, {7, 2}}};
        const auto all = merged({one, two, {}});
        REQUIRE(all.size() == 2);
        CHECK(all[0] == PcrSelection{HashAlg::sha1, {3}});
        CHECK(all[1] == PcrSelection{HashAlg::sha256, {0, 2, 7}});
        std::vector<PcrValue> values;
        for (const auto& s : all) {
            for (unsigned i : s.pcrs) {
                values.push_back({s.bank, i, counted(i, digest_size(s.bank))});
            }
        }
        const auto first = part_of(values, one);
        REQUIRE(first.size() == 3);
        CHECK(first[0].bank == HashAlg::sha1);
        CHECK(first[2].index == 7);
        const auto second = part_of(values, two);
        REQUIRE(second.size() == 2);
        CHECK(second[0].index == 2);
        CHECK(second[1].digest == counted(7, 32));
        CHECK(part_of(values, {}).empty());
        CHECK(merged({}).empty());
    }
}

} // namespace hwtpm_requests_test
