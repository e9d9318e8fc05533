#include "hwtpm/pcr.hpp"
#include "inputs.hpp"
#include "offline.hpp"
#include "quote/deep_quote.hpp"
#include "util/text.hpp"

#include <cstdio>

namespace vtpmctl {

using namespace vtpmd;

namespace {

/// What other tools check: the structure that the TPM signed, its signature, and the nonce that has to be in it.
void extract(const std::string& prefix, const quote::DeepQuote& deep) {
    const Bytes digest = must(quote::deep_quote_digest(deep.hardware, deep.claims), "the quote", EX_DATAERR);
    write_file(prefix + ".attested", deep.quote.attested);
    write_file(prefix + ".signature", deep.quote.signature);
    const std::string hex = to_hex(digest) + "\n";
    write_file(prefix + ".qualification", as_bytes(hex));
}

std::string_view advice(Errc code) {
    switch (code) {
    case Errc::permission:
        return "is --key the group's attestation key (vtpmctl group show)? If it is, the quote is forged or damaged";
    case Errc::pcr_mismatch:
        return "the platform or the vTPM is not in the state that is asked for; do not trust it as if it were";
    case Errc::protocol:
        return "ask for a new quote; this one was damaged, or made by something else";
    default:
        return "do not trust it; ask for a new quote, of this vTPM and with this nonce";
    }
}

void print_pcrs(const char* whose, const std::vector<hwtpm::PcrValue>& pcrs) {
    for (const hwtpm::PcrValue& v : pcrs) {
        fmt::print("  {} {}:{:<2} {}\n", whose, hwtpm::bank_name(v.bank), v.index, to_hex(v.digest));
    }
}

std::string pcrs_text(const std::vector<hwtpm::PcrValue>& pcrs) {
    std::string out;
    for (const hwtpm::PcrValue& v : pcrs) {
        out += fmt::format(R"({}{{"bank":"{}","index":{},"value":"{}"}})", out.empty() ? "" : ",",
                           hwtpm::bank_name(v.bank), v.index, to_hex(v.digest));
    }
    return out;
}

void print(const Options& o, const quote::DeepQuote& deep) {
    if (o.json) { // nothing in it needs an escape
        fmt::print(R"({{"verified":true,"hardware":"{}","vtpm":"{}","group":"{}","nonce":"{}","pcrs":[{}],)"
                   R"("host_pcrs":[{}]}})"
                   "\n",
                   to_string(deep.hardware), deep.claims.vtpm, deep.claims.group, to_hex(deep.claims.nonce),
                   pcrs_text(deep.pcrs), pcrs_text(deep.quote.values));
        return;
    }
    fmt::print("verified: the hardware TPM {} of the host says that vTPM {} of group {} has this endorsement key and\n",
               to_string(deep.hardware), deep.claims.vtpm, deep.claims.group);
    print_pcrs("vTPM", deep.pcrs);
    print_pcrs("host", deep.quote.values);
}

} // namespace

void verify_quote(const Options& o) {
    if (o.words.size() != 2) {
        fail(EX_USAGE, "verify-quote needs one file, with the quote; see vtpmctl --help");
    }
    quote::DeepQuoteCheck check;
    check.key = public_key_of(o, "key", "the group's attestation key, that is trusted");
    check.endorsement_key = public_key_of(o, "ek", "the vTPM's endorsement key");
    check.vtpm = must(parse_uuid(o.needed("uuid", "the vTPM that it has to be of")), "--uuid");
    check.nonce = must(from_hex(o.needed("nonce", "the nonce that it has to be for")), "--nonce");
    if (auto group = o.one("group")) {
        check.group = must(parse_uuid(*group), "--group");
    }
    check.pcrs = pcrs_of(o, "pcr");
    check.host_pcrs = pcrs_of(o, "host-pcr");

    const std::string content = read_file(o.words[1]);
    auto deep = quote::decode_deep_quote(as_bytes(content));
    if (!deep) {
        fail(EX_DATAERR,
             fmt::format("{}: {}\n  what to do: {}", o.words[1], deep.error().message, advice(Errc::protocol)));
    }
    if (auto prefix = o.one("extract")) {
        extract(*prefix, *deep);
    }
    if (auto verified = quote::verify_deep_quote(*deep, check); !verified) {
        fail(EX_DATAERR,
             fmt::format("refused: {}\n  what to do: {}", verified.error().message, advice(verified.error().code)));
    }
    print(o, *deep);
}

} // namespace vtpmctl
