// Two ends of a channel in memory, which can be cut at will.
#pragma once

#include "proto/link/channel.hpp"

#include <deque>
#include <memory>

namespace vtpmd::fakes {

class MemoryChannel final : public proto::Channel {
  public:
    struct Pair {
        std::unique_ptr<MemoryChannel> a, b;
    };
    static Pair make(asio::any_io_executor executor) {
        auto one = std::make_shared<Pipe>(executor);
        auto two = std::make_shared<Pipe>(executor);
        return {std::unique_ptr<MemoryChannel>(new MemoryChannel(one, two)),
                std::unique_ptr<MemoryChannel>(new MemoryChannel(two, one))};
    }
    ~MemoryChannel() override { close(); }

    Task<Result<Bytes>> receive() override {
        auto in = in_;
        while (in->frames.empty()) {
            if (in->closed) {
                co_return make_error(Errc::closed, "memory: closed");
            }
            auto [ec] = co_await in->wake.async_wait(use_tuple);
            auto state = co_await asio::this_coro::cancellation_state;
            if (state.cancelled() != asio::cancellation_type::none) {
                co_return make_error(Errc::canceled, "memory: cancelled");
            }
            (void)ec;
        }
        Bytes frame = std::move(in->frames.front());
        in->frames.pop_front();
        co_return frame;
    }
    Task<Result<void>> send(ByteView frame) override {
        if (out_->closed || in_->closed) {
            co_return make_error(Errc::closed, "memory: closed");
        }
        ++sent;
        out_->frames.push_back(to_bytes(frame));
        out_->wake.cancel();
        co_return Result<void>{};
    }
    void close() override {
        for (auto& p : {in_, out_}) {
            p->closed = true;
            p->wake.cancel();
        }
    }
    [[nodiscard]] std::string peer() const override { return "memory"; }

    std::size_t sent = 0;

  private:
    struct Pipe {
        explicit Pipe(asio::any_io_executor e)
            : wake(e, asio::steady_timer::time_point::max()) {}
        std::deque<Bytes> frames;
        asio::steady_timer wake; ///< never expires; cancelled when there is news
        bool closed = false;
    };
    MemoryChannel(std::shared_ptr<Pipe> in, std::shared_ptr<Pipe> out)
        : in_(std::move(in))
        , out_(std::move(out)) {}
    std::shared_ptr<Pipe> in_, out_;
};

} // namespace vtpmd::fakes
