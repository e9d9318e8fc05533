#include "instance/quotes/old_quote.hpp"

#include "quote/old_quote.hpp"
#include "tpm/commands.hpp"
#include "util/wire.hpp"

namespace vtpmd::instance {

namespace {

Error malformed(std::string_view what, ByteView parameters) {
    return make_error(Errc::protocol, "{} with {} bytes of parameters", what, parameters.size());
}

Result<void> check_selection(ByteView selection) {
    if (selection.empty() || selection.size() > tpm::old_quote::selection_limit) {
        return make_error(Errc::usage, "a deep quote with a selection of {} bytes: 1 to {}", selection.size(),
                          tpm::old_quote::selection_limit);
    }
    return {};
}

Result<quote::OldPcrs> read_selected(Engine& engine, Bytes selection) {
    quote::OldPcrs out{.selection = std::move(selection), .values = {}};
    for (unsigned pcr : quote::selected(out.selection)) {
        auto value = tpm::parse_pcr_value(engine.execute(tpm::pcr_read_command(pcr), 0));
        if (!value) {
            return value.error();
        }
        out.values.insert(out.values.end(), value->begin(), value->end());
    }
    return out;
}

proto::OldQuoteRequest request_of(const tpm::Sha1Digest& data, OldQuoteCommand command) {
    return {.data = data, .selection = std::move(command.host_pcrs), .flags = command.flags};
}

} // namespace

bool asks_old_quote(ByteView parameters) {
    constexpr std::size_t flags_size = 4;
    if (parameters.size() < flags_size) {
        return true;
    }
    WireReader in(parameters.last(flags_size));
    return (in.be32() & deep_quote_form) == 0;
}

Result<OldQuoteCommand> parse_old_deep_quote(ByteView parameters) {
    WireReader in(parameters);
    OldQuoteCommand out;
    out.nonce = to_bytes(in.bytes(tpm::sha1_size));
    out.pcrs = to_bytes(in.bytes(in.be16()));
    out.host_pcrs = to_bytes(in.bytes(in.be16()));
    out.flags = in.be32();
    if (!in.expect_end()) {
        return malformed("TPM_ORD_DeepQuote", parameters);
    }
    if ((out.flags & ~tpm::old_quote::all_flags) != 0) {
        return make_error(Errc::usage, "a deep quote with flags 0x{:x}: 0x{:x} are known, and 0x{:x}", out.flags,
                          tpm::old_quote::all_flags, deep_quote_form);
    }
    for (const Bytes* selection : {&out.pcrs, &out.host_pcrs}) {
        if (auto good = check_selection(*selection); !good) {
            return good.error();
        }
    }
    return out;
}

Result<OldQuoteCommand> parse_parent_sign_ek(ByteView parameters) {
    WireReader in(parameters);
    OldQuoteCommand out;
    out.nonce = to_bytes(in.bytes(tpm::sha1_size));
    out.host_pcrs = to_bytes(in.bytes(in.be16()));
    if (!in.expect_end()) {
        return malformed("TPM_ORD_ParentSignEK", parameters);
    }
    if (auto good = check_selection(out.host_pcrs); !good) {
        return good.error();
    }
    return out;
}

Task<Result<Bytes>> old_deep_quote(QuotedVtpm vtpm, const OwnerAuthorised& session, std::uint8_t locality) {
    auto command = parse_old_deep_quote(session.parameters);
    if (!command) {
        co_return command.error();
    }
    auto pcrs = read_selected(vtpm.engine, std::move(command->pcrs));
    if (!pcrs) {
        co_return pcrs.error();
    }
    auto data = quote::old_vtpm_digest(command->nonce, *pcrs, locality);
    if (!data) {
        co_return data.error();
    }
    proto::OldQuoteRequest request = request_of(*data, std::move(*command));
    co_return co_await vtpm.manager.old_quote(std::move(request));
}

Task<Result<Bytes>> parent_sign_ek(QuotedVtpm vtpm, const OwnerAuthorised& session, bool first_run) {
    auto command = parse_parent_sign_ek(session.parameters);
    if (!command) {
        co_return command.error();
    }
    if (!first_run) {
        co_return make_error(Errc::unsupported, "TPM_ORD_ParentSignEK is for a vTPM's first run, before its first "
                                                "restart");
    }
    auto data = quote::old_endorsement_digest(session.endorsement_key, command->nonce);
    if (!data) {
        co_return data.error();
    }
    proto::OldQuoteRequest request = request_of(*data, std::move(*command));
    co_return co_await vtpm.manager.old_quote(std::move(request));
}

} // namespace vtpmd::instance
