// A guest's connection: bytes in, whole requests out, answers back.
//
// What a peer can make us hold is one request buffer, and what all peers of an endpoint can, is its RequestRoom. A peer
// that begins a request must finish it, and take its answer, within `stall_limit`.
//
// It waits by sleeping, and never looks at the socket meanwhile: a client that blocks, as they all do, is woken on the
// processor that this process has just left. One that stays there makes each answer wake another processor, which costs
// more than the sleep (docs/performance.md).
#pragma once

#include "util/asio.hpp"
#include "util/bytes.hpp"
#include "util/clock.hpp"
#include "util/fd.hpp"
#include "util/result.hpp"

#include <boost/asio/generic/stream_protocol.hpp>

namespace vtpmd::guest {

using StreamSocket = asio::generic::stream_protocol::socket;

/// For requests longer than a TPM command (state blobs), of all connections of an endpoint together.
struct RequestRoom {
    std::size_t left = std::size_t{4} * 512 * 1024;
};

class GuestStream {
  public:
    /// How long the request is in all that begins with these bytes, as far as one can tell (control_size()'s contract).
    using Measure = Result<std::size_t> (*)(ByteView so_far);
    static constexpr Clock::duration stall_limit = std::chrono::seconds(60);

    /// Whether the peer may pass descriptors; those of a peer that may not are closed by the kernel.
    enum class Descriptors { refused, taken };

    GuestStream(StreamSocket socket, Clock& clock, Measure measure, Descriptors descriptors = Descriptors::refused,
                RequestRoom* room = nullptr)
        : clock_(clock)
        , measure_(measure)
        , descriptors_(descriptors)
        , room_(room)
        , socket_(std::move(socket)) {}
    GuestStream(const GuestStream&) = delete;
    GuestStream& operator=(const GuestStream&) = delete;
    ~GuestStream() { leave_room(); }

    /// One request. Errc::closed at a clean end, protocol if it comes inside a request, timed_out for a stalled one,
    /// too_large (from the measure, or no room; the bytes read so far are in pending()), canceled.
    Task<Result<Bytes>> receive();
    /// The next `size` bytes (not 0), whatever they are: what a request said that follows it. Errors as of receive().
    Task<Result<Bytes>> receive_more(std::size_t size);
    Task<Result<void>> send(ByteView answer);
    /// Nothing has come on it yet.
    [[nodiscard]] bool was_silent() const noexcept { return !spoke_ && filled_ == 0 && !finishing_; }
    /// Forgets what was received behind the last request.
    void drop_pending() noexcept { filled_ = 0; }
    /// The last descriptor that came since the last call.
    [[nodiscard]] UniqueFd take_descriptor() noexcept { return std::move(descriptor_); }
    /// Who it is, for people.
    [[nodiscard]] std::string peer();
    [[nodiscard]] ByteView pending() const noexcept { return ByteView(buffer_).first(filled_); }
    /// Lets a receive() that waits between requests, and every later one, end with Errc::closed. What runs is finished.
    void finish() noexcept;

  private:
    Result<std::size_t> measure();
    Task<Result<void>> fill(std::size_t wanted);
    Result<void> make_room(std::size_t wanted);
    void leave_room() noexcept;
    Task<Result<void>> fill_with_descriptors();
    Task<Result<Bytes>> rest(std::size_t wanted);
    Task<Result<Bytes>> exactly(std::size_t wanted);
    Bytes take(std::size_t size);
    Task<Result<void>> send_rest(ByteView data);

    Clock& clock_;
    const Measure measure_;
    const Descriptors descriptors_;
    RequestRoom* const room_; ///< outlives it; none: no bound

    StreamSocket socket_;
    UniqueFd descriptor_;
    Bytes buffer_;
    std::size_t filled_ = 0;
    std::size_t held_ = 0; ///< of the room
    bool spoke_ = false;
    bool finishing_ = false;
};

} // namespace vtpmd::guest
