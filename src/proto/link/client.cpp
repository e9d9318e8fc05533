#include "proto/link/client.hpp"

#include "proto/link/backoff.hpp"
#include "util/deadline.hpp"
#include "util/fifo_lock.hpp"

#include <random>

namespace vtpmd::proto {

namespace {

/// What a refused hello means for a link that is being made: nothing that time can cure, or try again.
bool worth_retrying(Errc code) {
    switch (code) {
    case Errc::unavailable:
    case Errc::closed:
    case Errc::timed_out:
    case Errc::protocol:
    case Errc::busy:
    case Errc::io:
    case Errc::no_space:
        return true;
    default:
        return false;
    }
}

class Client final : public ManagerClient {
  public:
    Client(asio::any_io_executor executor, ClientOptions options, Connect connect, Clock& clock, const Log& log)
        : options_(std::move(options))
        , clock_(clock)
        , log_(log)
        , connect_(std::move(connect))
        , turn_(std::move(executor))
        , spread_(options.spread_seed ? *options.spread_seed : std::random_device{}()) {}

    Task<Result<HelloReply>> hello() override {
        auto held = co_await turn_.acquire();
        if (!held) {
            co_return std::move(held).error();
        }
        auto linked = co_await bounded(options_.hello_deadline, "the manager", make_link());
        if (!linked) {
            co_return std::move(linked).error();
        }
        failures_ = 0;
        co_return greeted_;
    }

    Task<Result<void>> save_hash_key(ByteView hash_key, Interruption* by) override {
        offered_ = to_bytes(hash_key.subspan(hash_key_part));
        auto saved = co_await save(hash_key, by);
        if (saved) {
            had_record_ = true;
            on_record_ = std::exchange(offered_, std::nullopt);
        }
        co_return saved;
    }

    Task<Result<std::optional<SecretBytes>>> load_hash_key() override {
        const Bytes request = encode_load();
        auto answer = co_await exchange("LOADHASHKEY", request, &is_answer);
        if (!answer) {
            co_return std::move(answer).error();
        }
        auto loaded = parse_load_reply(*answer);
        cleanse(*answer);
        if (loaded) {
            if (auto ours = is_ours(*loaded); !ours) {
                co_return ours.error();
            }
            settle_record(*loaded);
        }
        co_return loaded;
    }

    Task<Result<BootHash>> boot_hash() override {
        const Bytes request = encode_get_boot_hash();
        auto answer = co_await exchange("GET_BOOT_HASH", request, &is_answer);
        if (!answer) {
            co_return std::move(answer).error();
        }
        co_return parse_boot_hash_reply(*answer);
    }

    Task<Result<void>> handed_over() override {
        const Bytes request = encode_handed_over();
        auto answer = co_await exchange("HANDED_OVER", request, &is_answer, nullptr, &said_handed_over_);
        // Deleted or reset meanwhile is another thing: then it is nobody's.
        const bool is_away = !answer && answer.error().code == Errc::tombstone &&
                             answer.error().detail == static_cast<std::uint32_t>(Status::vendor_tombstone);
        if (is_away && said_handed_over_) {
            co_return Result<void>{}; // it was done, and the answer got lost with its link
        }
        if (!answer) {
            co_return std::move(answer).error();
        }
        co_return parse_save_reply(*answer);
    }

    Task<Result<QuoteReply>> quote(QuoteRequest request) override {
        if (auto good = check(request); !good) {
            co_return good.error();
        }
        const Bytes frame = encode_quote(request);
        auto answer = co_await exchange("QUOTE", frame, &is_answer);
        if (!answer) {
            co_return std::move(answer).error();
        }
        co_return parse_quote_reply(*answer);
    }

    Task<Result<Bytes>> old_quote(OldQuoteRequest request) override {
        if (auto good = check(request); !good) {
            co_return good.error();
        }
        const Bytes frame = encode_old_quote(request);
        auto answer = co_await exchange("GET_QUOTE", frame, &is_answer);
        if (!answer) {
            co_return std::move(answer).error();
        }
        co_return parse_old_quote_reply(*answer, request);
    }

