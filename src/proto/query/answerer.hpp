// The instance's end of the connection on which its manager asks it (ask_messages.hpp): connects, shows what its own
// link vouches for, answers, reports, and again when that ends. Nothing that a guest does waits for any of it.
//
// A manager that is away is tried again, ever more seldom; one that refuses for good (an older one) is told of in one
// line and tried again after refused_pause, for it may be replaced.
#pragma once

#include "proto/link/client.hpp"
#include "util/fifo_lock.hpp"
#include "util/task_group.hpp"

#include <functional>

namespace vtpmd::proto {

/// What is asked.
class Questioned {
  public:
    virtual ~Questioned() = default;
    /// A deep quote (quote/deep_quote.hpp). `question` passed check(). The text of an error goes to whoever asked.
    virtual Task<Result<Bytes>> quote(AskQuote question) = 0;
    /// Returns once there is something that was not reported yet.
    virtual Task<> wait_for_news() = 0;
    /// The next report, with no more than report_command_limit commands; nullopt: there is nothing new. What it says
    /// counts as reported.
    virtual std::optional<Report> next_report() = 0;
    /// The figures that no command's are among.
    [[nodiscard]] virtual Report summary() const = 0;
    /// Some of what counts as reported may not have come through: all of it is news again.
    virtual void report_anew() = 0;
};

class Answerer {
  public:
    static constexpr Clock::duration first_pause = std::chrono::milliseconds(200);
    static constexpr Clock::duration longest_pause = std::chrono::seconds(10);
    static constexpr Clock::duration refused_pause = std::chrono::minutes(10);
    static constexpr Clock::duration report_pause = std::chrono::seconds(2); ///< between reports

    /// All of it outlives the answerer.
    struct Parts {
        asio::any_io_executor executor;
        Uuid uuid;
        ManagerClient& manager;
        ManagerClient::Connect connect; ///< makes the second connection
        Questioned& questioned;
        Clock& clock;
        const Log& log;
        std::function<void(bool there)> tried = {}; ///< the manager, and whether somebody listens there
    };
    explicit Answerer(Parts parts);

    void start();
    /// Reports what there is, ends the connection; returns when nothing runs any more. Must come before destruction.
    Task<> stop();

  private:
    Task<> run();
    Task<Result<void>> attach(std::unique_ptr<Channel>& channel);
    Task<Result<void>> converse(Channel& channel);
    Task<Result<void>> answer_all(Channel& channel);
    Task<Result<void>> report_all(Channel& channel);
    Task<Result<void>> send(Channel& channel, Bytes frame);
    Task<Bytes> answer_to(Bytes frame);

    Parts parts_;

    FifoLock sending_;           ///< one frame at a time
    Channel* channel_ = nullptr; ///< while it is attached
    bool refused_ = false;       ///< that was said in the log
    TaskGroup group_;
};

} // namespace vtpmd::proto
