// What vTPMs ask of the manager: one session a link, one link a vTPM. A session learns its vTPM from the first hello (or the
// link was made for one), holds it until the link is gone, and answers from the vault.
#pragma once

#include "manager/instances/processes.hpp"
#include "manager/links/counters.hpp"
#include "manager/links/question_link.hpp"
#include "manager/vault/vault.hpp"
#include "proto/link/server.hpp"
#include "util/log.hpp"

#include <functional>
#include <memory>
#include <optional>
#include <unordered_map>
#include <unordered_set>
#include <vector>

namespace vtpmd::manager {

/// What the transport knows of a link.
struct LinkInfo {
    /// The link was made for this vTPM, and a hello that names another is refused.
    std::optional<Uuid> made_for;
    /// The transport itself says which vTPM this is (made_for, a Xen ring): a hello is welcome but not needed.
    bool named_by_transport = false;
    /// Tells whether the peer is gone, though nobody may have read the end of the stream yet. Empty: not known.
    std::function<bool()> peer_gone;
    /// The process at the other end, if it is one of this host's.
    ProcessHandle process = {};
    /// The user at the other end, who may open only what is theirs (OwnerRecord). Empty: root, the manager's own user, or a link
    /// that was made for a vTPM.
    std::optional<uid_t> user = std::nullopt;
    /// Answer to GET_BOOT_HASH: SHA-1 of the peer's XSM label (WIRE: "kernel hash"). A process on this host, or a Xen without
    /// XSM, has no label, so zeros, which no configured kernel hash can be.
    proto::BootHash boot_hash{};
};

class KeyService {
  public:
    /// All of it outlives the service.
    struct Parts {
        asio::any_io_executor executor;
        Vault& vault;
        hwtpm::RootOfTrust& root;
        Clock& clock;
        const Log& log;
        /// Whether the vTPM's group is open and admits a peer of this label (Groups::admit). Empty: there are no groups.
        std::function<Result<void>(const Uuid&, const proto::BootHash&)> admit = {};
        /// A deep quote for the vTPM (DeepQuotes::make). Empty: none are made.
        std::function<Task<Result<proto::QuoteReply>>(const Uuid&, proto::QuoteRequest)> quote = {};
        /// The same in the form of Xen's manager (DeepQuotes::make_old).
        std::function<Task<Result<Bytes>>(const Uuid&, const proto::BootHash&, proto::OldQuoteRequest)> old_quote = {};
        /// What an instance reports of its guest's commands. Empty: nobody wants to know. An error ends the connection.
        std::function<Result<void>(const Uuid&, proto::Report)> report = {};
        /// A process of this host has opened the vTPM by its link.
        std::function<void(const Uuid&, const ProcessHandle&)> opened = {};
        /// Seconds since 1970. Empty: when saves came is not noted.
        std::function<std::uint64_t()> unix_time = {};
        /// A vTPM was deleted, or has migrated away. Empty: nobody wants to know.
        std::function<void(const Uuid&)> gone = {};
        /// A certificate for the vTPM's endorsement key (Certifier::certify). Empty: none are given.
        std::function<Task<Result<Bytes>>(const Uuid&, proto::CertifyRequest)> certify = {};
        /// Answers a management frame of the administrator's vTPM (Administration). Empty: management is not offered.
        std::function<Task<Result<Bytes>>(Bytes)> administer = {};
    };
    struct Options {
        bool auto_create = false;
        std::size_t links_a_user = 1024; ///< of users who are neither root nor the manager's own, here and below
        std::size_t vtpms_a_user = 1024; ///< that they register themselves
        /// Of one vTPM, where each may step the hardware TPM's counter. 0: no bound.
        std::uint32_t changes_a_day = 0;
        Clock::duration hello_deadline = std::chrono::seconds(10);
        /// How long a hello waits for the end of a link whose peer is gone already.
        Clock::duration takeover_deadline = std::chrono::seconds(30);
        /// The vTPM that manages, by a link whose transport names it.
        std::optional<Uuid> admin = std::nullopt;
    };
    KeyService(Options options, Parts parts);
    KeyService(const KeyService&) = delete;
    KeyService& operator=(const KeyService&) = delete;
    /// Every serve() must have ended.
    ~KeyService();

