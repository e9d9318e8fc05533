#include "proto/query/answerer.hpp"

#include "util/deadline.hpp"

#include <algorithm>
#include <boost/asio/experimental/parallel_group.hpp>

namespace vtpmd::proto {

namespace {

constexpr Clock::duration attach_patience = std::chrono::seconds(10);
constexpr Clock::duration last_report_patience = std::chrono::seconds(1);

/// What the vTPM's own link is told, and time does not cure.
bool is_final(Errc code) {
    switch (code) {
    case Errc::unsupported:
    case Errc::tombstone:
    case Errc::busy:
    case Errc::permission:
    case Errc::mismatch:
    case Errc::not_found:
    case Errc::version:
        return true;
    default:
        return false;
    }
}

/// Runs both until one ends, then ends the other; the outcome of the first.
Task<Result<void>> either(Task<Result<void>> a, Task<Result<void>> b) {
    auto executor = co_await asio::this_coro::executor;
    std::array<std::optional<Result<void>>, 2> outcomes;
    auto run = [](Task<Result<void>> op, std::optional<Result<void>>& out) -> Task<> {
        out.emplace(co_await std::move(op));
    };
    auto [order, first, second] = co_await asio::experimental::make_parallel_group(
                                      asio::co_spawn(executor, run(std::move(a), outcomes[0]), asio::deferred),
                                      asio::co_spawn(executor, run(std::move(b), outcomes[1]), asio::deferred))
                                      .async_wait(asio::experimental::wait_for_one(), asio::use_awaitable);
    if (outcomes[order[0]]) {
        co_return std::move(*outcomes[order[0]]);
    }
    std::rethrow_exception(order[0] == 0 ? first : second);
}

} // namespace

Answerer::Answerer(Parts parts)
    : parts_(std::move(parts))
    , sending_(parts_.executor)
    , group_(parts_.executor, parts_.log) {}

void Answerer::start() { group_.spawn("questions of the manager", run()); }

Task<> Answerer::stop() {
    // A task that is cancelled before it began throws where nobody catches it: let it begin.
    (void)co_await asio::post(parts_.executor, use_tuple);
    if (channel_ != nullptr) {
        auto last = [](Answerer& self) -> Task<Result<void>> {
            while (self.channel_ != nullptr) {
                auto report = self.parts_.questioned.next_report();
                if (!report) {
                    break;
                }
                Bytes frame = encode_report(*report);
                if (auto sent = co_await self.send(*self.channel_, std::move(frame)); !sent) {
                    co_return sent;
                }
            }
            if (self.channel_ == nullptr) {
                co_return Result<void>{};
            }
            Report end = self.parts_.questioned.summary();
            end.last = true;
            Bytes frame = encode_report(end);
            co_return co_await self.send(*self.channel_, std::move(frame));
        };
        Task<Result<void>> reporting = last(*this);
        (void)co_await with_deadline(parts_.clock, last_report_patience, "a last report", std::move(reporting));
    }
    group_.cancel();
    co_await group_.join();
}

Task<> Answerer::run() {
    Clock::duration pause = first_pause;
    for (;;) {
        std::unique_ptr<Channel> channel;
        auto attached = co_await attach(channel);
        if (attached) {
            refused_ = false;
            parts_.questioned.report_anew();
            channel_ = channel.get();
            struct Detach {
                Channel*& channel;
                ~Detach() { channel = nullptr; }
            } detach{channel_};
            const auto begun = parts_.clock.now();
            attached = co_await converse(*channel);
            if (parts_.clock.now() - begun >= longest_pause) {
                pause = first_pause; // it was of use
            }
            channel->close();
            auto sent = co_await sending_.acquire(); // what stop() is at
        }
        channel.reset();
        const bool offered = attached || !is_final(attached.error().code);
        if (!offered && !refused_) {
            parts_.log.info("the manager does not ask this instance, which goes on without: {}",
                            attached.error().code == Errc::unsupported ? "it is older" : attached.error().message);
            refused_ = true;
        }
        if (auto stopped = co_await parts_.clock.sleep_for(offered ? pause : refused_pause)) {
            co_return;
        }
        pause = std::min(2 * pause, longest_pause);
    }
}

/// The connection first: as long as there is no manager, the vTPM's own link is left alone.
Task<Result<void>> Answerer::attach(std::unique_ptr<Channel>& channel) {
    auto connected = co_await parts_.connect();
    if (parts_.tried) {
        parts_.tried(connected.has_value());
    }
    if (!connected) {
        co_return make_error(Errc::unavailable, "{}", connected.error().message); // as a manager that starts
    }
    auto key = co_await parts_.manager.invite();
    if (!key) {
        co_return std::move(key).error();
    }
    channel = std::move(*connected);
    AttachRequest request{.uuid = parts_.uuid, .key = std::move(*key)};
    Bytes frame = encode_attach(request);
    auto sent = co_await channel->send(frame);
    cleanse(frame);
    if (!sent) {
        co_return sent;
    }
    auto answer = co_await with_deadline(parts_.clock, attach_patience, "the manager", channel->receive());
    if (!answer) {
        co_return std::move(answer).error();
    }
    auto attached = parse_response(*answer);
    if (!attached && attached.error().code == Errc::permission) {
        co_return make_error(Errc::unavailable, "the vTPM's own link has ended meanwhile");
    }
    co_return attached ? Result<void>{} : Result<void>(std::move(attached).error());
}

Task<Result<void>> Answerer::converse(Channel& channel) {
    Task<Result<void>> answering = answer_all(channel);
    Task<Result<void>> reporting = report_all(channel);
    return either(std::move(answering), std::move(reporting));
}

Task<Result<void>> Answerer::answer_all(Channel& channel) {
    for (;;) {
        auto question = co_await channel.receive();
        if (!question) {
            co_return std::move(question).error();
        }
        Bytes answer = co_await answer_to(std::move(*question));
        if (auto sent = co_await send(channel, std::move(answer)); !sent) {
            co_return sent;
        }
    }
}

Task<Bytes> Answerer::answer_to(Bytes frame) {
    const auto header = parse_frame(frame);
    if (!header || header->tag != tag::request || header->code != ordinal::ask_quote) {
        const Error e = make_error(Errc::unsupported, "this instance does not know the question; start it anew");
        co_return encode_answer_error(e);
    }
    auto question = parse_ask_quote(body_of(frame));
    if (!question) {
        co_return encode_answer_error(question.error());
    }
    auto quoted = co_await parts_.questioned.quote(std::move(*question));
    auto answer = quoted ? encode_answer(*quoted) : quoted;
    co_return answer ? std::move(*answer) : encode_answer_error(answer.error());
}

Task<Result<void>> Answerer::report_all(Channel& channel) {
    for (;;) {
        co_await parts_.questioned.wait_for_news();
        while (auto report = parts_.questioned.next_report()) {
            Bytes frame = encode_report(*report);
            if (auto sent = co_await send(channel, std::move(frame)); !sent) {
                co_return sent;
            }
        }
        if (auto stopped = co_await parts_.clock.sleep_for(report_pause)) {
            co_return make_error(Errc::canceled, "stopped");
        }
    }
}

Task<Result<void>> Answerer::send(Channel& channel, Bytes frame) {
    auto held = co_await sending_.acquire();
    if (!held) {
        co_return std::move(held).error();
    }
    co_return co_await channel.send(frame);
}

} // namespace vtpmd::proto
