// A Channel over a stream socket (Unix or TCP).
//
// Between frames a peer may be silent for ever. Once a frame has begun, the rest of it must come within
// frame_deadline, and so must a peer take an answer: a half-open peer costs a buffer for that long, no more.
#pragma once

#include "proto/link/channel.hpp"
#include "util/clock.hpp"
#include "util/fd.hpp"

#include <memory>

namespace vtpmd::proto {

struct StreamOptions {
    std::string peer;                                          ///< for messages
    Clock::duration frame_deadline = std::chrono::seconds(10); ///< for the rest of a frame, and for sending one
};

/// The channel owns the socket. It must be destroyed only when no receive() or send() is running; close()
/// ends them.
[[nodiscard]] std::unique_ptr<Channel> make_stream_channel(asio::local::stream_protocol::socket socket, Clock& clock,
                                                           StreamOptions options);
[[nodiscard]] std::unique_ptr<Channel> make_stream_channel(asio::ip::tcp::socket socket, Clock& clock,
                                                           StreamOptions options);

/// Who is at the other end of a Unix socket, by the kernel (SO_PEERCRED).
struct PeerCredentials {
    pid_t pid = 0;
    uid_t uid = 0;
    gid_t gid = 0;
};
[[nodiscard]] Result<PeerCredentials> peer_credentials(asio::local::stream_protocol::socket& socket);

/// A connection to a Unix socket. Errc::not_found, closed (nobody listens), permission.
[[nodiscard]] Task<Result<std::unique_ptr<Channel>>> connect_unix(std::string path, Clock& clock);

/// Takes over a connected Unix socket that this process inherited. Errc::usage if the descriptor is not one.
[[nodiscard]] Result<std::unique_ptr<Channel>> adopt_unix(asio::any_io_executor executor, UniqueFd fd, Clock& clock,
                                                          std::string peer);

} // namespace vtpmd::proto
