// The Unix socket of a toolstack of 2006: the privileged channel. Root's only, by the kernel's word on the peer.
#pragma once

#include "manager/compat/vtpm_managerd/service.hpp"
#include "util/fd.hpp"
#include "util/task_group.hpp"

namespace vtpmd::manager {

class LegacySocket {
  public:
    /// All of it outlives the socket.
    struct Parts {
        asio::any_io_executor executor;
        LegacyService& service;
        Clock& clock;
        const Log& log;
    };
    struct Options {
        uid_t own_uid = 0; ///< who may ask besides root
        std::size_t connection_limit = 16;
        Clock::duration request_deadline = std::chrono::seconds(10); ///< for the rest of a request that has begun
    };
    /// Takes over a listening Unix socket.
    LegacySocket(UniqueFd listening, Options options, Parts parts);
    LegacySocket(const LegacySocket&) = delete;
    LegacySocket& operator=(const LegacySocket&) = delete;
    ~LegacySocket() = default;

    /// Accepts until cancelled; a stranger gets status 3 and is cut off. Connections go on until they end.
    Task<> run();
    /// Ends all connections. run() must have ended.
    Task<> stop();

  private:
    using Protocol = asio::local::stream_protocol;
    void admit(Protocol::socket socket);
    Task<> serve(Protocol::socket socket);
    Task<> turn_away(Protocol::socket socket);
    /// Errc::closed: between requests; protocol: no request; timed_out: the rest of one does not come.
    Task<Result<Bytes>> next_request(Protocol::socket& socket);
    Task<Result<void>> send(Protocol::socket& socket, proto::legacy::Status status);

    const Options options_;
    Parts parts_;
    Protocol::acceptor acceptor_;
    TaskGroup connections_;
    RateLimit refusals_;
};

} // namespace vtpmd::manager