    Task<Result<SecretBytes>> invite() override {
        const Bytes request = encode_invite();
        auto answer = co_await exchange("INVITE", request, &is_answer);
        if (!answer) {
            co_return std::move(answer).error();
        }
        auto key = parse_invite_reply(*answer);
        cleanse(*answer);
        co_return key;
    }

    Task<Result<Bytes>> certify(CertifyRequest request) override {
        if (request.key.size() != ek_size(request.kind)) {
            co_return make_error(Errc::usage, "an endorsement key of {} bytes", request.key.size());
        }
        const Bytes frame = encode_certify(request);
        auto answer = co_await exchange("CERTIFY", frame, &is_answer);
        if (!answer) {
            co_return std::move(answer).error();
        }
        co_return parse_certify_reply(*answer);
    }

    Task<Result<Bytes>> tpm_command(Bytes command) override {
        if (command.size() < header_size || command.size() > frame_limit) {
            co_return make_error(Errc::usage, "a TPM command of {} bytes", command.size());
        }
        co_return co_await exchange("a TPM command for the manager", command, &is_tpm_answer);
    }

    [[nodiscard]] bool connected() const override { return channel_ != nullptr && welcome_; }

    void close() override {
        closed_ = true;
        if (channel_) {
            channel_->close();
        }
    }

  private:
    using IsAnswer = bool (*)(const FrameHeader&);
    static bool is_answer(const FrameHeader& h) { return h.tag == tag::response; }
    static bool is_tpm_answer(const FrameHeader& h) {
        return h.tag == tag::tpm12_response || h.tag == tag::tpm20_command;
    }

    /// By SAVE_OVER, where it is known what this goes over and the manager has it.
    Task<Result<void>> save(ByteView hash_key, Interruption* by) {
        if (on_record_ && !without_save_over_) {
            SecretBytes request = secret_frame(encode_save_over(*on_record_, hash_key));
            auto answer = co_await exchange("SAVE_OVER", request.view(), &is_answer, by);
            if (!answer) {
                co_return std::move(answer).error();
            }
            auto saved = parse_save_reply(*answer);
            if (!saved && saved.error().code == Errc::rollback) {
                co_return superseded();
            }
            if (saved || saved.error().code != Errc::unsupported) {
                co_return saved;
            }
            without_save_over_ = true;
        }
        SecretBytes request = secret_frame(encode_save(hash_key));
        auto answer = co_await exchange("SAVEHASHKEY", request.view(), &is_answer, by);
        if (!answer) {
            co_return std::move(answer).error();
        }
        co_return parse_save_reply(*answer);
    }

    static Bytes hash_in(const std::optional<SecretBytes>& hash_key) {
        return hash_key ? to_bytes(hash_key->view().subspan(hash_key_part)) : Bytes{};
    }

    /// What is on record must be what was acknowledged last, or what is in doubt.
    Result<void> is_ours(const std::optional<SecretBytes>& record) {
        const Bytes there = hash_in(record);
        if (!on_record_ || there == *on_record_ || there == offered_) {
            return {};
        }
        return superseded();
    }
    void settle_record(const std::optional<SecretBytes>& record) {
        on_record_ = hash_in(record);
        offered_.reset();
    }
    Error superseded() {
        Error e = make_error(
            Errc::rollback,
            "{}: what is on record of vTPM {} is not what this instance saved last: another instance has saved "
            "since, on a copy of the image (or the manager's store is another copy); what runs here is not kept: "
            "start the one whose image is the present one",
            channel_ ? channel_->peer() : std::string("the manager"), options_.greeting.uuid);
        if (options_.superseded) {
            options_.superseded(e);
        }
        return e;
    }

    static SecretBytes secret_frame(Bytes frame) {
        SecretBytes secret(frame);
        cleanse(frame);
        return secret;
    }

    /// `operation` with a deadline; running out of it is Errc::unavailable with the last trouble of the link.
    template <typename T>
    Task<Result<T>> bounded(Clock::duration limit, std::string what, Task<Result<T>> operation,
                            Interruption* by = nullptr) {
        trouble_.reset();
        Interruption own;
        Interruption& end = by != nullptr ? *by : own;
        bool time_up = false;
        Alarm alarm(clock_, [&end, &time_up] {
            time_up = true;
            end.request();
        });
        alarm.set(clock_.now() + limit);
        auto result = co_await interruptible(end, what, std::move(operation));
        if (!result && (result.error().code == Errc::timed_out || result.error().code == Errc::canceled)) {
            // Whatever was under way may still be answered: that answer must not be taken for a later
            // request's.
            channel_.reset();
        }
        away_ = !result && result.error().code == Errc::timed_out && time_up;
        if (away_) {
            Error away = no_answer_within(limit, what);
            if (trouble_) {
                away.message = fmt::format("{}: {}", what, trouble_->message);
            }
            away.code = Errc::unavailable;
            co_return away;
        }
        co_return result;
    }

