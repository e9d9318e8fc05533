#include "proto/link/ask_messages.hpp"

#include "proto/link/messages.hpp"
#include "util/text.hpp"
#include "util/wire.hpp"

namespace vtpmd::proto {

namespace {

constexpr std::uint32_t existing_pcrs = 0x00FFFFFF; // PC Client Platform TPM Profile: PCR 0-23
constexpr std::uint8_t report_continued = 1;
constexpr std::uint8_t report_last = 2;

void put_selections(WireWriter& out, const std::vector<QuoteSelection>& selections) {
    out.u8(static_cast<std::uint8_t>(selections.size()));
    for (const QuoteSelection& s : selections) {
        out.be16(s.bank).be32(s.pcrs);
    }
}

std::vector<QuoteSelection> get_selections(WireReader& in) {
    std::vector<QuoteSelection> out;
    for (unsigned n = in.u8(); n > 0 && in.ok(); --n) {
        QuoteSelection s;
        s.bank = in.be16();
        s.pcrs = in.be32();
        out.push_back(s);
    }
    return out;
}

bool is_good(const std::vector<QuoteSelection>& selections, bool best_is_known) {
    std::uint16_t last = 0;
    const bool best = best_is_known && selections.size() == 1 && selections.front().bank == 0;
    for (const QuoteSelection& s : selections) {
        if ((s.bank <= last && !best) || s.pcrs == 0 || (s.pcrs & ~existing_pcrs) != 0) {
            return false;
        }
        last = s.bank;
    }
    return selections.size() <= quote_selection_limit;
}

} // namespace

Bytes encode_invite() { return make_frame(tag::request, ordinal::invite); }

Bytes encode_invite_reply(ByteView key) { return encode_success(key); }

Result<SecretBytes> parse_invite_reply(ByteView frame) {
    auto body = parse_response(frame);
    if (!body) {
        return std::move(body).error();
    }
    if (body->size() != attach_key_size) {
        return make_error(Errc::protocol, "INVITE's answer has a body of {} bytes", body->size());
    }
    return SecretBytes(*body);
}

Bytes encode_attach(const AttachRequest& request) {
    WireWriter out(2 + sizeof(Uuid) + attach_key_size);
    out.be16(protocol_version).bytes(request.uuid.bytes).bytes(request.key.view());
    Bytes body = out.take();
    Bytes frame = make_frame(tag::request, ordinal::attach, body);
    cleanse(body);
    return frame;
}

Result<AttachRequest> parse_attach(ByteView body) {
    WireReader in(body);
    const std::uint16_t version = in.be16();
    if (in.ok() && version != protocol_version) {
        return make_error(Errc::version, "protocol version {} is asked for, this manager speaks {}", version,
                          protocol_version);
    }
    AttachRequest request;
    request.uuid.bytes = in.array<16>();
    request.key = SecretBytes(in.bytes(attach_key_size));
    if (!in.expect_end()) {
        return make_error(Errc::protocol, "ATTACH with a body of {} bytes", body.size());
    }
    return request;
}

Result<void> check(const AskQuote& question) {
    if (question.nonce.empty() || question.nonce.size() > quote_nonce_limit) {
        return make_error(Errc::usage, "a quote's nonce of {} bytes: 1 to {}", question.nonce.size(),
                          quote_nonce_limit);
    }
    if (!is_good(question.pcrs, false)) {
        return make_error(Errc::usage, "the vTPM's PCRs: up to {} banks, each once, PCRs 0 to 23",
                          quote_selection_limit);
    }
    if (question.host_pcrs.empty() || !is_good(question.host_pcrs, true)) {
        return make_error(Errc::usage, "the hardware's PCRs: 1 to {} banks, each once, PCRs 0 to 23",
                          quote_selection_limit);
    }
    return {};
}

Bytes encode_ask_quote(const AskQuote& question) {
    WireWriter out;
    out.u8(static_cast<std::uint8_t>(question.nonce.size())).bytes(question.nonce);
    put_selections(out, question.pcrs);
    put_selections(out, question.host_pcrs);
    return make_frame(tag::request, ordinal::ask_quote, out.view());
}

Result<AskQuote> parse_ask_quote(ByteView body) {
    WireReader in(body);
    AskQuote question;
    question.nonce = to_bytes(in.bytes(in.u8()));
    question.pcrs = get_selections(in);
    question.host_pcrs = get_selections(in);
    if (!in.expect_end()) {
        return make_error(Errc::protocol, "ASK_QUOTE with a body of {} bytes", body.size());
    }
    if (auto good = check(question); !good) {
        return good.error();
    }
    return question;
}

Result<Bytes> encode_answer(ByteView body) {
    if (body.size() > frame_limit - header_size) {
        return make_error(Errc::too_large, "an answer of {} bytes, of at most {}", body.size(),
                          frame_limit - header_size);
    }
    return encode_success(body);
}

Bytes encode_answer_error(const Error& error) { return encode_hello_error(error); }

Result<Bytes> parse_answer(ByteView frame) {
    auto header = parse_frame(frame);
    if (!header) {
        return std::move(header).error();
    }
    if (header->tag != tag::response) {
        return make_error(Errc::protocol, "an answer with tag 0x{:04x}, expected 0x{:04x}", header->tag, tag::response);
    }
    const ByteView body = body_of(frame);
    if (header->code == static_cast<std::uint32_t>(Status::success)) {
        return to_bytes(body);
    }
    Error e = make_error(errc_of(header->code), "its instance refused (status 0x{:x})", header->code);
    if (!body.empty()) {
        e.message = "its instance says: " +
                    printable({reinterpret_cast<const char*>(body.data()), body.size()}, error_text_limit);
    }
    return e;
}

Bytes encode_report(const Report& report) {
    WireWriter out;
    out.be64(report.incarnation);
    out.u8(static_cast<std::uint8_t>((report.continued ? report_continued : 0) | (report.last ? report_last : 0)));
    out.be64(report.commits).be64(report.commit_failures).be64(report.latency_ns);
    for (std::uint64_t n : report.latency) {
        out.be64(n);
    }
    out.u8(static_cast<std::uint8_t>(report.commands.size()));
    for (const CommandReport& c : report.commands) {
        out.be32(c.code).be64(c.totals.success).be64(c.totals.tpm_error);
        out.be64(c.totals.refused).be64(c.totals.not_durable);
    }
    return make_frame(tag::request, ordinal::report, out.view());
}

Result<Report> parse_report(ByteView body) {
    WireReader in(body);
    Report report;
    report.incarnation = in.be64();
    const std::uint8_t flags = in.u8();
    report.continued = (flags & report_continued) != 0;
    report.last = (flags & report_last) != 0;
    report.commits = in.be64();
    report.commit_failures = in.be64();
    report.latency_ns = in.be64();
    for (std::uint64_t& n : report.latency) {
        n = in.be64();
    }
    const unsigned count = in.u8();
    bool ascending = true;
    for (unsigned n = count; n > 0 && in.ok(); --n) {
        CommandReport c;
        c.code = in.be32();
        c.totals.success = in.be64();
        c.totals.tpm_error = in.be64();
        c.totals.refused = in.be64();
        c.totals.not_durable = in.be64();
        ascending = ascending && (report.commands.empty() || report.commands.back().code < c.code);
        report.commands.push_back(c);
    }
    if (!in.expect_end() || count > report_command_limit || !ascending ||
        (flags & ~(report_continued | report_last)) != 0) {
        return make_error(Errc::protocol, "REPORT with a body of {} bytes, flags 0x{:x}, {} commands", body.size(),
                          flags, count);
    }
    return report;
}

} // namespace vtpmd::proto
