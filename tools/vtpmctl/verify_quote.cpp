#include "commands.hpp"
#include "inputs.hpp"
#include "quote/deep_quote.hpp"
#include "quote/old_quote.hpp"
#include "tpm/pcr.hpp"
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
    if (o.has("json")) { // nothing in it needs an escape
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

unsigned locality_of(const Options& o) {
    const std::string text = o.one("locality").value_or("0");
    if (text.size() != 1 || text.front() < '0' || text.front() > '4') {
        fail(EX_USAGE, fmt::format("--locality={}: 0 to 4", text));
    }
    return static_cast<unsigned>(text.front() - '0');
}

[[noreturn]] void refuse(const Error& e) {
    if (e.code == Errc::usage) {
        fail(EX_USAGE, fmt::format("{}; see vtpmctl verify-quote --help", e.message));
    }
    fail(EX_DATAERR, fmt::format("refused: {}\n  what to do: {}", e.message, advice(e.code)));
}

void print_old(const Options& o, const quote::OldQuoteCheck& check, const hwtpm::Quote& quote) {
    const bool key = check.command == quote::OldCommand::parent_sign_ek;
    if (o.has("json")) {
        fmt::print(R"({{"verified":true,"hardware":"1.2","vtpm":{},"nonce":"{}","pcrs":[{}],"host_pcrs":[{}]}})"
                   "\n",
                   check.vtpm ? fmt::format(R"("{}")", *check.vtpm) : "null", to_hex(check.nonce),
                   pcrs_text(check.pcrs), pcrs_text(quote.values));
        return;
    }
    const std::string whose = check.vtpm ? fmt::format("vTPM {}", *check.vtpm) : "a vTPM of the key's group";
    fmt::print("verified: the hardware TPM 1.2 of the host says that {} has {} and\n", whose,
               key ? "this endorsement key, new," : "these PCRs");
    print_pcrs("vTPM", check.pcrs);
    print_pcrs("host", quote.values);
}

/// In the form of Xen's vTPM: what was asked is in a file, and not in the answer.
void verify_old(const Options& o) {
    quote::OldQuoteCheck check;
    if (o.has("group")) {
        o.refuse("takes no --group together with --request: an answer in that form does not name its group");
    }
    const std::string request = read_file(o.needed("request", "the command's parameters"));
    check.parameters = to_bytes(as_bytes(request));
    check.key = public_key_of(o, "key", "the group's attestation key, that is trusted");
    check.nonce = must(from_hex(o.needed("nonce", "the nonce that it has to be for")), "--nonce");
    check.locality = locality_of(o);
    check.host_pcrs = pcrs_of(o, "host-pcr");
    if (o.one("ek")) {
        check.command = quote::OldCommand::parent_sign_ek;
        check.endorsement_key = public_key_of(o, "ek", "the vTPM's endorsement key");
        if (o.one("uuid") || o.one("approver") || o.one("pcr")) {
            fail(EX_USAGE, "--request with --ek: the vTPM's proof of a new endorsement key says nothing of --uuid, "
                           "--approver or --pcr; see vtpmctl verify-quote --help");
        }
    }
    if (auto uuid = o.one("uuid")) {
        check.vtpm = must(parse_uuid(*uuid), "--uuid");
    }
    if (o.one("approver")) {
        check.approver = public_key_of(o, "approver", "the public key of the group's approver");
    }
    check.pcrs = pcrs_of(o, "pcr");

    const std::string answer = read_file(o.words.front());
    if (auto prefix = o.one("extract")) {
        auto made = quote::old_hardware_quote(as_bytes(answer), check);
        if (!made) {
            refuse(made.error());
        }
        write_file(*prefix + ".attested", made->attested);
        write_file(*prefix + ".signature", made->signature);
    }
    auto verified = quote::verify_old_quote(as_bytes(answer), check);
    if (!verified) {
        refuse(verified.error());
    }
    print_old(o, check, *verified);
}

} // namespace

void verify_quote(const Options& o) {
    if (o.has("request")) {
        verify_old(o);
        return;
    }
    for (const char* name : {"approver", "locality"}) {
        if (o.has(name)) {
            o.refuse(fmt::format("takes --{} together with --request only", name));
        }
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

    const std::string content = read_file(o.words.front());
    auto deep = quote::decode_deep_quote(as_bytes(content));
    if (!deep) {
        fail(EX_DATAERR,
             fmt::format("{}: {}\n  what to do: {}", o.words.front(), deep.error().message, advice(Errc::protocol)));
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
