// What an instance is told on its command line (and by whoever passed it a socket); plain data.
#pragma once

#include "guest/endpoint.hpp"
#include "guest/locality_policy.hpp"
#include "guest/tcp_peer.hpp"
#include "tpm/codes.hpp"
#include "tpm/version.hpp"
#include "util/fd.hpp"
#include "util/sandbox.hpp"
#include "util/uuid.hpp"

#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace vtpmd::instance {

/// What is sent to the TPM after it is powered on, for the guest. `deactivated` exists for TPM 1.2 only. With `none` the
/// guest's firmware starts it; with `wait` too, and it is powered off until the control channel's first INIT, as a device
/// model wants it.
enum class Startup { clear, save, deactivated, none, wait };
/// Errc::usage if it is none of these words.
[[nodiscard]] Result<Startup> parse_startup(std::string_view text);

/// A list of indices, ranges, "all" (0-23) and "none", read from left to right as Xen's vtpm-stubdom does: "5,12-16". "none" forgets
/// what came before it. The result ascends, each index once. Errc::usage names the part that is none of these.
[[nodiscard]] Result<std::vector<unsigned>> parse_pcr_list(std::string_view text);

/// A list of hash algorithms, each once, as swtpm_setup's --pcr-banks: "sha1,sha256" (TPM_ALG_IDs, in that order). Errc::usage.
[[nodiscard]] Result<std::vector<std::uint16_t>> parse_pcr_banks(std::string_view text);

/// Where the manager is: an inherited connected socket first, if there is one, then a path.
struct ManagerAddress {
    std::optional<int> inherited_fd;         ///< "fd:N": used once; when it breaks, the path is tried
    std::string path;                        ///< "unix:PATH"; empty: no way back once the inherited socket breaks
    std::optional<std::uint32_t> xen_handle; ///< "xen[:HANDLE]": the manager is in another domain; alone
    friend bool operator==(const ManagerAddress&, const ManagerAddress&) = default;
};
/// "unix:PATH", or what a spawning manager passes: "fd:N" or "fd:N,unix:PATH"; or "xen[:HANDLE]". Errc::usage.
[[nodiscard]] Result<ManagerAddress> parse_manager_address(std::string_view text);

struct InstanceOptions {
    Uuid uuid;
    ManagerAddress manager{std::nullopt, "/run/vtpmd/manager.sock", std::nullopt};
    std::string state_path; ///< empty: default_state_path(uuid)
    bool create = false;
    /// Not given: as the image says; 2.0 for a new one. Given and different from the image's: refused.
    std::optional<TpmVersion> tpm_version;
    /// PCR banks (TPM_ALG_ID) that a new TPM 2.0 has.
    std::vector<std::uint16_t> pcr_banks{tpm::alg::sha256, tpm::alg::sha384};
    bool pcr_banks_of_this =
        false; ///< asked for this vTPM: a TPM 1.2 refuses it. A configuration file's are every TPM 2.0's
    bool ek_certificates = true;         ///< --ek-certificates: a new TPM gets them from the manager
    std::vector<guest::Endpoint> guests; ///< empty: default_endpoint(uuid)
    Startup startup = Startup::clear;    ///< not given: wait if every guest is a device model, else clear
    std::vector<unsigned> hwinitpcrs;
    bool maintenance_commands = false;  ///< --maintcmds
    bool allow_rollback = false;        ///< --rollback=allow
    std::string handover_path;          ///< --handover=unix:PATH; empty: none
    guest::TcpPeers tcp_peers;          ///< of socket:tcp: endpoints
    bool terminate = false;             ///< end with the guest's connection
    bool disconnect = false;            ///< close a connection for commands after each answer
    std::vector<std::string> pid_files; ///< written once guests are served, removed at the end
    bool incoming = false;              ///< --incoming
    std::string incoming_path;          ///< empty: nobody is asked (unfenced)
    guest::LocalityPolicy localities;   ///< of Xen guests

    SandboxMode sandbox = SandboxMode::automatic;
    std::optional<uid_t> user; ///< --user: it goes on as

    /// Listening sockets passed by the service manager: the guests' commands and control for the first socket endpoint
    /// (by FileDescriptorName= "commands" and "control"; a single one is for commands).
    UniqueFd listen_commands;
    UniqueFd listen_control;
    std::string
        socket_group; ///< group that may connect to the guests' sockets (mode 0660); empty: the owner only (0600)
};

[[nodiscard]] std::string default_state_path(const Uuid& uuid);   ///< /var/lib/vtpmd/UUID.img
[[nodiscard]] guest::Endpoint default_endpoint(const Uuid& uuid); ///< socket:unix:/run/vtpmd/UUID.sock

} // namespace vtpmd::instance
