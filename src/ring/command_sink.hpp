// What is behind a ring: takes whole requests, gives whole responses.
#pragma once

#include "util/asio.hpp"
#include "util/bytes.hpp"

#include <cstdint>

namespace vtpmd::ring {

class CommandSink {
  public:
    virtual ~CommandSink() = default;
    /// One request, already private memory and at most data_capacity(extra_pages_limit) bytes, of any content. The
    /// response goes to the front end; an empty one drops the request (IDLE). Never two at once.
    virtual Task<Bytes> execute(Bytes request, std::uint8_t locality) = 0;
    /// Asks the request that runs to end early.
    virtual void cancel() = 0;
};

} // namespace vtpmd::ring
