#include "proto/link/server.hpp"

#include "util/deadline.hpp"

namespace vtpmd::proto {

namespace {

class Session {
  public:
    Session(Channel& channel, Handler& handler, Clock& clock, const Log& log, ServeOptions options)
        : channel_(channel)
        , handler_(handler)
        , clock_(clock)
        , log_(log)
        , options_(options) {}

    Task<Result<void>> run() {
        while (!refused_) {
            auto frame = co_await next_frame();
            if (!frame) {
                if (frame.error().code == Errc::closed) {
                    co_return Result<void>{};
                }
                co_return std::move(frame).error();
            }
            Request request = parse_request(*frame);
            cleanse(*frame);
            Bytes answer = co_await answer_to(std::move(request));
            auto sent = co_await channel_.send(answer);
            cleanse(answer);
            if (!sent) {
                co_return std::move(sent).error();
            }
            if (attached_) {
                co_return co_await handler_.attached();
            }
        }
        co_return std::move(*refused_);
    }

  private:
    Task<Result<Bytes>> next_frame() {
        if (options_.hello_required && !greeted_) {
            co_return co_await with_deadline(clock_, options_.hello_deadline, channel_.peer() + ": a hello",
                                             channel_.receive());
        }
        co_return co_await channel_.receive();
    }

    Task<Bytes> answer_to(Request request) {
        if (auto* bad = std::get_if<BadRequest>(&request)) {
            warn(bad->reason);
            co_return std::move(bad->answer);
        }
        if (auto* hello = std::get_if<HelloRequest>(&request)) {
            co_return co_await answer_hello(*hello);
        }
        if (auto* attach = std::get_if<AttachRequest>(&request)) {
            co_return answer_attach(std::move(*attach));
        }
        if (options_.hello_required && !greeted_) {
            warn("a request before the hello");
            const Error e = make_error(Errc::permission, "a request before the hello");
            co_return encode_error(e);
        }
        if (auto* save = std::get_if<SaveRequest>(&request)) {
            Task<Result<void>> saving = save->over
                                            ? handler_.save_over(std::move(*save->over), std::move(save->hash_key))
                                            : handler_.save_hash_key(std::move(save->hash_key));
            auto saved = co_await std::move(saving);
            if (!saved && saved.error().code == Errc::unsupported) {
                co_return encode_error(saved.error());
            }
            co_return saved ? encode_success() : refuse("SAVEHASHKEY", saved.error());
        }
        if (std::holds_alternative<LoadRequest>(request)) {
            auto loaded = co_await handler_.load_hash_key();
            if (!loaded) {
                co_return refuse("LOADHASHKEY", loaded.error());
            }
            if (!*loaded) {
                const Error nothing = make_error(Errc::not_found, "nothing was saved yet");
                co_return encode_error(nothing);
            }
            co_return encode_success((*loaded)->view());
        }
        if (std::holds_alternative<BootHashRequest>(request)) {
            auto hash = co_await handler_.boot_hash();
            co_return hash ? encode_success(*hash) : refuse("GET_BOOT_HASH", hash.error());
        }
        if (std::holds_alternative<HandedOverRequest>(request)) {
            auto done = co_await handler_.handed_over();
            co_return done ? encode_success() : refuse("HANDED_OVER", done.error());
        }
        if (std::holds_alternative<InviteRequest>(request)) {
            auto key = co_await handler_.invite();
            co_return key ? encode_invite_reply(key->view()) : refuse("INVITE", key.error());
        }
        if (std::holds_alternative<ResetInfoRequest>(request)) {
            auto info = co_await handler_.reset_info();
            co_return info ? encode_reset_info_reply(*info) : refuse("RESET_INFO", info.error());
        }
        if (auto* quote = std::get_if<QuoteRequest>(&request)) {
            co_return co_await answer_quote(std::move(*quote));
        }
        if (auto* old = std::get_if<OldQuoteRequest>(&request)) {
            co_return co_await answer_old_quote(std::move(*old));
        }
        if (auto* certify = std::get_if<CertifyRequest>(&request)) {
            auto certificate = co_await handler_.certify(std::move(*certify));
            auto frame = certificate ? encode_certify_reply(*certificate) : Result<Bytes>(certificate.error());
            if (!frame) {
                warn("CERTIFY: " + frame.error().message);
                co_return encode_error(frame.error());
            }
            co_return std::move(*frame);
        }
        if (auto* management = std::get_if<ManagementRequest>(&request)) {
            co_return co_await answer_management(std::move(management->frame));
        }
        co_return co_await answer_tpm(std::move(std::get<TpmCommand>(request)));
    }

