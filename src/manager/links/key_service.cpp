#include "manager/links/key_service.hpp"

#include "manager/links/tpm_proxy.hpp"
#include "store/aead.hpp"
#include "util/deadline.hpp"
#include "util/text.hpp"

#include <algorithm>
#include <cstdlib>
#include <set>

namespace vtpmd::manager {

namespace {

bool is_refusal(Errc code) {
    switch (code) {
    case Errc::usage:
    case Errc::not_found:
    case Errc::exists:
    case Errc::busy:
    case Errc::permission:
    case Errc::mismatch:
    case Errc::tombstone:
    case Errc::pcr_mismatch:
    case Errc::protocol:
    case Errc::too_large:
    case Errc::unsupported:
        return true;
    default:
        return false;
    }
}

/// SHA-256 of the modulus, or of x and y.
Bytes ek_hash(const proto::CertifyRequest& claim) {
    const auto digest = store::sha256({claim.key});
    return {digest.begin(), digest.end()};
}

std::string_view reason_text(TombstoneRecord::Reason reason) {
    return reason == TombstoneRecord::Reason::migrated ? "migrated away" : "deleted";
}

} // namespace

/// The channel that serve() reads from: knows whether it is between requests, so that a stop ends it there.
class KeyService::Session final : public proto::Handler, public proto::Channel {
  public:
    Session(KeyService& service, std::unique_ptr<proto::Channel> link, LinkInfo info)
        : service_(service)
        , link_(std::move(link))
        , info_(std::move(info))
        , ended_(std::make_shared<asio::steady_timer>(service.parts_.executor, asio::steady_timer::time_point::max())) {
        service_.sessions_.insert(this);
        if (info_.user) {
            ++service_.users_links_[*info_.user];
        }
    }
    Session(const Session&) = delete;
    Session& operator=(const Session&) = delete;
    ~Session() override {
        service_.release(*this);
        service_.sessions_.erase(this);
        if (info_.user && --service_.users_links_[*info_.user] == 0) {
            service_.users_links_.erase(*info_.user);
        }
        ended_->cancel();
        end_questions(); // they are asked of what this link held
    }

    [[nodiscard]] bool peer_gone() const { return info_.peer_gone && info_.peer_gone(); }
    /// Cancelled when the session is gone; outlives it.
    [[nodiscard]] std::shared_ptr<asio::steady_timer> ended() const { return ended_; }
    [[nodiscard]] const std::optional<Uuid>& uuid() const { return uuid_; }
    [[nodiscard]] bool opened() const { return opened_; }
    void hold(const Uuid& uuid) { uuid_ = uuid; }
    void end_questions() {
        if (questions_) {
            questions_->end();
        }
    }
    void end_when_idle() {
        end_questions();
        if (receiving_) {
            link_->close();
        }
    }

    /// Why nothing can be asked of the vTPM that this holds; nullptr in its place: it can.
    [[nodiscard]] Result<std::shared_ptr<QuestionLink>> questions() const {
        if (questions_ && !attached_to_ && questions_->usable()) {
            return questions_;
        }
        if (info_.named_by_transport) {
            return make_error(Errc::unsupported,
                              "vTPM {} is open in another domain, whose instance cannot be asked from here; ask in its "
                              "guest",
                              *uuid_);
        }
        if (!key_.empty()) {
            return make_error(Errc::unavailable,
                              "vTPM {}: its instance is not ready to be asked; it will be in a moment", *uuid_);
        }
        return make_error(Errc::unsupported,
                          "vTPM {}: its instance does not offer to be asked; it is older than this manager, or was not "
                          "told the manager's socket (--manager=unix:PATH): start it anew",
                          *uuid_);
    }

    // proto::Channel
    Task<Result<Bytes>> receive() override {
        if (service_.stopping_) {
            co_return make_error(Errc::closed, "the manager stops");
        }
        receiving_ = true;
        auto frame = co_await link_->receive();
        receiving_ = false;
        co_return frame;
    }
    Task<Result<void>> send(ByteView frame) override { return link_->send(frame); }
    void close() override { link_->close(); }
    [[nodiscard]] std::string peer() const override { return link_->peer(); }

