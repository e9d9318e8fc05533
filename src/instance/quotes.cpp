#include "instance/instance.hpp"

#include "instance/quotes/deep_quote.hpp"
#include "instance/quotes/old_quote.hpp"
#include "instance/quotes/operator_quote.hpp"
#include "tpm/commands.hpp"
#include "util/wire.hpp"

#include <algorithm>

namespace vtpmd::instance {

Task<Bytes> Instance::owner_quote(Turn turn, Bytes command, std::uint8_t locality) {
    const Turn held = std::move(turn);
    ++counters_.commands;
    ++counters_.long_commands;
    life_.happened(Event::command);
    SecretBytes registers = committer_.before(command, Admission::watch);
    auto asked = authorise_as_owner(engine_, command, locality);
    // A wrong proof is counted, and that is durable before anybody is told.
    const Bytes answer = std::holds_alternative<Bytes>(asked) ? std::get<Bytes>(asked) : Bytes{};
    auto kept = co_await commit_if_changed(std::move(registers), std::move(command), answer);
    if (!kept) {
        co_return refuse_not_durable(tpm::not_durable_code(version()));
    }
    if (auto* refusal = std::get_if<Bytes>(&asked)) {
        ++counters_.tpm_errors;
        co_return std::move(*refusal);
    }
    const OwnerAuthorised session = std::move(std::get<OwnerAuthorised>(asked));
    const QuotedVtpm quoted_vtpm{.engine = engine_, .manager = manager_, .uuid = config_.uuid};
    Task<Result<Bytes>> quoting = session.ordinal == tpm::ord::vendor_parent_sign_ek
                                      ? parent_sign_ek(quoted_vtpm, session, made_here_ && runs_ == 1)
                                  : asks_old_quote(session.parameters) ? old_deep_quote(quoted_vtpm, session, locality)
                                                                       : deep_quote(quoted_vtpm, session);
    auto quoted = co_await std::move(quoting);
    if (!quoted) {
        ++counters_.tpm_errors;
        warn(in_context(quoted.error(), "no deep quote").message);
        end_session(engine_, session);
        co_return tpm::error_response(version(), deep_quote_refusal(version(), quoted.error().code));
    }
    co_return authorised_response(session, *quoted);
}

Task<Bytes> Instance::own_quote(Turn turn, Bytes command) {
    const Turn held = std::move(turn);
    ++counters_.commands;
    ++counters_.long_commands;
    life_.happened(Event::command);
    if (tpm::peek_header(command).tag != tpm::st_no_sessions) {
        ++counters_.tpm_errors;
        co_return tpm::error_response(version(), tpm::rc20::auth_context);
    }
    SecretBytes registers = committer_.before(command, Admission::watch);
    auto asked = parse_deep_quote_20(ByteView(command).subspan(tpm::header_size));
    Result<Bytes> quoted = asked ? Bytes{} : Result<Bytes>(asked.error());
    if (asked) {
        const QuotedVtpm quoted_vtpm{.engine = engine_, .manager = manager_, .uuid = config_.uuid};
        quoted = co_await deep_quote_20(quoted_vtpm, worker_, std::move(*asked));
    }
    auto kept = co_await commit_if_changed(std::move(registers), std::move(command), {});
    if (!kept) {
        co_return refuse_not_durable(tpm::not_durable_code(version()));
    }
    if (!quoted) {
        ++counters_.tpm_errors;
        warn(in_context(quoted.error(), "no deep quote").message);
        co_return tpm::error_response(version(), deep_quote_refusal(version(), quoted.error().code));
    }
    WireWriter out;
    out.be16(tpm::st_no_sessions).be32(static_cast<std::uint32_t>(tpm::header_size + quoted->size())).be32(0);
    co_return out.bytes(*quoted).take();
}

Task<Result<Bytes>> Instance::quote_for_operator(proto::AskQuote question) {
    auto turn = co_await lock_.acquire();
    if (!turn) {
        co_return std::move(turn).error();
    }
    auto done = co_await shielded(group_, "an operator's quote", operator_quote(std::move(*turn), std::move(question)));
    if (!done) {
        co_return make_error(Errc::canceled, "cancelled");
    }
    co_return std::move(*done);
}

/// What its guest has left in the TPM to find again must not be touched.
Task<Result<Bytes>> Instance::operator_quote(Turn turn, proto::AskQuote question) {
    const Turn held = std::move(turn);
    if (auto may = life_.may(Event::operator_quote); !may) {
        co_return may.error();
    }
    if (!committer_.calm()) {
        co_return make_error(Errc::unavailable, "its state cannot be saved now; ask again later");
    }
    SecretBytes registers = committer_.before({}, Admission::watch);
    const QuotedVtpm quoted_vtpm{.engine = engine_, .manager = manager_, .uuid = config_.uuid};
    auto quoted = co_await instance::operator_quote(quoted_vtpm, worker_, std::move(question));
    auto kept = co_await commit_if_changed(std::move(registers), {}, {});
    co_return kept ? std::move(quoted) : Result<Bytes>(kept.error());
}

} // namespace vtpmd::instance
