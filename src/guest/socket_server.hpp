// The endpoints socket:unix:PATH and socket:tcp:PORT: raw TPM commands on one socket (a 10-byte header whose size field
// says how long the command is, one answer for each), the control channel on another. And qemu:PATH: the control
// channel alone, on which a device model hands over the socket that its commands come from (SET_DATAFD). There is one
// device model at a time; when it goes, so does the machine's power, and the TPM is powered off.
//
// Many connections may be open; the TPM serves one command at a time, in the order they came. A connection has at most
// one command under way, so a client that sends without reading holds up nobody but itself.
#pragma once

#include "guest/control.hpp"
#include "guest/endpoint.hpp"
#include "guest/listener.hpp"
#include "guest/stream.hpp"
#include "guest/tcp_peer.hpp"
#include "guest/tpm_service.hpp"
#include "util/log.hpp"
#include "util/task_group.hpp"

#include <list>
#include <memory>
#include <optional>

namespace vtpmd::guest {

struct SocketListeners {
    std::optional<Listener> commands; ///< none: the device model brings its own
    std::optional<Listener> control;
    UniqueFd commands_connection; ///< one that is there already, in the place of a listening socket
    UniqueFd control_connection;
    std::optional<TcpGate> gate; ///< of TCP connections; none: all are let in
};
struct SocketServerOptions {
    std::string name;        ///< the endpoint, for the log
    bool state_blobs = true; ///< see EndpointState
    /// What is set (SET_STATEBLOB) is not its connection's but the endpoint's, as for swtpm_ioctl, which makes one for
    /// each blob.
    bool sets_outlive_connections = false;
    bool terminate = false;  ///< ask the service to shut down when a connection for commands ends
    bool disconnect = false; ///< close a connection for commands after each answer
    /// Commands and control each. One that comes beyond takes the place of the oldest that has never said anything;
    /// if there is none it is closed at once.
    std::size_t connection_limit = 1024;
    Clock::duration accept_pause = std::chrono::milliseconds(100); ///< after EMFILE and its like
};

/// Binds what the endpoint says. Errors as of listen_unix() and listen_tcp().
[[nodiscard]] Result<SocketListeners> open_listeners(const Endpoint& endpoint, const std::string& group);

/// Lets these in only, where a listener is on TCP. Before the sandbox.
void guard(SocketListeners& listeners, const TcpPeers& peers);

struct SocketCounters {
    std::uint64_t accepted = 0, over_limit = 0, strangers = 0, commands = 0, control_requests = 0, malformed = 0,
                  stalled = 0;
};

class SocketServer {
  public:
    SocketServer(asio::any_io_executor executor, SocketServerOptions options, SocketListeners listeners,
                 TpmService& service, Clock& clock, const Log& log);
    SocketServer(const SocketServer&) = delete;
    SocketServer& operator=(const SocketServer&) = delete;
    ~SocketServer();

    void start();
    /// Takes no more connections or requests, lets the commands that run be answered, at most for `patience`, then
    /// cancels.
    Task<> stop(Clock::duration patience);

    [[nodiscard]] const SocketCounters& counters() const noexcept { return counters_; }
    [[nodiscard]] std::size_t connections() const noexcept { return commands_.open.size() + control_.open.size(); }

  private:
    using Acceptor = asio::basic_socket_acceptor<asio::generic::stream_protocol>;
    struct Port {
        std::optional<Acceptor> acceptor;
        std::list<GuestStream> open;
        bool only_one = false; ///< it was there before: with its end the service ends
    };
    using Place = std::list<GuestStream>::iterator;
    using Converse = Task<Result<void>> (SocketServer::*)(GuestStream&);

    void admit(Port& port, StreamSocket socket, GuestStream::Measure measure, Converse converse);
    void admit_passed(Port& port, UniqueFd fd, GuestStream::Measure measure, Converse converse);
    Task<> accept_loop(Port& port, GuestStream::Measure measure, Converse converse);
    Task<> connection(Port& port, Place place, Converse converse);
    Task<Result<void>> converse_commands(GuestStream& stream);
    Task<Result<void>> converse_control(GuestStream& stream);
    Task<Result<Bytes>> rest_of_hash_data(GuestStream& stream, std::size_t more, Bytes answer);
    bool has_place(Port& port);
    [[nodiscard]] ControlPeer peer_of(const GuestStream& stream) const;
    Task<Bytes> control_request(GuestStream& stream, ControlRequest request);
    Task<Bytes> give_blob(GuestStream& stream, ControlRequest request);
    Task<Bytes> take_data_socket(GuestStream& stream);
    Task<> device_model_gone();
    void warn(std::string_view what);

    asio::any_io_executor executor_;
    const SocketServerOptions options_;
    TpmService& service_;
    Clock& clock_;
    const Log& log_;

    SocketListeners listeners_; ///< for their files; the descriptors are with the acceptors
    RequestRoom room_;
    Port commands_;
    Port control_;
    EndpointState state_;
    GuestStream* device_model_ = nullptr; ///< the control connection that brought the data socket
    GuestStream* data_ = nullptr;         ///< that socket, while it is open
    bool device_model_leaving_ = false;
    SocketCounters counters_;
    RateLimit limit_;
    RateLimit blobs_;
    bool stopping_ = false;
    TaskGroup accepting_;
    TaskGroup group_;
};

} // namespace vtpmd::guest
