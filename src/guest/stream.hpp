// A guest's connection: bytes in, whole requests out, answers back.
//
// What a peer can make us hold is one request buffer. A peer that begins a request must finish it, and take its answer,
// within `stall_limit`.
#pragma once

#include "util/asio.hpp"
#include "util/bytes.hpp"
#include "util/clock.hpp"
#include "util/fd.hpp"
#include "util/result.hpp"

#include <boost/asio/generic/stream_protocol.hpp>

namespace vtpmd::guest {

using StreamSocket = asio::generic::stream_protocol::socket;

class GuestStream {
  public:
    /// How long the request is in all that begins with these bytes, as far as one can tell (control_size()'s contract).
    using Measure = Result<std::size_t> (*)(ByteView so_far);
    static constexpr Clock::duration stall_limit = std::chrono::seconds(60);

    /// Whether the peer may pass descriptors; those of a peer that may not are closed by the kernel.
    enum class Descriptors { refused, taken };

    GuestStream(StreamSocket socket, Clock& clock, Measure measure, Descriptors descriptors = Descriptors::refused)
        : clock_(clock)
        , measure_(measure)
        , descriptors_(descriptors)
        , socket_(std::move(socket)) {}

    /// One request. Errc::closed at a clean end, protocol if it comes inside a request, timed_out for a stalled one,
    /// too_large (from the measure; the bytes read so far are in pending()), canceled.
    Task<Result<Bytes>> receive();
    Task<Result<void>> send(ByteView answer);
    /// Forgets what was received behind the last request.
    void drop_pending() noexcept { filled_ = 0; }
    /// The last descriptor that came since the last call.
    [[nodiscard]] UniqueFd take_descriptor() noexcept { return std::move(descriptor_); }
    [[nodiscard]] ByteView pending() const noexcept { return ByteView(buffer_).first(filled_); }
    /// Lets a receive() that waits between requests, and every later one, end with Errc::closed. What runs is finished.
    void finish() noexcept;

  private:
    Result<std::size_t> measure();
    Task<Result<void>> fill(std::size_t wanted);
    Task<Result<void>> fill_with_descriptors();
    Task<Result<Bytes>> rest(std::size_t wanted);
    Bytes take(std::size_t size);
    Task<Result<void>> send_rest(ByteView data);

    Clock& clock_;
    const Measure measure_;
    const Descriptors descriptors_;

    StreamSocket socket_;
    UniqueFd descriptor_;
    Bytes buffer_;
    std::size_t filled_ = 0;
    bool finishing_ = false;
};

} // namespace vtpmd::guest
