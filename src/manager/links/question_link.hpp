// The manager's end of the connection on which it asks an instance (proto/link/ask_messages.hpp): one question at a time, each with a bound.
//
// One coroutine, serve(), reads; whoever asks sends and waits for what serve() hands over. An answer that came too late would be taken
// for the next question's: a question that is given up ends the connection, and the instance makes a new one.
#pragma once

#include "proto/link/ask_messages.hpp"
#include "util/clock.hpp"
#include "util/fifo_lock.hpp"

#include <functional>
#include <memory>
#include <optional>

namespace vtpmd::manager {

/// Held by a shared pointer: it outlives the connection as long as somebody asks.
class QuestionLink : public std::enable_shared_from_this<QuestionLink> {
  public:
    /// A report of the instance; an error ends the connection.
    using TakeReport = std::function<Result<void>(proto::Report)>;
    /// `clock` outlives it.
    QuestionLink(asio::any_io_executor executor, Clock& clock);

    /// Once: reads until the connection ends, end() is called, or the instance says what it was not asked (Errc::protocol). `channel`
    /// is not used any more when this returns.
    Task<Result<void>> serve(proto::Channel& channel, TakeReport report);
    /// A whole question; the whole answer. Errc::closed: the connection ended first; timed_out: within `limit`, waiting for its turn
    /// included.
    Task<Result<Bytes>> ask(Bytes question, Clock::duration limit);
    /// It can be asked on now.
    [[nodiscard]] bool usable() const noexcept { return channel_ != nullptr; }
    /// Ends the connection; whoever asks gets Errc::closed.
    void end();

  private:
    struct Pending {
        explicit Pending(const asio::any_io_executor& e)
            : wake(e, asio::steady_timer::time_point::max()) {}
        asio::steady_timer wake; ///< never expires; cancelled when there is an outcome
        std::optional<Result<Bytes>> outcome;
    };
    Result<void> take(Bytes frame, const TakeReport& report);
    static Task<Result<Bytes>> ask_in_turn(std::shared_ptr<QuestionLink> self, Bytes question);

    asio::any_io_executor executor_;
    Clock& clock_;

    FifoLock turn_;
    proto::Channel* channel_ = nullptr; ///< while serve() reads
    Pending* pending_ = nullptr;        ///< of who asks, on its frame
    bool sending_ = false;
    asio::steady_timer sent_; ///< never expires; cancelled when sending_ ends
    bool ended_ = false;
};

} // namespace vtpmd::manager
