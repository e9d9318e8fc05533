// The far end of a link to a real key service, in memory.
#pragma once

#include "check.hpp"
#include "loop.hpp"
#include "manager/links/key_service.hpp"
#include "memory_channel.hpp"

namespace vtpmd::fakes {

/// Hangs up when it goes. The loop and the service outlive it.
struct ServiceLink {
    ServiceLink(Loop& on, manager::KeyService& service, manager::LinkInfo info = {})
        : loop(on) {
        auto pair = MemoryChannel::make(loop.io.get_executor());
        mine = std::move(pair.a);
        served = loop.start(service.serve(std::move(pair.b), std::move(info)));
        loop.settle();
    }
    ~ServiceLink() { hang_up(); }
    ServiceLink(const ServiceLink&) = delete;
    ServiceLink& operator=(const ServiceLink&) = delete;

    /// Also to one that listens no more.
    void send(const Bytes& frame) { (void)loop.run(mine->send(frame)); }
    /// Time passes while it is waited for.
    Bytes answer() {
        auto frame = loop.run(mine->receive());
        REQUIRE(frame);
        return *frame;
    }
    Bytes ask(const Bytes& frame) {
        send(frame);
        return answer();
    }
    void hang_up() {
        mine->close();
        loop.settle();
    }
    /// By the service.
    [[nodiscard]] bool ended() {
        loop.settle();
        return served->done;
    }

    Loop& loop;
    std::unique_ptr<MemoryChannel> mine;
    std::shared_ptr<Started<bool>> served;
};

} // namespace vtpmd::fakes
