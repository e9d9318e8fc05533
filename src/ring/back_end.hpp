// The serving end of a connected ring: looks at the page when it is made and whenever the front end notifies, has one
// request carried out at a time, answers.
//
// Two tasks: one looks (so that a CANCEL is seen while a request runs), one carries out. Each look costs the front end
// a notification and does a bounded amount of work, so on a loop with many rings none can keep the others waiting.
#pragma once

#include "ring/back_state.hpp"
#include "ring/command_sink.hpp"
#include "util/clock.hpp"
#include "util/log.hpp"
#include "util/task_group.hpp"
#include "util/wake.hpp"
#include "xen/fabric.hpp"

#include <memory>
#include <optional>
#include <string>

namespace vtpmd::ring {

struct BackEndOptions {
    std::string name; ///< for the log: "frontend 3/0"
    /// How long the page is watched after an answer, before waiting for a notification: saves the wake-up while a guest
    /// sends one command after another. Zero where a loop serves several rings.
    Clock::duration spin = Clock::duration::zero();
};

struct RingCounters {
    std::uint64_t requests = 0;  ///< taken
    std::uint64_t rejected = 0;  ///< dropped for their length or pages
    std::uint64_t cancels = 0;   ///< CANCELs seen
    std::uint64_t bad_state = 0; ///< looks that found a state that does not exist
    std::uint64_t spins = 0;     ///< times the page was watched after an answer
    std::uint64_t spun = 0;      ///< requests found by that
};

class BackEnd {
  public:
    struct Parts {
        xen::Fabric& fabric;
        CommandSink& sink;
        const Log& log;
        RingCounters& counters;
        RateLimit& limit; ///< of log lines; the device's, so that a front end gets no new one by connecting again
    };
    /// A mapped page and a bound channel, both of one front end.
    struct Link {
        std::unique_ptr<xen::Pages> page;
        std::unique_ptr<xen::EventChannel> channel;
    };
    BackEnd(BackEndOptions options, Parts parts, Link link);
    BackEnd(const BackEnd&) = delete;
    BackEnd& operator=(const BackEnd&) = delete;
    ~BackEnd() = default;

    void start();
    /// Takes no more requests, lets the one that runs be answered, at most for `patience`, then cancels it.
    Task<> stop(Clock::duration patience);

  private:
    struct Request {
        PageHeader header;
        Bytes packet;
    };
    Task<> look_loop();
    Task<> work_loop();
    void look();
    void take();
    Result<void> map_extra(const PageHeader& header);
    void act(BackState::Action action);
    void answer(const PageHeader& header, ByteView response);
    void drop();
    /// Watches the page for a while; true if it found a request.
    bool spin();
    void warn(std::string_view what);

    const BackEndOptions options_;
    Parts parts_;

    Link link_;
    Page page_;
    std::unique_ptr<xen::Pages> extra_;
    std::vector<xen::GrantRef> extra_refs_;

    BackState state_;
    std::optional<Request> request_;
    Wake work_;
    bool stopping_ = false;
    bool spin_pays_ = false; ///< the guest was quick the last time
    Clock::time_point answered_{};
    TaskGroup looking_;
    TaskGroup working_;
};

} // namespace vtpmd::ring
