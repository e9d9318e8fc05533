#include "manager/links/question_link.hpp"

#include "util/deadline.hpp"

namespace vtpmd::manager {

namespace {
Error ended_early() { return make_error(Errc::closed, "its instance ended the connection before it answered"); }
} // namespace

QuestionLink::QuestionLink(asio::any_io_executor executor, Clock& clock)
    : executor_(executor)
    , clock_(clock)
    , turn_(executor)
    , sent_(executor, asio::steady_timer::time_point::max()) {}

Task<Result<void>> QuestionLink::serve(proto::Channel& channel, TakeReport report) {
    auto self = shared_from_this();
    // What reads must also tidy up, however it ends.
    co_await asio::this_coro::throw_if_cancelled(false);
    channel_ = ended_ ? nullptr : &channel;
    Result<void> outcome;
    while (!ended_ && outcome) {
        auto frame = co_await channel.receive();
        outcome = frame ? take(std::move(*frame), report) : Result<void>(frame.error());
    }
    ended_ = true;
    channel_ = nullptr;
    channel.close();
    if (pending_ != nullptr) {
        pending_->outcome = ended_early();
        pending_->wake.cancel();
    }
    co_await asio::this_coro::reset_cancellation_state(asio::disable_cancellation());
    while (sending_) {
        (void)co_await sent_.async_wait(use_tuple);
    }
    if (!outcome && (outcome.error().code == Errc::closed || outcome.error().code == Errc::canceled)) {
        outcome = Result<void>{};
    }
    co_return outcome;
}

Result<void> QuestionLink::take(Bytes frame, const TakeReport& report) {
    auto header = proto::parse_frame(frame);
    if (!header) {
        return header.error();
    }
    if (header->tag == proto::tag::request && header->code == proto::ordinal::report) {
        auto told = proto::parse_report(proto::body_of(frame));
        return told ? report(std::move(*told)) : Result<void>(told.error());
    }
    if (header->tag != proto::tag::response || pending_ == nullptr || pending_->outcome) {
        return make_error(Errc::protocol, "an instance says what it was not asked: tag 0x{:04x}, code 0x{:x}",
                          header->tag, header->code);
    }
    pending_->outcome = std::move(frame);
    pending_->wake.cancel();
    return {};
}

Task<Result<Bytes>> QuestionLink::ask(Bytes question, Clock::duration limit) {
    Task<Result<Bytes>> asking = ask_in_turn(shared_from_this(), std::move(question));
    return with_deadline(clock_, limit, "its instance", std::move(asking));
}

Task<Result<Bytes>> QuestionLink::ask_in_turn(std::shared_ptr<QuestionLink> self, Bytes question) {
    co_await asio::this_coro::throw_if_cancelled(false);
    auto held = co_await self->turn_.acquire();
    if (!held) {
        co_return std::move(held).error();
    }
    if (self->channel_ == nullptr) {
        co_return ended_early();
    }
    Pending pending(self->executor_);
    self->pending_ = &pending;
    self->sending_ = true;
    auto sent = co_await self->channel_->send(question);
    self->sending_ = false;
    self->sent_.cancel();
    while (sent && !pending.outcome) {
        (void)co_await pending.wake.async_wait(use_tuple);
        const auto state = co_await asio::this_coro::cancellation_state;
        if (!pending.outcome && state.cancelled() != asio::cancellation_type::none) {
            sent = make_error(Errc::canceled, "nobody waits for the answer any more");
        }
    }
    self->pending_ = nullptr;
    if (!pending.outcome) {
        self->end();
        co_return sent.error();
    }
    co_return std::move(*pending.outcome);
}

void QuestionLink::end() {
    ended_ = true;
    if (channel_ != nullptr) {
        channel_->close();
    }
}

} // namespace vtpmd::manager
