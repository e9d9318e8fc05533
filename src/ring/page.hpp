// The shared page of a vTPM ring (tpmif, protocol v2; xen/io/tpmif.h). Host byte order.
//
//   offset  size  field
//        0     4  length          of the request or the response, in bytes
//        4     1  state           0 IDLE, 1 SUBMIT, 2 FINISH, 3 CANCEL
//        5     1  locality        of this request
//        6     1  pad
//        7     1  nr_extra_pages  n further pages that carry data
//        8    4n  extra_pages     their grant references
//     8+4n     -  data            to the end of this page, and on in the extra pages
//
// The back end writes IDLE or FINISH, the front end SUBMIT or CANCEL. The other side can change every byte at any
// moment: each field is read once into private memory, a packet is copied once, and nobody parses what is shared.
#pragma once

#include "util/bytes.hpp"
#include "xen/types.hpp"

#include <array>
#include <cstdint>
#include <span>
#include <vector>

namespace vtpmd::ring {

inline constexpr std::uint8_t state_idle = 0;
inline constexpr std::uint8_t state_submit = 1;
inline constexpr std::uint8_t state_finish = 2;
inline constexpr std::uint8_t state_cancel = 3;

/// One more page carries the longest packet (4096 bytes); a front end may offer a few to spare.
inline constexpr std::size_t extra_pages_limit = 4;

/// Where data begins with n extra pages. (The header's comment says 16 + 4n; every implementation has it here.)
[[nodiscard]] constexpr std::size_t data_offset(std::size_t extra_pages) noexcept { return 8 + 4 * extra_pages; }
/// Bytes that fit with n extra pages: 4088 without.
[[nodiscard]] constexpr std::size_t data_capacity(std::size_t extra_pages) noexcept {
    return xen::page_size * (1 + extra_pages) - data_offset(extra_pages);
}

/// What stood in the first page at one moment, each field read once.
struct PageHeader {
    std::uint32_t length = 0;
    std::uint8_t locality = 0;
    std::uint8_t extra_pages = 0;
    friend bool operator==(const PageHeader&, const PageHeader&) = default;
};

/// A view of the first page, and of the extra pages once they are mapped. Does not own them.
class Page {
  public:
    /// `first`: one page.
    explicit Page(MutByteView first) noexcept
        : first_(first) {}

    /// Acquires: what the peer wrote before it set the state is seen after this.
    [[nodiscard]] std::uint8_t state() const noexcept;
    /// Releases: what was written before is seen by who sees the state. The peer still has to be notified.
    void set_state(std::uint8_t state) noexcept;
    [[nodiscard]] PageHeader header() const noexcept;
    /// `count`, at most extra_pages_limit, references of further pages.
    [[nodiscard]] std::vector<xen::GrantRef> extra_refs(std::size_t count) const;

    /// Copies `length` bytes of data out, once. `extra` is the mapped extra pages, as many as `header` says; what
    /// data_capacity() cannot hold is a broken invariant.
    [[nodiscard]] Bytes read(const PageHeader& header, std::size_t length, ByteView extra) const;
    /// Writes data and its length; the layout is the caller's (private) `header`'s.
    void write(const PageHeader& header, ByteView data, MutByteView extra) noexcept;

    // The front end's part.
    void set_locality(std::uint8_t locality) noexcept;
    void set_extra_refs(std::span<const xen::GrantRef> refs) noexcept;

  private:
    MutByteView first_;
};

} // namespace vtpmd::ring
