// How a vTPM moves to another host so that exactly one of the two runs it.
//
// The state itself goes the device model's way (GET_STATEBLOB, SET_STATEBLOB). What is said here, over a socket that the operator
// leads from the new host to the old one (--incoming=unix:PATH to --handover=unix:PATH), is only who has it:
//
//   1. the new host has the state on its disk, sealed by its manager and marked as unconfirmed, and asks the old one for it,
//      showing a token: SHA-256 over the SHA-256s of the three blobs. Who can show it has the state.
//   2. the old host, if the TPM has done nothing since it gave out that state, has its manager leave a tombstone, powers the TPM
//      off for good, and says yes; as often as it is asked. Otherwise it says no, and its TPM goes on.
//   3. the new host takes the mark away, and only then answers the device model's INIT.
//
// A new host that dies between 2 and 3 finds the mark and asks again. The frames are the manager protocol's:
//
//   ordinal 0x56500003 TAKE: uuid[16], token[32]; an answer without a body, or an error with text.
#pragma once

#include "guest/listener.hpp"
#include "proto/link/channel.hpp"
#include "store/aead.hpp"
#include "util/clock.hpp"
#include "util/log.hpp"
#include "util/result.hpp"
#include "util/task_group.hpp"
#include "util/uuid.hpp"

#include <array>
#include <functional>
#include <memory>
#include <optional>

namespace vtpmd::instance {

inline constexpr std::uint32_t take_ordinal = 0x56500003;

struct TakeRequest {
    Uuid uuid;
    store::Digest token{};
    friend bool operator==(const TakeRequest&, const TakeRequest&) = default;
};

/// The SHA-256s of the blobs of type 1, 2 and 3.
[[nodiscard]] store::Digest handover_token(const std::array<store::Digest, 3>& blobs);

[[nodiscard]] Bytes encode_take(const TakeRequest& request);
/// Errc::protocol for anything else.
[[nodiscard]] Result<TakeRequest> parse_take(ByteView frame);

/// Asks the old host at `path` until it says yes or no; a connection that breaks, or is not there, is tried again for `patience`.
Task<Result<void>> take_over(std::string path, TakeRequest request, Clock& clock, Clock::duration patience);

/// The old host's side. Several may be connected; one that is silent holds up nobody, and is let go after a while.
class HandoverServer {
  public:
    using Decide = std::function<Task<Result<void>>(TakeRequest)>;
    HandoverServer(asio::any_io_executor executor, guest::Listener listener, Decide decide, Clock& clock,
                   const Log& log);
    void start();
    Task<> stop();

  private:
    Task<> accept_loop();
    void admit(asio::local::stream_protocol::socket socket);
    Task<> converse(std::unique_ptr<proto::Channel> channel);
    Task<Result<void>> answer_one(proto::Channel& channel);

    guest::Listener listener_; ///< for its file
    asio::local::stream_protocol::acceptor acceptor_;
    const Decide decide_;
    Clock& clock_;
    const Log& log_;
    RateLimit limit_;
    std::size_t peers_ = 0;
    TaskGroup group_;
};

} // namespace vtpmd::instance
