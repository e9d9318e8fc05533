// Callers whose requests are served together. They come in, wait for their own answer and go; whoever serves looks at
// the requests, oldest first, and answers each. A caller that is cancelled leaves; what is answered to it then is
// dropped. Loop thread only.
#pragma once

#include "util/asio.hpp"
#include "util/result.hpp"

#include <list>
#include <optional>

namespace vtpmd::hwtpm {

template <typename Request, typename Answer>
class WaitingRoom {
  public:
    struct Caller {
        Caller(const asio::any_io_executor& executor, Request r)
            : request(std::move(r))
            , answered(executor, asio::steady_timer::time_point::max()) {}
        Request request;
        std::optional<Result<Answer>> answer;
        asio::steady_timer answered; ///< never expires; cancelled when the answer is there
    };
    using Callers = std::list<std::shared_ptr<Caller>>;

    explicit WaitingRoom(asio::any_io_executor executor)
        : executor_(std::move(executor)) {}

    std::shared_ptr<Caller> enter(Request request) {
        auto caller = std::make_shared<Caller>(executor_, std::move(request));
        waiting_.push_back(caller);
        return caller;
    }
    /// The caller's answer; Errc::canceled if the awaiting task is cancelled first.
    Task<Result<Answer>> wait(std::shared_ptr<Caller> caller) {
        if (!caller->answer) {
            // Leaves also when the await itself throws because the task was cancelled before.
            struct Leave {
                Callers& all;
                std::shared_ptr<Caller>& caller;
                ~Leave() { all.remove(caller); }
            } leave{waiting_, caller};
            (void)co_await caller->answered.async_wait(use_tuple);
        }
        if (!caller->answer) {
            co_return make_error(Errc::canceled, "the caller was asked to stop while it waited for the hardware TPM");
        }
        co_return std::move(*caller->answer);
    }

    [[nodiscard]] const Callers& waiting() const noexcept { return waiting_; }
    [[nodiscard]] bool empty() const noexcept { return waiting_.empty(); }
    /// Everybody who waits now; who comes later is not among them. The caller of take_all() answers each.
    Callers take_all() { return std::exchange(waiting_, {}); }
    static void answer(Caller& caller, Result<Answer> answer) {
        caller.answer.emplace(std::move(answer));
        caller.answered.cancel();
    }
    /// The oldest goes with its answer.
    void answer_first(Result<Answer> a) {
        auto caller = waiting_.front();
        waiting_.pop_front();
        answer(*caller, std::move(a));
    }

  private:
    asio::any_io_executor executor_;
    Callers waiting_;
};

} // namespace vtpmd::hwtpm
