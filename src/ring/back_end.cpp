#include "ring/back_end.hpp"

#include "util/cancelled.hpp"
#include "util/secret_bytes.hpp"

#if defined(__x86_64__) || defined(__i386__)
#include <immintrin.h>
#endif

namespace vtpmd::ring {

namespace {

void relax() noexcept {
#if defined(__x86_64__) || defined(__i386__)
    _mm_pause();
#endif
}

} // namespace

BackEnd::BackEnd(BackEndOptions options, Parts parts, Link link)
    : options_(std::move(options))
    , parts_(parts)
    , link_(std::move(link))
    , page_(link_.page->bytes())
    , work_(parts_.fabric.executor())
    , looking_(parts_.fabric.executor(), parts_.log)
    , working_(parts_.fabric.executor(), parts_.log) {}

void BackEnd::start() {
    looking_.spawn(options_.name + " events", look_loop());
    working_.spawn(options_.name, work_loop());
}

Task<> BackEnd::stop(Clock::duration patience) {
    stopping_ = true;
    work_.close(); // the worker ends after the request that it is at
    if (!working_.empty() && patience > Clock::duration::zero()) {
        // join() cannot be cancelled: the cancelling is what runs beside it.
        auto cancel_later = [](TaskGroup& group, Clock& clock, Clock::duration after) -> Task<> {
            if (auto stopped = co_await clock.sleep_for(after); !stopped) {
                group.cancel();
            }
        };
        TaskGroup watch(parts_.fabric.executor(), parts_.log);
        watch.spawn(options_.name + " patience", cancel_later(working_, parts_.fabric.clock(), patience));
        co_await working_.join();
        watch.cancel();
        co_await watch.join();
    }
    if (state_.phase() != BackState::Phase::waiting) {
        parts_.sink.cancel();
    }
    working_.cancel();
    looking_.cancel();
    co_await working_.join();
    co_await looking_.join();
}

Task<> BackEnd::look_loop() {
    for (;;) {
        look(); // at once: the front end may have sent its first request before we were connected
        if (auto ec = co_await link_.channel->wait(); ec) {
            co_return;
        }
    }
}

Task<> BackEnd::work_loop() {
    co_await asio::this_coro::throw_if_cancelled(false);
    for (;;) {
        const bool cut_off = is_cancelled(co_await asio::this_coro::cancellation_state);
        if (cut_off) {
            co_return; // the front end is gone: nobody reads the page
        }
        if (!request_) {
            if (auto ec = co_await work_.wait(); ec) {
                co_return;
            }
            continue;
        }
        Request request = std::move(*request_);
        request_.reset();
        Bytes response = co_await parts_.sink.execute(std::move(request.packet), request.header.locality);
        const bool too_late = is_cancelled(co_await asio::this_coro::cancellation_state);
        if (too_late) {
            co_return;
        }
        if (response.empty() || response.size() > data_capacity(request.header.extra_pages)) {
            if (!response.empty()) {
                warn(fmt::format("a response of {} bytes does not fit into the ring", response.size()));
            }
            act(state_.rejected());
        } else if (state_.completed() == BackState::Action::publish) {
            answer(request.header, response);
        }
        cleanse(response);
        if (stopping_) {
            co_return;
        }
        if (options_.spin > Clock::duration::zero()) {
            spin();
        }
    }
}

void BackEnd::look() {
    if (!stopping_) {
        act(state_.saw(page_.state()));
    }
}

void BackEnd::act(BackState::Action action) {
    switch (action) {
    case BackState::Action::none:
    case BackState::Action::publish: // by the worker, which has the response
        return;
    case BackState::Action::take:
        take();
        return;
    case BackState::Action::cancel:
        ++parts_.counters.cancels;
        parts_.sink.cancel();
        return;
    case BackState::Action::drop:
        drop();
        return;
    case BackState::Action::complain:
        ++parts_.counters.bad_state;
        warn("the ring's state is none that exists");
        return;
    }
}

void BackEnd::take() {
    const PageHeader header = page_.header();
    if (header.extra_pages > extra_pages_limit || header.length > data_capacity(header.extra_pages)) {
        ++parts_.counters.rejected;
        warn(fmt::format("a request of {} bytes with {} extra pages was dropped", header.length, header.extra_pages));
        act(state_.rejected());
        return;
    }
    if (auto mapped = map_extra(header); !mapped) {
        ++parts_.counters.rejected;
        warn(fmt::format("a request was dropped: {}", mapped.error().message));
        act(state_.rejected());
        return;
    }
    ++parts_.counters.requests;
    request_.emplace(Request{header, page_.read(header, header.length, extra_ ? extra_->bytes() : MutByteView{})});
    work_.set();
}

/// The extra pages of this request, kept mapped as long as they stay the same.
Result<void> BackEnd::map_extra(const PageHeader& header) {
    auto refs = page_.extra_refs(header.extra_pages);
    if (refs == extra_refs_) {
        return {};
    }
    extra_.reset();
    extra_refs_.clear();
    if (refs.empty()) {
        return {};
    }
    auto mapped = parts_.fabric.map(link_.channel->remote(), refs);
    if (!mapped) {
        return std::move(mapped).error();
    }
    extra_ = std::move(*mapped);
    extra_refs_ = std::move(refs);
    return {};
}

void BackEnd::answer(const PageHeader& header, ByteView response) {
    page_.write(header, response, extra_ ? extra_->bytes() : MutByteView{});
    page_.set_state(state_finish);
    (void)link_.channel->notify(); // an error means that the front end is gone; the handshake hears of it
}

void BackEnd::drop() {
    page_.set_state(state_idle);
    (void)link_.channel->notify();
}

bool BackEnd::spin() {
    const auto start = std::chrono::steady_clock::now();
    // Only for a guest that comes back quickly: after a pause the first request pays for a wake-up.
    const bool quick = start - answered_ < 4 * options_.spin;
    answered_ = start;
    if (!quick && !spin_pays_) {
        return false;
    }
    spin_pays_ = false;
    ++parts_.counters.spins;
    do {
        for (int i = 0; i < 32; ++i) {
            const auto seen = page_.state();
            if (seen == state_submit || seen == state_cancel) {
                look();
                if (request_) {
                    ++parts_.counters.spun;
                    spin_pays_ = true;
                    answered_ = std::chrono::steady_clock::now();
                    return true;
                }
                return false;
            }
            relax();
        }
    } while (std::chrono::steady_clock::now() - start < options_.spin);
    return false;
}

void BackEnd::warn(std::string_view what) {
    parts_.log.warning_limited(parts_.limit, parts_.fabric.clock().now(), "{}: {}", options_.name, what);
}

} // namespace vtpmd::ring