    Task<Result<Bytes>> exchange(std::string what, ByteView request, IsAnswer expected, Interruption* by = nullptr,
                                 bool* sent = nullptr) {
        Task<Result<FifoLock::Guard>> waiting = turn_.acquire();
        if (by != nullptr && turn_.held()) {
            waiting = interruptible(*by, what, std::move(waiting));
        }
        auto held = co_await std::move(waiting);
        if (!held) {
            co_return std::move(held).error();
        }
        co_return co_await bounded(away_ ? options_.retry_deadline : options_.request_deadline, std::move(what),
                                   exchange_until_answered(request, expected, sent), by);
    }

    /// Sends `request` over as many links as it takes.
    Task<Result<Bytes>> exchange_until_answered(ByteView request, IsAnswer expected, bool* sent) {
        for (;;) {
            auto linked = co_await make_link();
            if (!linked) {
                co_return std::move(linked).error();
            }
            auto answer = co_await once(request, sent);
            if (answer) {
                if (expected(*parse_header(*answer))) {
                    failures_ = 0;
                    co_return answer;
                }
                answer = make_error(Errc::protocol, "{}: an answer of another kind", channel_->peer());
            }
            if (answer.error().code == Errc::canceled) {
                co_return std::move(answer).error();
            }
            link_lost(std::move(answer).error());
        }
    }

    /// One request, one answer on the present link. `in_exchange_` stays set if this is abandoned half-way.
    /// `may_be_there` is set once the manager may have the request.
    Task<Result<Bytes>> once(ByteView request, bool* may_be_there = nullptr) {
        in_exchange_ = true;
        const bool before = may_be_there != nullptr && std::exchange(*may_be_there, true); // also if this is abandoned
        auto sent = co_await channel_->send(request);
        if (!sent) {
            if (may_be_there != nullptr && sent.error().code != Errc::canceled) {
                *may_be_there = before;
            }
            co_return std::move(sent).error();
        }
        auto answer = co_await channel_->receive();
        if (answer) {
            in_exchange_ = false;
        }
        co_return answer;
    }

    /// Returns with a link that was greeted, or with an error that trying again does not cure.
    Task<Result<void>> make_link() {
        const Clock::time_point started = clock_.now();
        for (;;) {
            if (closed_) {
                co_return make_error(Errc::closed, "the link to the manager was closed");
            }
            if (in_exchange_) { // an earlier request was cancelled half-way
                in_exchange_ = false;
                channel_.reset();
            }
            if (channel_) {
                co_return Result<void>{};
            }
            const auto wait = backoff_.wait_before(failures_, static_cast<std::uint32_t>(spread_()));
            if (wait.count() > 0) {
                (void)co_await clock_.sleep_for(wait);
            }
            auto linked = co_await try_link();
            if (linked) {
                continue;
            }
            const Error& e = linked.error();
            const bool out_of_patience =
                e.code == Errc::busy && !greeted_once_ && clock_.now() - started >= options_.busy_patience;
            if (e.code == Errc::canceled || !worth_retrying(e.code) || out_of_patience) {
                channel_.reset();
                co_return linked;
            }
            link_lost(std::move(linked).error());
        }
    }

