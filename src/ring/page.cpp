#include "ring/page.hpp"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>

namespace vtpmd::ring {

namespace {

constexpr std::size_t length_at = 0;
constexpr std::size_t state_at = 4;
constexpr std::size_t locality_at = 5;
constexpr std::size_t extra_count_at = 7;
constexpr std::size_t extra_refs_at = 8;

/// One read, which the compiler may neither repeat nor leave out.
template <typename T>
T read_once(const std::byte* at) noexcept {
    return *reinterpret_cast<const volatile T*>(at); // NOLINT: aligned by the page's layout
}
template <typename T>
void write_once(std::byte* at, T value) noexcept {
    *reinterpret_cast<volatile T*>(at) = value; // NOLINT: as above
}

std::atomic_ref<std::uint8_t> state_of(MutByteView page) noexcept {
    return std::atomic_ref<std::uint8_t>(reinterpret_cast<std::uint8_t&>(page[state_at]));
}

/// After this the compiler cannot know that a copy and its source were ever equal, so it cannot read the source again.
void forget_shared() noexcept { std::atomic_signal_fence(std::memory_order_seq_cst); }

} // namespace

std::uint8_t Page::state() const noexcept { return state_of(first_).load(std::memory_order_acquire); }

void Page::set_state(std::uint8_t state) noexcept { state_of(first_).store(state, std::memory_order_release); }

PageHeader Page::header() const noexcept {
    return {read_once<std::uint32_t>(first_.data() + length_at), read_once<std::uint8_t>(first_.data() + locality_at),
            read_once<std::uint8_t>(first_.data() + extra_count_at)};
}

std::vector<xen::GrantRef> Page::extra_refs(std::size_t count) const {
    std::vector<xen::GrantRef> refs(count);
    for (std::size_t i = 0; i < count; ++i) {
        refs[i] = read_once<std::uint32_t>(first_.data() + extra_refs_at + 4 * i);
    }
    return refs;
}

Bytes Page::read(const PageHeader& header, std::size_t length, ByteView extra) const {
    const std::size_t at = data_offset(header.extra_pages);
    if (length > first_.size() - at + extra.size()) {
        std::abort();
    }
    Bytes out(length);
    const std::size_t here = std::min(length, first_.size() - at);
    std::copy_n(first_.data() + at, here, out.data());
    if (length > here) {
        std::copy_n(extra.data(), length - here, out.data() + here);
    }
    forget_shared();
    return out;
}

void Page::write(const PageHeader& header, ByteView data, MutByteView extra) noexcept {
    const std::size_t at = data_offset(header.extra_pages);
    if (data.size() > first_.size() - at + extra.size()) {
        std::abort();
    }
    const std::size_t here = std::min(data.size(), first_.size() - at);
    // An empty packet has no address; memcpy may not be given such, copy_n may.
    std::copy_n(data.data(), here, first_.data() + at);
    if (data.size() > here) {
        std::copy_n(data.data() + here, data.size() - here, extra.data());
    }
    write_once(first_.data() + length_at, static_cast<std::uint32_t>(data.size()));
}

void Page::set_locality(std::uint8_t locality) noexcept { write_once(first_.data() + locality_at, locality); }

void Page::set_extra_refs(std::span<const xen::GrantRef> refs) noexcept {
    for (std::size_t i = 0; i < refs.size(); ++i) {
        write_once(first_.data() + extra_refs_at + 4 * i, refs[i]);
    }
    write_once(first_.data() + extra_count_at, static_cast<std::uint8_t>(refs.size()));
}

} // namespace vtpmd::ring
