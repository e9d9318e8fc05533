// The asking end of a ring: shares the page, sends one request at a time, waits for its answer.
#pragma once

#include "ring/page.hpp"
#include "util/asio.hpp"
#include "xen/fabric.hpp"

#include <memory>
#include <string>

namespace vtpmd::ring {

/// What an answer, or its absence, came to.
class FrontEnd {
  public:
    /// Shares `1 + extra_pages` pages with the back end's domain and allocates a port for it.
    static Result<std::unique_ptr<FrontEnd>> make(xen::Fabric& fabric, xen::DomId back, std::size_t extra_pages);
    FrontEnd(const FrontEnd&) = delete;
    FrontEnd& operator=(const FrontEnd&) = delete;
    ~FrontEnd() = default;

    /// What xenstore is told.
    [[nodiscard]] xen::GrantRef ref() const noexcept { return pages_->refs()[0]; }
    [[nodiscard]] xen::Port port() const noexcept { return channel_->port(); }

    /// Sends a request. Errc::too_large: over capacity(); busy: the last one has no answer yet.
    Result<void> submit(ByteView request, std::uint8_t locality);
    /// Waits for the answer to it. Errc::canceled: the back end dropped it, or the task was cancelled; protocol: an
    /// answer longer than the ring; closed: the event channel is gone.
    Task<Result<Bytes>> answer();
    /// Asks the back end to end the request early; answer() still has to be awaited.
    void cancel();

    [[nodiscard]] std::size_t capacity() const noexcept { return data_capacity(extra_); }
    [[nodiscard]] xen::EventChannel& channel() noexcept { return *channel_; }
    [[nodiscard]] Page& page() noexcept { return page_; }

  private:
    FrontEnd(std::unique_ptr<xen::Pages> pages, std::unique_ptr<xen::EventChannel> channel);
    [[nodiscard]] MutByteView extra_bytes() noexcept { return pages_->bytes().subspan(xen::page_size); }

    std::unique_ptr<xen::Pages> pages_;
    std::unique_ptr<xen::EventChannel> channel_;
    std::size_t extra_;
    Page page_;
    bool busy_ = false;
};

} // namespace vtpmd::ring
