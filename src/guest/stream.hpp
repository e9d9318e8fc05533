// A guest's connection: bytes in, whole requests out, answers back.
//
// What a peer can make us hold is one request buffer. A peer that begins a request must finish it, and take its answer,
// within `stall_limit`.
#pragma once

#include "util/asio.hpp"
#include "util/bytes.hpp"
#include "util/clock.hpp"
#include "util/result.hpp"

#include <boost/asio/generic/stream_protocol.hpp>

namespace vtpmd::guest {

using StreamSocket = asio::generic::stream_protocol::socket;

class GuestStream {
  public:
    /// How long the request is in all that begins with these bytes, as far as one can tell (control_size()'s contract).
    using Measure = Result<std::size_t> (*)(ByteView so_far);
    static constexpr Clock::duration stall_limit = std::chrono::seconds(60);

    GuestStream(StreamSocket socket, Clock& clock, Measure measure)
        : clock_(clock)
        , measure_(measure)
        , socket_(std::move(socket)) {}

    /// One request. Errc::closed at a clean end, protocol if it comes inside a request, timed_out for a stalled one,
    /// too_large (from the measure; the bytes read so far are in pending()), canceled.
    Task<Result<Bytes>> receive();
    Task<Result<void>> send(ByteView answer);
    /// Forgets what was received behind the last request.
    void drop_pending() noexcept { filled_ = 0; }
    [[nodiscard]] ByteView pending() const noexcept { return ByteView(buffer_).first(filled_); }
    /// Lets a receive() that waits between requests, and every later one, end with Errc::closed. What runs is finished.
    void finish() noexcept;

  private:
    Result<std::size_t> measure();
    Task<Result<void>> fill(std::size_t wanted);
    Task<Result<Bytes>> rest(std::size_t wanted);
    Bytes take(std::size_t size);
    Task<Result<void>> send_rest(ByteView data);

    Clock& clock_;
    const Measure measure_;

    StreamSocket socket_;
    Bytes buffer_;
    std::size_t filled_ = 0;
    bool finishing_ = false;
};

} // namespace vtpmd::guest
