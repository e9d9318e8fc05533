#include "check.hpp"
#include "ring/page.hpp"

#include <array>
#include <numeric>

namespace ring_page_test {

using namespace vtpmd;
using namespace vtpmd::ring;

namespace {

Bytes counting(std::size_t n) {
    Bytes out(n);
    for (std::size_t i = 0; i < n; ++i) {
        out[i] = static_cast<std::byte>(i * 7 + i / 251);
    }
    return out;
}

} // namespace

TEST_SUITE("ring") {
    TEST_CASE("page: golden bytes, host order") {
        alignas(4096) std::array<std::byte, xen::page_size> memory{};
        memory[0] = std::byte{12};
        memory[1] = std::byte{1};
        memory[4] = std::byte{state_submit};
        memory[5] = std::byte{2};
        memory[7] = std::byte{1};
        memory[8] = std::byte{0x21};
        memory[12] = std::byte{0xAB};
        Page page(memory);
        CHECK(page.state() == state_submit);
        CHECK(page.header() == PageHeader{.length = 0x10C, .locality = 2, .extra_pages = 1});
        CHECK(page.extra_refs(1) == std::vector<xen::GrantRef>{0x21});
        const Bytes data = page.read(page.header(), 2, {});
        CHECK(data == Bytes{std::byte{0xAB}, std::byte{0}});
        page.set_state(state_finish);
        CHECK(memory[4] == std::byte{2});
    }
    TEST_CASE("page: a packet over the page's end goes on in the extra pages") {
        for (std::size_t extra = 0; extra <= extra_pages_limit; ++extra) {
            alignas(4096) std::array<std::byte, xen::page_size> memory{};
            Bytes more(extra * xen::page_size);
            Page page(memory);
            std::vector<xen::GrantRef> refs(extra);
            std::iota(refs.begin(), refs.end(), 100U);
            page.set_extra_refs(refs);
            const PageHeader layout{.extra_pages = static_cast<std::uint8_t>(extra)};
            CHECK(data_capacity(extra) == memory.size() + more.size() - 8 - 4 * extra);
            for (std::size_t size :
                 {std::size_t{0}, std::size_t{1}, std::size_t{4072}, data_capacity(extra) - 1, data_capacity(extra)}) {
                const Bytes packet = counting(size);
                page.write(layout, packet, more);
                CHECK(page.header() == PageHeader{.length = static_cast<std::uint32_t>(size),
                                                  .extra_pages = static_cast<std::uint8_t>(extra)});
                CHECK(page.read(layout, size, more) == packet);
                CHECK(page.extra_refs(extra) == refs); // not written over
            }
        }
        CHECK(data_capacity(0) == 4088);
    }
}

} // namespace ring_page_test