    /// Connects and greets, once.
    Task<Result<void>> try_link() {
        auto channel = co_await connect_();
        if (!channel) {
            Error e = std::move(channel).error();
            // No socket, nobody listening, no right to it yet: a manager that is being (re)started looks like
            // this.
            if (e.code == Errc::not_found || e.code == Errc::closed || e.code == Errc::io) {
                e.code = Errc::unavailable;
            }
            co_return e;
        }
        channel_ = std::move(*channel);
        welcome_ = false;
        HelloRequest greeting = options_.greeting;
        // Registered once is enough: asking again could make a manager with an older store take this vTPM for
        // a new one.
        greeting.create = greeting.create && !greeted_once_;
        const Bytes request = encode_hello(greeting);
        auto answer = co_await once(request);
        if (!answer) {
            co_return std::move(answer).error();
        }
        auto reply = parse_hello_reply(*answer);
        if (!reply) {
            co_return std::move(reply).error();
        }
        if (reply->was_reset) {
            auto reset = co_await ask_reset();
            if (!reset) {
                co_return std::move(reset).error();
            }
            reply->reset = std::move(*reset);
        }
        if (greeted_once_ && reply->reset != greeted_.reset) {
            co_return make_error(Errc::tombstone,
                                 "{}: vTPM {} was reset to factory after this instance began: what runs here is its "
                                 "past, and is not kept; end this instance and start it again",
                                 channel_->peer(), options_.greeting.uuid);
        }
        if (had_record_ && !reply->has_record) {
            co_return make_error(
                Errc::mismatch,
                "{}: this manager has no record of vTPM {}, whose state was saved through it before; is "
                "it running on another store?",
                channel_->peer(), options_.greeting.uuid);
        }
        if (greeted_once_ && on_record_) {
            auto kept = co_await check_record(*reply);
            if (!kept) {
                co_return kept;
            }
        }
        if (!greeted_once_ && !reply->has_record) {
            on_record_ = Bytes{};
        }
        without_save_over_ = false;
        if (failures_ > 0) {
            log_.info("manager {}: connected", channel_->peer());
        }
        greeted_once_ = true;
        welcome_ = true;
        had_record_ = reply->has_record;
        greeted_ = *reply;
        co_return Result<void>{};
    }

    /// While there was no link, another instance may have had the vTPM.
    Task<Result<void>> check_record(const HelloReply& reply) {
        std::optional<SecretBytes> record;
        if (reply.has_record) {
            const Bytes request = encode_load();
            auto answer = co_await once(request);
            if (!answer) {
                co_return std::move(answer).error();
            }
            auto loaded = parse_load_reply(*answer);
            cleanse(*answer);
            if (!loaded) {
                co_return std::move(loaded).error();
            }
            record = std::move(*loaded);
        }
        co_return is_ours(record);
    }

    Task<Result<ResetInfo>> ask_reset() {
        const Bytes request = encode_reset_info();
        auto answer = co_await once(request);
        if (!answer) {
            co_return std::move(answer).error();
        }
        co_return parse_reset_info_reply(*answer);
    }

    void link_lost(Error why) {
        channel_.reset();
        in_exchange_ = false;
        if (failures_ == 0) {
            log_.warning_limited(limit_, clock_.now(), "manager: {}; trying again", why.message);
        }
        trouble_ = std::move(why);
        ++failures_;
    }

    const ClientOptions options_;
    const Backoff backoff_{};
    Clock& clock_;
    const Log& log_;
    const Connect connect_;

    FifoLock turn_;
    std::unique_ptr<Channel> channel_;
    HelloReply greeted_{};
    bool greeted_once_ = false;
    bool welcome_ = false; ///< the manager has answered on this link; a service manager may hold its socket meanwhile
    bool had_record_ = false;
    bool in_exchange_ = false;
    bool without_save_over_ = false; ///< the manager of this link is older
    std::optional<Bytes>
        on_record_; ///< hash of the slot that was acknowledged or loaded last, empty: none; not set: not known
    std::optional<Bytes> offered_;  ///< hash of the slot whose fate is not known
    bool said_handed_over_ = false; ///< else a tombstone is not of that
    bool closed_ = false;
    bool away_ = false;            ///< the last request ran out of time
    unsigned failures_ = 0;        ///< of links in a row
    std::optional<Error> trouble_; ///< why the last link failed, in the present request
    RateLimit limit_;
    std::minstd_rand spread_;
};

} // namespace

std::unique_ptr<ManagerClient> make_manager_client(asio::any_io_executor executor, ClientOptions options,
                                                   ManagerClient::Connect connect, Clock& clock, const Log& log) {
    return std::make_unique<Client>(std::move(executor), std::move(options), std::move(connect), clock, log);
}

} // namespace vtpmd::proto
