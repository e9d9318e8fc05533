#include "xen/fabric.hpp"

namespace vtpmd::xen {

Fabric::Fabric(asio::any_io_executor executor, Clock& clock, const Log& log, Parts parts)
    : executor_(executor)
    , clock_(clock)
    , grants_(std::move(parts.grants))
    , ports_(executor, log, std::move(parts.ports))
    , store_(executor, clock, log, std::move(parts.dial))
    , tasks_(executor, log) {}

void Fabric::start() {
    tasks_.spawn("event channels", ports_.run());
    tasks_.spawn("xenstore", store_.run());
}

Task<> Fabric::stop() {
    store_.stop();
    tasks_.cancel();
    co_await tasks_.join();
}

} // namespace vtpmd::xen
