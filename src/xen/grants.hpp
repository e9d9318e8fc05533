// Shared memory. A GrantDevice maps pages that another domain granted (/dev/xen/gntdev) and shares pages of its own
// (/dev/xen/gntalloc), or simulates both. What a guest sees in such a page it can change at any moment: only ring/
// reads them, through its copy-once view.
#pragma once

#include "util/bytes.hpp"
#include "util/result.hpp"
#include "xen/types.hpp"

#include <memory>
#include <span>
#include <vector>

namespace vtpmd::xen {

/// Pages mapped or shared, given back by the destructor. Contiguous in memory.
class Pages {
  public:
    virtual ~Pages() = default;
    [[nodiscard]] virtual MutByteView bytes() noexcept = 0;
    /// Of shared pages: what the other domain needs to map them, one a page. Empty for mapped ones.
    [[nodiscard]] virtual std::span<const GrantRef> refs() const noexcept { return {}; }
};

class GrantDevice {
  public:
    virtual ~GrantDevice() = default;
    /// Readable and writable. An error if the reference is not granted to us.
    virtual Result<std::unique_ptr<Pages>> map(DomId domain, std::span<const GrantRef> refs) = 0;
    /// Fresh zeroed pages that `domain` may map and write.
    virtual Result<std::unique_ptr<Pages>> share(DomId domain, std::size_t count) = 0;
};

} // namespace vtpmd::xen
