// The Unix socket where vTPMs come in. Who may connect, and as which vTPM, is decided by the kernel's word on the peer (SO_PEERCRED,
// SO_PEERGROUPS, SO_PEERPIDFD): root and the manager's own user as any; a process that a manager spawned for a vTPM as that one,
// whoever it runs as; members of the group `vtpmd` as those that are theirs (OwnerRecord).
#pragma once

#include "manager/links/key_service.hpp"
#include "proto/link/stream_channel.hpp"
#include "util/fd.hpp"
#include "util/task_group.hpp"

#include <span>

namespace vtpmd::manager {

/// Whom the socket serves. Pure.
struct AllowedPeers {
    uid_t own_uid = 0;
    std::optional<gid_t> group; ///< `vtpmd`, if the host has it
};
[[nodiscard]] bool is_allowed(const AllowedPeers& allowed, const proto::PeerCredentials& peer,
                              std::span<const gid_t> supplementary_groups) noexcept;
/// Of this process and this host.
[[nodiscard]] AllowedPeers allowed_peers();

/// Who can reach a socket by its file.
enum class SocketReach {
    group,   ///< 0660, of the group `vtpmd` if the host has it
    owner,   ///< 0600
    everyone ///< 0666: its peers are told apart by who they are
};
/// A listening socket at `path`. A socket that nobody listens on is
/// replaced; Errc::busy if somebody does, exists if the path is something else, too_large for more than 107 bytes.
[[nodiscard]] Result<UniqueFd> listen_unix(const std::string& path, SocketReach reach = SocketReach::group);

class Listener {
  public:
    struct Parts {
        asio::any_io_executor executor;
        KeyService& service;
        TaskGroup& links; ///< where each connection's task lives
        Clock& clock;
        const Log& log;
    };
    struct Options {
        std::size_t connection_limit = 8192; ///< an instance makes two
        AllowedPeers allowed;
        bool only_spawned = false; ///< whom spawned_for knows, and nobody else
        /// The vTPM that a manager spawned this process for (Processes::spawned_for). Empty: none was spawned.
        std::function<std::optional<Uuid>(const ProcessHandle&)> spawned_for = {};
    };
    /// Takes over a listening Unix socket. Errc::usage if the descriptor is not one.
    static Result<std::unique_ptr<Listener>> make(UniqueFd listening, Options options, Parts parts);

    /// Accepts until cancelled. Want of descriptors or memory is waited out.
    Task<> run();

  private:
    using Protocol = asio::local::stream_protocol;
    Listener(Protocol::acceptor acceptor, Options options, Parts parts);
    void admit(Protocol::socket socket);
    void refuse(const std::string& who, std::string_view why);

    const Options options_;
    Parts parts_;
    Protocol::acceptor acceptor_;
    RateLimit refusals_;
};

/// A link over a connected socket that was made for one vTPM (a spawned instance has the other end).
void serve_spawned_link(const Listener::Parts& parts, UniqueFd connected, const Uuid& uuid, pid_t pid);

} // namespace vtpmd::manager