    /// Until the link ends. Owns and closes the channel.
    Task<> serve(std::unique_ptr<proto::Channel> channel, LinkInfo link);
    /// Asks the instance that has the vTPM open; the body of its answer, or its error. Errc::unavailable: none has, or it comes
    /// back in a moment; unsupported: it is one that cannot be asked; closed, timed_out: QuestionLink::ask().
    Task<Result<Bytes>> ask(Uuid uuid, Bytes question, Clock::duration limit);
    /// Whoever asks an instance gets Errc::closed, now and later.
    void stop_asking();
    /// Ends idle links now and the others after the request they are at. No new ones should come.
    void stop();

    /// Registers a new vTPM. Errc::busy while somebody else is at it.
    Task<Result<void>> enrol(Uuid uuid, TpmVersion version, GroupId group = 0, std::string name = {},
                             std::uint32_t owner = 0);
    /// The same, with a number for toolstacks of 2006 (compat/vtpm_managerd/service.hpp).
    Task<Result<void>> enrol_numbered(Uuid uuid, TpmVersion version, std::uint32_t number);
    /// Vault::move_vtpm(). Errc::busy while an instance has it open.
    Task<Result<void>> move(Uuid uuid, GroupId group);
    /// Deletes a vTPM, or records that it migrated away. Errc::busy while an instance has it open.
    Task<Result<void>> remove(Uuid uuid, TombstoneRecord::Reason reason);

    /// Vault::reset(). Errc::busy while an instance has it open.
    Task<Result<void>> reset(Uuid uuid);

    [[nodiscard]] bool is_open(const Uuid& uuid) const { return holders_.contains(uuid); }
    /// Its instance can be asked, which it offers once its TPM serves.
    [[nodiscard]] bool is_ready(const Uuid& uuid) const;
    /// When its last save was acknowledged, in seconds since 1970; 0: none was since this manager began.
    [[nodiscard]] std::uint64_t last_save(const Uuid& uuid) const;
    [[nodiscard]] std::vector<Uuid> open_vtpms() const;
    [[nodiscard]] std::size_t open_count() const noexcept { return holders_.size(); }
    [[nodiscard]] std::size_t link_count() const noexcept { return sessions_.size(); }
    /// Whether one more link of this user is served.
    [[nodiscard]] bool admits(uid_t user) const;
    [[nodiscard]] ServiceCounters& counters() noexcept { return counters_; }

  private:
    class Session;
    struct OwnHold;
    /// Until `session` holds `uuid`. Errc::busy if a living peer has it.
    Task<Result<void>> claim(Uuid uuid, Session& session);
    void release(Session& session);
    void note_save(const Uuid& uuid);
    /// Vault::remove(), and tells of it.
    Task<Result<void>> bury(Uuid uuid, TombstoneRecord::Reason reason);

    const Options options_;
    Parts parts_;

    std::unordered_set<Session*> sessions_;
    std::unordered_map<Uuid, Session*> holders_;    ///< nullptr: held by enrol(), remove() and the like
    std::unordered_map<Uuid, std::uint64_t> saves_; ///< when
    bool stopping_ = false;
    bool asking_ended_ = false;
    /// Lines in the log that a peer can cause.
    RateLimit broken_links_;
    RateLimit refusals_{{.burst = 20, .interval = std::chrono::seconds{60}}};
    /// What an instance can cause at will, however often it connects.
    struct Bounds {
        RateLimit comings{};                                                        ///< in the log
        RateLimit changes;                                                          ///< Options::changes_a_day
        RateLimit handovers{{.burst = 60, .interval = std::chrono::seconds{3600}}}; ///< each steps the counter
        RateLimit certificates{{.burst = 20, .interval = std::chrono::seconds{3600}}};
    };
    Bounds& bounds(const Uuid& uuid);
    std::unordered_map<Uuid, Bounds> bounds_;
    std::unordered_map<uid_t, std::size_t> users_links_; ///< of LinkInfo::user
    std::unordered_map<uid_t, RateLimit> users_steps_;   ///< of the hardware counter, that they ask for
    ServiceCounters counters_;
};

} // namespace vtpmd::manager