    Task<Bytes> answer_hello(HelloRequest hello) {
        if (greeted_) {
            warn("a second hello");
            const Error e = make_error(Errc::usage, "a second hello on one link");
            co_return encode_hello_error(e);
        }
        auto reply = co_await handler_.hello(hello);
        if (!reply) {
            refused_ = std::move(reply).error();
            co_return encode_hello_error(*refused_);
        }
        greeted_ = true;
        co_return encode_hello_reply(*reply);
    }

    Bytes answer_attach(AttachRequest request) {
        auto taken = greeted_ ? Result<void>(make_error(Errc::usage, "ATTACH after a hello"))
                              : handler_.attach(std::move(request));
        if (!taken) {
            refused_ = std::move(taken).error();
            warn("ATTACH: " + refused_->message);
            return encode_error(*refused_);
        }
        attached_ = true;
        return encode_success();
    }

    /// A guest can ask for it as often as it likes, so also what fails is one of the lines that are held back.
    Task<Bytes> answer_quote(QuoteRequest request) {
        auto reply = co_await handler_.quote(std::move(request));
        auto frame = reply ? encode_quote_reply(*reply) : Result<Bytes>(reply.error());
        if (!frame) {
            warn("QUOTE: " + frame.error().message);
            co_return encode_error(frame.error());
        }
        co_return std::move(*frame);
    }

    Task<Bytes> answer_old_quote(OldQuoteRequest request) {
        auto body = co_await handler_.old_quote(std::move(request));
        if (!body) {
            warn("GET_QUOTE: " + body.error().message);
            co_return encode_error(body.error());
        }
        co_return encode_success(*body);
    }

    Task<Bytes> answer_management(Bytes frame) {
        auto body = co_await handler_.management(std::move(frame));
        if (body) {
            Bytes answer = encode_success(*body);
            cleanse(*body);
            co_return answer;
        }
        warn(fmt::format("management: {}", body.error().message));
        if (body.error().code == Errc::permission) {
            co_return make_frame(tag::response, static_cast<std::uint32_t>(Status::auth_fail));
        }
        co_return encode_error(body.error());
    }

    Task<Bytes> answer_tpm(TpmCommand request) {
        const std::uint16_t command_tag = parse_header(request.command)->tag;
        auto response = co_await handler_.tpm_command(std::move(request.command));
        if (response && parse_frame(*response)) {
            co_return std::move(*response);
        }
        log_.error_limited(limit_, clock_.now(), "{}: the manager's TPM: {}", channel_.peer(),
                           response ? std::string("a malformed response") : response.error().message);
        co_return encode_tpm_refusal(command_tag, TpmRefusal::failed);
    }

    Bytes refuse(std::string_view what, const Error& e) {
        log_.error_limited(limit_, clock_.now(), "{}: {}: {}", channel_.peer(), what, e.message);
        return encode_error(e);
    }

    void warn(std::string_view reason) {
        log_.warning_limited(limit_, clock_.now(), "{}: {}", channel_.peer(), reason);
    }

    Channel& channel_;
    Handler& handler_;
    Clock& clock_;
    const Log& log_;
    const ServeOptions options_;

    bool greeted_ = false;
    bool attached_ = false;
    std::optional<Error> refused_;
    RateLimit limit_;
};

} // namespace

Task<Result<Bytes>> Handler::management(Bytes /*frame*/) {
    co_return make_error(Errc::permission, "only the administrator's vTPM manages");
}

Task<Result<void>> serve(Channel& channel, Handler& handler, Clock& clock, const Log& log, ServeOptions options) {
    Session session(channel, handler, clock, log, options);
    co_return co_await session.run();
}

} // namespace vtpmd::proto
