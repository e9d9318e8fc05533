// A stream between two processes, each with its own loop, that can be cut and held up.
#pragma once

#include "proto/link/channel.hpp"

#include <deque>
#include <memory>
#include <optional>

namespace vtpmd::sim {

class Link final : public proto::Channel {
  public:
    /// What lies between two ends.
    struct Way {
        /// The reader's process; it has to tell when it ends (reader_gone).
        explicit Way(asio::any_io_executor reader)
            : wake(std::in_place, std::move(reader), asio::steady_timer::time_point::max()) {}
        std::deque<Bytes> frames;
        std::optional<asio::steady_timer> wake; ///< never expires; cancelled when there is news; goes with its loop
        bool closed = false;
        bool held_up = false; ///< what was sent does not come yet
        void news() {
            if (wake) {
                wake->cancel();
            }
        }
        void reader_gone() {
            closed = true;
            frames.clear();
            wake.reset();
        }
    };
    struct Wire {
        std::shared_ptr<Way> to_manager, to_instance;
        void cut() const {
            for (const auto& way : {to_manager, to_instance}) {
                way->closed = true;
                way->frames.clear();
                way->held_up = false;
                way->news();
            }
        }
        void hold_up(bool on) const {
            for (const auto& way : {to_manager, to_instance}) {
                way->held_up = on;
                way->news();
            }
        }
    };
    Link(std::shared_ptr<Way> in, std::shared_ptr<Way> out, std::string peer)
        : in_(std::move(in))
        , out_(std::move(out))
        , peer_(std::move(peer)) {}
    ~Link() override { close(); }
    Link(const Link&) = delete;
    Link& operator=(const Link&) = delete;

    Task<Result<Bytes>> receive() override {
        auto in = in_;
        while (in->held_up || in->frames.empty()) {
            if (closed_ || (in->closed && !in->held_up)) {
                co_return make_error(Errc::closed, "{}: closed", peer_);
            }
            (void)co_await in->wake->async_wait(use_tuple);
            const auto state = co_await asio::this_coro::cancellation_state;
            if (state.cancelled() != asio::cancellation_type::none) {
                co_return make_error(Errc::canceled, "{}: cancelled", peer_);
            }
        }
        Bytes frame = std::move(in->frames.front());
        in->frames.pop_front();
        co_return frame;
    }
    Task<Result<void>> send(ByteView frame) override {
        if (closed_ || out_->closed) {
            co_return make_error(Errc::closed, "{}: closed", peer_);
        }
        out_->frames.push_back(to_bytes(frame));
        out_->news();
        co_return Result<void>{};
    }
    void close() override {
        closed_ = true;
        for (const auto& way : {in_, out_}) {
            way->closed = true;
            way->news();
        }
    }
    [[nodiscard]] std::string peer() const override { return peer_; }

  private:
    std::shared_ptr<Way> in_, out_;
    const std::string peer_;
    bool closed_ = false;
};

} // namespace vtpmd::sim