    // proto::Handler
    Task<Result<proto::HelloReply>> hello(proto::HelloRequest request) override {
        auto reply = co_await greet(request);
        greeted_ = reply.has_value();
        co_return count(Request::hello, std::move(reply));
    }
    Task<Result<void>> save_hash_key(SecretBytes hash_key) override {
        if (auto open = co_await open_unasked(); !open) {
            co_return count(Request::save, std::move(open));
        }
        if (auto current = knows_present(); !current) {
            co_return count(Request::save, std::move(current));
        }
        auto saved = co_await save(std::move(hash_key));
        note_save(saved);
        co_return count(Request::save, std::move(saved));
    }
    Task<Result<void>> save_over(Bytes over, SecretBytes hash_key) override {
        if (auto open = co_await open_unasked(); !open) {
            co_return count(Request::save, std::move(open));
        }
        if (auto current = knows_present(); !current) {
            co_return count(Request::save, std::move(current));
        }
        auto saved = co_await save_if_over(std::move(over), std::move(hash_key));
        note_save(saved);
        co_return count(Request::save, std::move(saved));
    }
    Task<Result<std::optional<SecretBytes>>> load_hash_key() override {
        if (auto open = co_await open_unasked(); !open) {
            co_return count(Request::load, Result<std::optional<SecretBytes>>(open.error()));
        }
        auto key = co_await service_.parts_.vault.load_key(*uuid_);
        // Xen's stub domains ask for it when they start, and only then.
        knows_reset_ = knows_reset_ || (!greeted_ && key.has_value());
        co_return count(Request::load, std::move(key));
    }
    Task<Result<proto::ResetInfo>> reset_info() override {
        if (auto open = co_await open_unasked(); !open) {
            co_return open.error();
        }
        const Registry::Reset* reset = service_.parts_.vault.registry().reset(*uuid_);
        if (reset == nullptr) {
            co_return make_error(Errc::not_found, "vTPM {} was never reset", *uuid_);
        }
        knows_reset_ = true;
        co_return proto::ResetInfo{.sequence = reset->sequence, .when = reset->when, .given_up = reset->given_up};
    }
    Task<Result<proto::BootHash>> boot_hash() override {
        Result<proto::BootHash> hash = info_.boot_hash;
        co_return count(Request::boot_hash, std::move(hash));
    }
    Task<Result<void>> handed_over() override {
        if (auto open = co_await open_unasked(); !open) {
            co_return count(Request::handed_over, std::move(open));
        }
        if (auto current = knows_present(); !current) {
            co_return count(Request::handed_over, std::move(current));
        }
        if (auto may = may_be_away(); !may) {
            log_refusal("{}", may.error().message);
            co_return count(Request::handed_over, std::move(may));
        }
        auto removed = co_await service_.bury(*uuid_, TombstoneRecord::Reason::migrated);
        if (service_.parts_.vault.registry().find(*uuid_) == nullptr) {
            count_hand_over();
        }
        // A tombstone that an older copy of the store might undo is one: the vTPM must not go on here.
        if (!removed && service_.parts_.vault.registry().tombstone(*uuid_) != nullptr) {
            service_.parts_.log.error("{}", removed.error().message);
            removed = Result<void>{};
        }
        if (removed) {
            service_.parts_.log.info("vTPM {} was handed over to another host", *uuid_);
        }
        co_return count(Request::handed_over, std::move(removed));
    }
    Task<Result<proto::QuoteReply>> quote(proto::QuoteRequest request) override {
        using Reply = Result<proto::QuoteReply>;
        const auto& make = service_.parts_.quote;
        if (auto may = co_await may_be_quoted(static_cast<bool>(make)); !may) {
            co_return count(Request::quote, Reply(may.error()));
        }
        auto quoted = co_await make(*uuid_, std::move(request));
        co_return count(Request::quote, std::move(quoted));
    }
    Task<Result<Bytes>> old_quote(proto::OldQuoteRequest request) override {
        const auto& make = service_.parts_.old_quote;
        if (auto may = co_await may_be_quoted(static_cast<bool>(make)); !may) {
            co_return count(Request::quote, Result<Bytes>(may.error()));
        }
        auto quoted = co_await make(*uuid_, info_.boot_hash, std::move(request));
        co_return count(Request::quote, std::move(quoted));
    }
    Task<Result<SecretBytes>> invite() override {
        if (auto open = co_await open_unasked(); !open) {
            co_return count(Request::invite, Result<SecretBytes>(open.error()));
        }
        if (key_.empty()) {
            key_ = store::random_key();
        }
        co_return count(Request::invite, Result<SecretBytes>(key_.clone()));
    }
    /// This link is the second one, and another session holds the vTPM.
    Result<void> attach(proto::AttachRequest request) override {
        const auto it = service_.holders_.find(request.uuid);
        Session* holder = it == service_.holders_.end() ? nullptr : it->second;
        const bool another = info_.made_for && *info_.made_for != request.uuid;
        if (uuid_ || another || holder == nullptr || holder->key_.empty() || !holder->key_.equals(request.key.view())) {
            return make_error(Errc::permission, "no open link of vTPM {} vouches for this connection", request.uuid);
        }
        questions_ = std::make_shared<QuestionLink>(service_.parts_.executor, service_.parts_.clock);
        attached_to_ = request.uuid;
        holder->end_questions();
        holder->questions_ = questions_;
        if (service_.asking_ended_) {
            questions_->end();
        }
        return {};
    }
    Task<Result<void>> attached() override {
        QuestionLink::TakeReport take = [this](proto::Report report) {
            return service_.parts_.report ? service_.parts_.report(*attached_to_, std::move(report)) : Result<void>{};
        };
        co_return co_await questions_->serve(*link_, std::move(take));
    }
    Task<Result<Bytes>> certify(proto::CertifyRequest request) override {
        auto certificate = co_await certify_once(std::move(request));
        co_return count(Request::certify, std::move(certificate));
    }
    Task<Result<Bytes>> tpm_command(Bytes command) override {
        const PeerRight right = is_administrator() ? PeerRight::administrator : PeerRight::vtpm;
        auto answer = co_await run_tpm_command(service_.parts_.root, std::move(command), right);
        co_return count(Request::tpm_command, std::move(answer));
    }
    Task<Result<Bytes>> management(Bytes frame) override {
        Task<Result<Bytes>> asked = is_administrator() && service_.parts_.administer
                                        ? service_.parts_.administer(std::move(frame))
                                        : proto::Handler::management(std::move(frame));
        auto answer = co_await std::move(asked);
        co_return count(Request::management, std::move(answer));
    }

