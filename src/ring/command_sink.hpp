// What is behind a ring: takes whole requests, gives whole responses.
#pragma once

#include "util/asio.hpp"
#include "util/bytes.hpp"
#include "util/result.hpp"

#include <cstdint>
#include <optional>
#include <string>

namespace vtpmd::ring {

class CommandSink {
  public:
    virtual ~CommandSink() = default;
    /// The front end has connected; what is known of its domain's XSM label (xen/ports.hpp). Before its first request.
    virtual void connected(const Result<std::optional<std::string>>& /*label*/) {}
    /// One request, already private memory and at most data_capacity(extra_pages_limit) bytes, of any content. The
    /// response goes to the front end; an empty one drops the request (IDLE). Never two at once.
    virtual Task<Bytes> execute(Bytes request, std::uint8_t locality) = 0;
    /// Asks the request that runs to end early.
    virtual void cancel() = 0;
};

} // namespace vtpmd::ring
