#include "ring/front_end.hpp"

namespace vtpmd::ring {

FrontEnd::FrontEnd(std::unique_ptr<xen::Pages> pages, std::unique_ptr<xen::EventChannel> channel)
    : pages_(std::move(pages))
    , channel_(std::move(channel))
    , extra_(pages_->refs().size() - 1)
    , page_(pages_->bytes().first(xen::page_size)) {
    page_.set_extra_refs(pages_->refs().subspan(1));
}

Result<std::unique_ptr<FrontEnd>> FrontEnd::make(xen::Fabric& fabric, xen::DomId back, std::size_t extra_pages) {
    auto pages = fabric.share(back, 1 + extra_pages);
    if (!pages) {
        return std::move(pages).error();
    }
    auto channel = fabric.bind_unbound(back);
    if (!channel) {
        return std::move(channel).error();
    }
    return std::unique_ptr<FrontEnd>(new FrontEnd(std::move(*pages), std::move(*channel)));
}

Result<void> FrontEnd::submit(ByteView request, std::uint8_t locality) {
    if (busy_) {
        return make_error(Errc::busy, "the ring has a request under way");
    }
    if (request.size() > capacity()) {
        return make_error(Errc::too_large, "a request of {} bytes; the ring carries {}", request.size(), capacity());
    }
    const PageHeader layout{.extra_pages = static_cast<std::uint8_t>(extra_)};
    page_.set_locality(locality);
    page_.write(layout, request, extra_bytes());
    page_.set_state(state_submit);
    busy_ = true;
    return channel_->notify();
}

Task<Result<Bytes>> FrontEnd::answer() {
    for (;;) {
        const std::uint8_t state = page_.state();
        if (state == state_finish || state == state_idle) {
            busy_ = false;
            if (state == state_idle) {
                co_return make_error(Errc::canceled, "the back end dropped the request");
            }
            const PageHeader header = page_.header();
            if (header.length > capacity()) {
                co_return make_error(Errc::protocol, "an answer of {} bytes; the ring carries {}", header.length,
                                     capacity());
            }
            const PageHeader layout{.extra_pages = static_cast<std::uint8_t>(extra_)};
            co_return page_.read(layout, header.length, extra_bytes());
        }
        if (auto ec = co_await channel_->wait(); ec) {
            co_return make_error(ec == asio::error::eof ? Errc::closed : Errc::canceled, "the ring: {}", ec.message());
        }
    }
}

void FrontEnd::cancel() {
    if (busy_) {
        page_.set_state(state_cancel);
        (void)channel_->notify();
    }
}

} // namespace vtpmd::ring