  private:
    template <typename T>
    Result<T> count(Request what, Result<T> outcome) {
        auto& o = service_.counters_.of(what);
        ++(outcome ? o.done : is_refusal(outcome.error().code) ? o.refused : o.failed);
        return outcome;
    }

    [[nodiscard]] bool within(RateLimit& bound) {
        const bool may = bound.allow(service_.parts_.clock.now()).allowed;
        service_.counters_.over_bounds += may ? 0 : 1;
        return may;
    }
    /// A guest that never stops writing wears the hardware TPM down for nobody but itself.
    [[nodiscard]] Result<void> may_change() {
        if (service_.options_.changes_a_day == 0 || within(service_.bounds(*uuid_).changes)) {
            return {};
        }
        log_refusal("vTPM {} has changed its state {} times within a day (--freshness=strict:CHANGES)", *uuid_,
                    service_.options_.changes_a_day);
        return make_error(Errc::busy,
                          "vTPM {} has made all the changes of a day, {}: each wears the hardware TPM; the next may "
                          "come in {} s (--freshness=strict:CHANGES)",
                          *uuid_, service_.options_.changes_a_day, 86'400 / service_.options_.changes_a_day + 1);
    }

    /// What the manager can tell of a hand-over: there is a state, which this link could have given out, and it was not asked for
    /// too often. That the other host has taken it is the word of the instance, which has had its confirmation (instance/migration.cpp).
    [[nodiscard]] Result<void> may_be_away() {
        const auto* known = service_.parts_.vault.registry().find(*uuid_);
        if (known == nullptr || (!known->has_key() && !known->returned)) {
            return make_error(Errc::usage, "vTPM {} has no state that another host could have taken", *uuid_);
        }
        const auto now = service_.parts_.clock.now();
        if (info_.user && !service_.users_steps_[*info_.user].has_room(now)) {
            return make_error(Errc::busy, "user {}: too many hand-overs in a minute; each wears the hardware TPM",
                              *info_.user);
        }
        if (!service_.bounds(*uuid_).handovers.has_room(now)) {
            ++service_.counters_.over_bounds;
            return make_error(Errc::busy, "vTPM {}: too many hand-overs in an hour; each wears the hardware TPM",
                              *uuid_);
        }
        return {};
    }
    /// Only what was done: an instance that does not know whether it was asks again and again.
    void count_hand_over() {
        const auto now = service_.parts_.clock.now();
        if (info_.user) {
            (void)service_.users_steps_[*info_.user].allow(now);
        }
        (void)service_.bounds(*uuid_).handovers.allow(now);
    }

    /// Whether the peer may have this vTPM at all; says nothing of it to who may not.
    [[nodiscard]] Result<void> may_open(const proto::HelloRequest& request) const {
        if (!info_.user) {
            return {};
        }
        const Registry& registry = service_.parts_.vault.registry();
        if (registry.find(request.uuid) != nullptr) {
            return registry.owner(request.uuid) == *info_.user
                       ? Result<void>{}
                       : make_error(Errc::permission,
                                    "vTPM {} is not user {}'s; an administrator gives it: vtpmctl chown {} {}",
                                    request.uuid, *info_.user, request.uuid, *info_.user);
        }
        if (!service_.options_.auto_create || registry.tombstone(request.uuid) != nullptr) {
            return make_error(Errc::permission,
                              "user {} may not register vTPM {}; an administrator does: vtpmctl create {} --user={}",
                              *info_.user, request.uuid, request.uuid, *info_.user);
        }
        if (registry.owned_by(*info_.user) >= service_.options_.vtpms_a_user) {
            return make_error(Errc::permission, "user {} has {} vTPMs already; an administrator registers more",
                              *info_.user, registry.owned_by(*info_.user));
        }
        return {};
    }

    /// A key of each kind a link, so that what a link costs is bounded. A link that broke is followed by another.
    Task<Result<Bytes>> certify_once(proto::CertifyRequest request) {
        if (auto open = co_await open_unasked(); !open) {
            co_return open.error();
        }
        const KeyService::Parts& parts = service_.parts_;
        if (!parts.certify) {
            co_return make_error(Errc::unsupported, "no certificates are given here");
        }
        if (auto admitted = parts.admit ? parts.admit(*uuid_, info_.boot_hash) : Result<void>{}; !admitted) {
            co_return admitted.error();
        }
        if (!certified_.insert(request.kind).second) {
            co_return make_error(Errc::exists, "vTPM {}: a key of this kind was certified already", *uuid_);
        }
        if (!within(service_.bounds(*uuid_).certificates)) {
            co_return make_error(Errc::busy, "vTPM {}: too many certificates in an hour", *uuid_);
        }
        const std::string hash = to_hex(ek_hash(request));
        auto certified = co_await parts.certify(*uuid_, std::move(request));
        if (certified) {
            parts.log.info("vTPM {}: certified the endorsement key with SHA-256 {}, by the word of {}", *uuid_, hash,
                           peer());
        }
        co_return certified;
    }

    void note_save(const Result<void>& saved) {
        if (saved) {
            service_.note_save(*uuid_);
        }
    }
    /// Compares with what is durable. Nobody else saves meanwhile: this session holds the vTPM.
    Task<Result<void>> save_if_over(Bytes over, SecretBytes hash_key) {
        Vault& vault = service_.parts_.vault;
        const bool is_over_mine = saved_ && saved_->sequence == sequence_on_record() && saved_->hash == over;
        if (is_over_mine && !std::ranges::equal(hash_key.view().subspan(proto::hash_key_part), over)) {
            co_return co_await save(std::move(hash_key)); // nearly every save: nothing is to be unwrapped
        }
        auto present = co_await vault.load_key(*uuid_);
        if (!present) {
            co_return present.error();
        }
        ByteView there;
        if (*present) {
            if ((*present)->equals(hash_key.view())) {
                co_return Result<void>{}; // its answer was lost
            }
            there = (*present)->view().subspan(proto::hash_key_part);
        }
        if (!std::ranges::equal(there, over)) {
            co_return make_error(
                Errc::rollback, "vTPM {}: another instance has saved since this one did; what this one has is not kept",
                *uuid_);
        }
        co_return co_await save(std::move(hash_key));
    }
    Task<Result<void>> save(SecretBytes hash_key) {
        if (auto may = may_change(); !may) {
            co_return may;
        }
        Bytes hash = to_bytes(hash_key.view().subspan(proto::hash_key_part));
        saved_.reset();
        auto saved = co_await service_.parts_.vault.save_key(*uuid_, std::move(hash_key));
        if (saved) {
            saved_ = Saved{.sequence = sequence_on_record(), .hash = std::move(hash)};
        }
        co_return saved;
    }
    [[nodiscard]] std::uint64_t sequence_on_record() const {
        const auto* vtpm = service_.parts_.vault.registry().find(*uuid_);
        return vtpm == nullptr ? 0 : vtpm->sequence;
    }

    [[nodiscard]] bool is_administrator() const {
        return info_.named_by_transport && info_.made_for && info_.made_for == service_.options_.admin;
    }

    Task<Result<void>> may_be_quoted(bool offered) {
        if (auto open = co_await open_unasked(); !open) {
            co_return open;
        }
        if (auto current = knows_present(); !current) {
            co_return current;
        }
        // Its group may have been closed, or its label revoked, since the hello.
        const KeyService::Parts& parts = service_.parts_;
        if (auto admitted = parts.admit ? parts.admit(*uuid_, info_.boot_hash) : Result<void>{}; !admitted) {
            co_return admitted;
        }
        co_return offered ? Result<void>{} : make_error(Errc::unsupported, "no quotes are made here");
    }

    /// An instance that began before its vTPM was reset runs the past of it. It asks for no RESET_INFO, or finds there that it
    /// knew of another reset (proto/link/client.cpp), and nothing of it is kept.
    [[nodiscard]] Result<void> knows_present() const {
        if (knows_reset_ || service_.parts_.vault.registry().reset(*uuid_) == nullptr) {
            return {};
        }
        return make_error(Errc::tombstone,
                          "vTPM {} was reset to factory, and its instance does not know of it: it began before, or is "
                          "of an older program; nothing of it is kept: end it and start it again",
                          *uuid_);
    }

    /// The hello that a peer left out, where the transport names the vTPM.
    Task<Result<void>> open_unasked() {
        if (opened_) {
            co_return Result<void>{};
        }
        if (!info_.made_for) {
            co_return make_error(Errc::permission, "a request before the hello");
        }
        const auto* known = service_.parts_.vault.registry().find(*info_.made_for);
        // Whoever sends no hello is one of Xen's stub domains, or was greeted by an earlier manager: TPM 1.2, or what it was.
        proto::HelloRequest request{.uuid = *info_.made_for,
                                    .version = known != nullptr ? known->version : TpmVersion::tpm12};
        auto greeted = co_await greet(request);
        if (!greeted) {
            co_return greeted.error();
        }
        co_return Result<void>{};
    }

    /// Why the vTPM does not run here, if so; one that was migrated away may come back, but only from where it is now.
    [[nodiscard]] std::optional<TombstoneRecord::Reason> why_gone(const proto::HelloRequest& request) const {
        using Reason = TombstoneRecord::Reason;
        const Registry& registry = service_.parts_.vault.registry();
        const auto* gone = registry.tombstone(request.uuid);
        const auto* known = registry.find(request.uuid);
        if (gone != nullptr && gone->reason != Reason::migrated) {
            return gone->reason;
        }
        const bool away = gone != nullptr || (known != nullptr && known->returned);
        return away && !request.incoming ? std::optional(Reason::migrated) : std::nullopt;
    }

    template <typename... Args>
    void log_refusal(fmt::format_string<Args...> why, Args&&... args) {
        service_.parts_.log.warning_limited(service_.refusals_, service_.parts_.clock.now(), "{}: refused: {}", peer(),
                                            fmt::format(why, std::forward<Args>(args)...));
    }

    Task<Result<proto::HelloReply>> greet(proto::HelloRequest request) {
        const Log& log = service_.parts_.log;
        if (info_.made_for && *info_.made_for != request.uuid) {
            log_refusal("names vTPM {}, but its link was made for {}", request.uuid, *info_.made_for);
            co_return make_error(Errc::permission, "this link was made for vTPM {}", *info_.made_for);
        }
        if (auto may = may_open(request); !may) {
            log_refusal("{}", may.error().message);
            co_return may.error();
        }
        if (auto claimed = co_await service_.claim(request.uuid, *this); !claimed) {
            co_return claimed.error();
        }
        Vault& vault = service_.parts_.vault;
        if (const auto reason = why_gone(request)) {
            log_refusal("vTPM {} was {}", request.uuid, reason_text(*reason));
            Error gone = make_error(Errc::tombstone, "vTPM {} was {}; an old image of it must not come back",
                                    request.uuid, reason_text(*reason));
            if (*reason == TombstoneRecord::Reason::deleted) {
                gone.detail = static_cast<std::uint32_t>(proto::Status::vendor_deleted);
            }
            co_return gone;
        }
        // What is said of the vTPM must be what a restart would say.
        if (auto settled = co_await vault.settle(); !settled) {
            co_return make_error(Errc::unavailable, "the manager's disk does not take writes: {}",
                                 settled.error().message);
        }
        if (vault.registry().find(request.uuid) == nullptr) {
            const bool back = vault.registry().tombstone(request.uuid) != nullptr;
            auto made = back ? vault.take_back(request.uuid, request.version) : enrol(request);
            if (auto done = co_await std::move(made); !done) {
                co_return done.error();
            }
            if (back) {
                log.info("vTPM {} was migrated away and is to come back", request.uuid);
            }
        }
        const auto* vtpm = vault.registry().find(request.uuid);
        if (vtpm->version != request.version) {
            log_refusal("vTPM {} is a TPM {}, not {}", request.uuid, to_string(vtpm->version),
                        to_string(request.version));
            co_return make_error(Errc::mismatch, "vTPM {} is registered as a TPM {}, not {}", request.uuid,
                                 to_string(vtpm->version), to_string(request.version));
        }
        if (service_.parts_.admit) {
            if (auto admitted = service_.parts_.admit(request.uuid, info_.boot_hash); !admitted) {
                log_refusal("{}", admitted.error().message);
                co_return admitted.error();
            }
        }
        log.info_limited(service_.bounds(request.uuid).comings, service_.parts_.clock.now(), "vTPM {} opened by {}",
                         request.uuid, peer());
        opened_ = true;
        if (service_.parts_.opened && info_.process.pid != 0) {
            service_.parts_.opened(request.uuid, info_.process);
        }
        co_return proto::HelloReply{.known = true,
                                    .has_record = vtpm->has_key(),
                                    .may_create = service_.options_.auto_create,
                                    .version = vtpm->version,
                                    .was_reset = vault.registry().reset(request.uuid) != nullptr};
    }

    Task<Result<void>> enrol(proto::HelloRequest request) {
        if (!request.create && !service_.options_.auto_create) {
            co_return make_error(
                Errc::not_found,
                "vTPM {} is not registered with this manager; start its instance with --create to make it",
                request.uuid);
        }
        auto registered =
            co_await service_.parts_.vault.register_vtpm(request.uuid, request.version, 0, {}, info_.user.value_or(0));
        if (!registered) {
            service_.parts_.log.error_limited(service_.refusals_, service_.parts_.clock.now(),
                                              "vTPM {}: not registered: {}", request.uuid, registered.error().message);
            co_return registered;
        }
        ++service_.counters_.registered;
        service_.parts_.log.info("vTPM {} registered, TPM {}", request.uuid, to_string(request.version));
        co_return registered;
    }

    KeyService& service_;
    std::unique_ptr<proto::Channel> link_;
    const LinkInfo info_;
    std::shared_ptr<asio::steady_timer> ended_;

    std::optional<Uuid> uuid_;                ///< held
    bool opened_ = false;                     ///< and greeted
    SecretBytes key_;                         ///< vouches for a second connection; empty: not asked for yet
    std::shared_ptr<QuestionLink> questions_; ///< over that connection
    std::optional<Uuid> attached_to_;         ///< this is that connection
    bool greeted_ = false;                    ///< by a hello of its own
    bool knows_reset_ = false;                ///< the last one of its vTPM
    bool receiving_ = false;
    std::set<proto::EkKind> certified_; ///< asked for
    /// By this session last, and on record as long as the sequence is the same.
    struct Saved {
        std::uint64_t sequence;
        Bytes hash;
    };
    std::optional<Saved> saved_;
};

KeyService::KeyService(Options options, Parts parts)
    : options_(options)
    , parts_(std::move(parts)) {}

KeyService::~KeyService() {
    if (!sessions_.empty()) {
        std::abort(); // their coroutines would dangle
    }
}

Task<> KeyService::serve(std::unique_ptr<proto::Channel> channel, LinkInfo link) {
    if (stopping_) {
        channel->close();
        co_return;
    }
    const bool hello_required = !link.named_by_transport;
    Session session(*this, std::move(channel), std::move(link));
    proto::ServeOptions options{.hello_required = hello_required, .hello_deadline = options_.hello_deadline};
    auto ended = co_await proto::serve(session, session, parts_.clock, parts_.log, std::move(options));
    if (!ended && (ended.error().code == Errc::protocol || ended.error().code == Errc::timed_out)) {
        ++counters_.links_broken;
        parts_.log.warning_limited(broken_links_, parts_.clock.now(), "{}", ended.error().message);
    }
    if (session.opened()) {
        parts_.log.info_limited(bounds(*session.uuid()).comings, parts_.clock.now(), "vTPM {} closed by {}",
                                *session.uuid(), session.peer());
    }
    session.close();
}

KeyService::Bounds& KeyService::bounds(const Uuid& uuid) {
    const RateLimit::Config changes{.burst = options_.changes_a_day, .interval = std::chrono::hours{24}};
    return bounds_.try_emplace(uuid, Bounds{.changes = RateLimit{changes}}).first->second;
}

bool KeyService::admits(uid_t user) const {
    const auto it = users_links_.find(user);
    return it == users_links_.end() || it->second < options_.links_a_user;
}

void KeyService::stop() {
    stopping_ = true;
    for (Session* session : sessions_) {
        session->end_when_idle();
    }
}

bool KeyService::is_ready(const Uuid& uuid) const {
    const auto it = holders_.find(uuid);
    return it != holders_.end() && it->second != nullptr && it->second->questions().has_value();
}

std::uint64_t KeyService::last_save(const Uuid& uuid) const {
    const auto it = saves_.find(uuid);
    return it != saves_.end() ? it->second : 0;
}

void KeyService::note_save(const Uuid& uuid) {
    if (parts_.unix_time) {
        saves_[uuid] = parts_.unix_time();
    }
}

std::vector<Uuid> KeyService::open_vtpms() const {
    std::vector<Uuid> out;
    out.reserve(holders_.size());
    for (const auto& [uuid, session] : holders_) {
        out.push_back(uuid);
    }
    return out;
}

void KeyService::stop_asking() {
    asking_ended_ = true;
    for (Session* session : sessions_) {
        session->end_questions();
    }
}

Task<Result<Bytes>> KeyService::ask(Uuid uuid, Bytes question, Clock::duration limit) {
    const auto it = holders_.find(uuid);
    if (it == holders_.end()) {
        co_return make_error(Errc::unavailable, "vTPM {} does not run; start it first (vtpmctl start {})", uuid, uuid);
    }
    if (it->second == nullptr) {
        co_return make_error(Errc::busy, "vTPM {} is being made or deleted", uuid);
    }
    auto link = it->second->questions();
    if (!link) {
        co_return link.error();
    }
    auto answer = co_await (*link)->ask(std::move(question), limit);
    if (!answer) {
        co_return in_context(std::move(answer).error(), fmt::format("vTPM {}", uuid));
    }
    auto body = proto::parse_answer(*answer);
    co_return body ? std::move(body) : Result<Bytes>(in_context(std::move(body).error(), fmt::format("vTPM {}", uuid)));
}

Task<Result<void>> KeyService::claim(Uuid uuid, Session& session) {
    const auto deadline = parts_.clock.now() + options_.takeover_deadline;
    for (;;) {
        auto [it, mine] = holders_.try_emplace(uuid, &session);
        if (mine) {
            session.hold(uuid);
            co_return Result<void>{};
        }
        Session* holder = it->second;
        if (holder == &session) {
            co_return Result<void>{}; // greeted once before, and refused
        }
        const auto left = deadline - parts_.clock.now();
        if (holder == nullptr || !holder->peer_gone() || left <= Clock::duration::zero()) {
            std::string who = holder == nullptr ? "the manager" : holder->peer();
            parts_.log.warning_limited(refusals_, parts_.clock.now(), "{}: vTPM {} is open already, by {}: refused",
                                       session.peer(), uuid, who);
            co_return make_error(Errc::busy, "vTPM {} is open already, by {}", uuid, who);
        }
        // Its end has not been read yet, or it is at its last request: it will be gone soon.
        auto wait = [](std::shared_ptr<asio::steady_timer> ended) -> Task<Result<void>> {
            (void)co_await ended->async_wait(use_tuple);
            co_return Result<void>{};
        };
        Task<Result<void>> waiting = wait(holder->ended());
        (void)co_await with_deadline(parts_.clock, left, "the end of an old link", std::move(waiting));
    }
}

void KeyService::release(Session& session) {
    if (session.uuid()) {
        holders_.erase(*session.uuid());
    }
}

/// Gives back what the manager itself held.
struct KeyService::OwnHold {
    std::unordered_map<Uuid, Session*>& holders;
    const Uuid& uuid;
    ~OwnHold() { holders.erase(uuid); }
};

Task<Result<void>> KeyService::enrol(Uuid uuid, TpmVersion version, GroupId group, std::string name,
                                     std::uint32_t owner) {
    if (!holders_.try_emplace(uuid, nullptr).second) {
        co_return make_error(Errc::busy, "vTPM {} is open, or is being made or deleted", uuid);
    }
    OwnHold hold{holders_, uuid};
    auto registered = co_await parts_.vault.register_vtpm(uuid, version, group, std::move(name), owner);
    if (registered) {
        ++counters_.registered;
        parts_.log.info("vTPM {} registered, TPM {}", uuid, to_string(version));
    }
    co_return registered;
}

Task<Result<void>> KeyService::enrol_numbered(Uuid uuid, TpmVersion version, std::uint32_t number) {
    if (!holders_.try_emplace(uuid, nullptr).second) {
        co_return make_error(Errc::busy, "vTPM {} is open, or is being made or deleted", uuid);
    }
    OwnHold hold{holders_, uuid};
    auto made = co_await parts_.vault.register_numbered(uuid, version, number);
    if (made) {
        ++counters_.registered;
        parts_.log.info("vTPM {} registered, TPM {}, with the number {}", uuid, to_string(version), number);
    }
    co_return made;
}

Task<Result<void>> KeyService::move(Uuid uuid, GroupId group) {
    if (!holders_.try_emplace(uuid, nullptr).second) {
        co_return make_error(Errc::busy, "vTPM {} is open; stop its instance first", uuid);
    }
    OwnHold hold{holders_, uuid};
    auto moved = co_await parts_.vault.move_vtpm(uuid, group);
    if (moved) {
        parts_.log.info("vTPM {} is in group {} now", uuid, group);
    }
    co_return moved;
}

Task<Result<void>> KeyService::reset(Uuid uuid) {
    if (!holders_.try_emplace(uuid, nullptr).second) {
        co_return make_error(Errc::busy, "vTPM {} is open; stop its instance first", uuid);
    }
    OwnHold hold{holders_, uuid};
    auto reset = co_await parts_.vault.reset(uuid);
    if (reset) {
        saves_.erase(uuid);
        parts_.log.info("vTPM {} reset to factory", uuid);
    }
    co_return reset;
}

Task<Result<void>> KeyService::bury(Uuid uuid, TombstoneRecord::Reason reason) {
    auto removed = co_await parts_.vault.remove(uuid, reason);
    // Also after an error that left the tombstone.
    saves_.erase(uuid);
    if (reason == TombstoneRecord::Reason::deleted) { // the other may come back
        bounds_.erase(uuid);
    }
    if (parts_.gone && parts_.vault.registry().find(uuid) == nullptr) {
        parts_.gone(uuid);
    }
    co_return removed;
}

Task<Result<void>> KeyService::remove(Uuid uuid, TombstoneRecord::Reason reason) {
    if (!holders_.try_emplace(uuid, nullptr).second) {
        co_return make_error(Errc::busy, "vTPM {} is open; stop its instance first", uuid);
    }
    OwnHold hold{holders_, uuid};
    auto removed = co_await bury(uuid, reason);
    if (removed) {
        parts_.log.info("vTPM {} {}", uuid, reason_text(reason));
    }
    co_return removed;
}

} // namespace vtpmd::manager
