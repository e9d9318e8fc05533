// A consistent copy of the manager's image while that goes on being written: the superblock, one half of the journal up to the
// end of the checkpoint that was written for it, and zeros. Its size is the image's; memory does not grow with it.
#pragma once

#include "util/asio.hpp"
#include "util/bytes.hpp"
#include "util/result.hpp"

#include <functional>
#include <memory>

namespace vtpmd::store {

class ImageCopy {
  public:
    virtual ~ImageCopy() = default;
    /// Bytes of all of it.
    [[nodiscard]] virtual std::uint64_t size() const = 0;
    /// The next bytes of it, as many as come at once and fit `into`; 0 at its end. Errc::unavailable: so much was changed since
    /// it was begun that what is left of it is being written over (begin again); Errc::closed.
    virtual Task<Result<std::size_t>> read(MutByteView into) = 0;
};

struct CopyPlan {
    Bytes head;   ///< all before the halves
    Bytes header; ///< of the half: on the disk it may be zeroed by a later checkpoint
    std::size_t half = 0;
    std::uint64_t half_size = 0;
    std::uint64_t used = 0; ///< bytes of the half up to the end of its checkpoint
};
/// `read` fills its buffer from an offset of the image, as long as that half was not begun anew.
[[nodiscard]] std::unique_ptr<ImageCopy>
make_image_copy(CopyPlan plan, std::function<Task<Result<void>>(std::uint64_t, MutByteView)> read);

} // namespace vtpmd::store
