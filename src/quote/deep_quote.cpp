#include "quote/deep_quote.hpp"

#include "quote/hardware_quote.hpp"
#include "tpm/public_key.hpp"
#include "tpm/sha1.hpp"
#include "util/text.hpp"
#include "util/wire.hpp"

#include <algorithm>
#include <limits>

namespace vtpmd::quote {

namespace {

constexpr std::string_view our_form = "vtpmd quote 1";

constexpr std::string_view file_magic = "vtpmdDQ1";
constexpr std::size_t pcrs_limit = 255;

void put_part(WireWriter& w, ByteView part) { w.be16(static_cast<std::uint16_t>(part.size())).bytes(part); }
Bytes get_part(WireReader& r) { return to_bytes(r.bytes(r.be16())); }

void put_pcrs(WireWriter& w, const std::vector<hwtpm::PcrValue>& pcrs) {
    w.u8(static_cast<std::uint8_t>(pcrs.size()));
    for (const hwtpm::PcrValue& v : pcrs) {
        w.be16(static_cast<std::uint16_t>(v.bank)).u8(static_cast<std::uint8_t>(v.index));
        w.u8(static_cast<std::uint8_t>(v.digest.size())).bytes(v.digest);
    }
}
std::vector<hwtpm::PcrValue> get_pcrs(WireReader& r) {
    std::vector<hwtpm::PcrValue> out;
    for (unsigned n = r.u8(); n > 0 && r.ok(); --n) {
        hwtpm::PcrValue v{.bank = static_cast<hwtpm::HashAlg>(r.be16()), .index = r.u8(), .digest = {}};
        v.digest = to_bytes(r.bytes(r.u8()));
        out.push_back(std::move(v));
    }
    return out;
}

Error not_what_was_signed() {
    return make_error(Errc::mismatch, "what stands beside the quote (UUIDs, endorsement key, the vTPM's PCRs, nonce) "
                                      "is not what the hardware TPM signed");
}

} // namespace

Result<Bytes> deep_quote_digest(TpmVersion hardware, const DeepQuoteClaims& claims) {
    WireWriter w;
    w.bytes(as_bytes(our_form)).bytes(claims.vtpm.bytes).bytes(claims.group.bytes);
    for (const Bytes* part : {&claims.endorsement, &claims.pcrs, &claims.nonce}) {
        if (part->size() > std::numeric_limits<std::uint16_t>::max()) {
            return make_error(Errc::too_large, "{} bytes to be quoted", part->size());
        }
        w.be16(static_cast<std::uint16_t>(part->size())).bytes(*part);
    }
    if (hardware == TpmVersion::tpm20) {
        return hwtpm::sha256({w.view()});
    }
    auto digest = tpm::sha1({w.view()});
    if (!digest) {
        return digest.error();
    }
    return Bytes(digest->begin(), digest->end());
}

Result<Bytes> endorsement_digest(ByteView spki) { return hwtpm::sha256({spki}); }

Result<Bytes> endorsement_digest_12(ByteView pubkey) {
    auto spki = hwtpm::spki_of_pubkey(pubkey);
    return spki ? endorsement_digest(*spki) : spki;
}

Result<Bytes> endorsement_digest_rsa(ByteView modulus) {
    auto spki = hwtpm::to_spki({.type = hwtpm::KeyType::rsa_2048, .modulus = to_bytes(modulus), .x = {}, .y = {}});
    return spki ? endorsement_digest(*spki) : spki;
}

Result<Bytes> encode(const DeepQuote& deep) {
    constexpr std::size_t limit = std::numeric_limits<std::uint16_t>::max();
    for (const Bytes* part :
         {&deep.claims.endorsement, &deep.claims.nonce, &deep.quote.attested, &deep.quote.signature}) {
        if (part->size() > limit) {
            return make_error(Errc::too_large, "{} bytes in a deep quote", part->size());
        }
    }
    if (deep.pcrs.size() > pcrs_limit || deep.quote.values.size() > pcrs_limit) {
        return make_error(Errc::too_large, "a deep quote of {} and {} PCRs: at most {}", deep.pcrs.size(),
                          deep.quote.values.size(), pcrs_limit);
    }
    WireWriter w;
    w.bytes(as_bytes(file_magic)).u8(static_cast<std::uint8_t>(deep.hardware));
    w.bytes(deep.claims.vtpm.bytes).bytes(deep.claims.group.bytes);
    put_part(w, deep.claims.endorsement);
    put_part(w, deep.claims.nonce);
    put_pcrs(w, deep.pcrs);
    put_part(w, deep.quote.attested);
    put_part(w, deep.quote.signature);
    put_pcrs(w, deep.quote.values);
    return w.take();
}

Result<DeepQuote> decode_deep_quote(ByteView bytes) {
    WireReader r(bytes);
    const ByteView magic = r.bytes(file_magic.size());
    if (!r.ok() || !std::ranges::equal(magic, as_bytes(file_magic))) {
        return make_error(Errc::not_ours, "it is no deep quote: it does not begin with {}", file_magic);
    }
    DeepQuote deep;
    const unsigned family = r.u8();
    deep.claims.vtpm.bytes = r.array<16>();
    deep.claims.group.bytes = r.array<16>();
    deep.claims.endorsement = get_part(r);
    deep.claims.nonce = get_part(r);
    deep.pcrs = get_pcrs(r);
    deep.quote.attested = get_part(r);
    deep.quote.signature = get_part(r);
    deep.quote.values = get_pcrs(r);
    const bool known =
        family == static_cast<unsigned>(TpmVersion::tpm12) || family == static_cast<unsigned>(TpmVersion::tpm20);
    if (!r.expect_end() || !known) {
        return make_error(Errc::protocol,
                          "a deep quote of {} bytes is malformed: cut short, too long, or of hardware "
                          "that is not known",
                          bytes.size());
    }
    deep.hardware = static_cast<TpmVersion>(family);
    auto digest = pcrs_digest(deep.pcrs);
    if (!digest) {
        return digest.error();
    }
    deep.claims.pcrs = std::move(*digest);
    return deep;
}

Result<Bytes> pcrs_digest(const std::vector<hwtpm::PcrValue>& pcrs) {
    WireWriter w;
    for (const hwtpm::PcrValue& v : pcrs) {
        w.be16(static_cast<std::uint16_t>(v.bank)).u8(static_cast<std::uint8_t>(v.index));
        w.u8(static_cast<std::uint8_t>(v.digest.size())).bytes(v.digest);
    }
    return hwtpm::sha256({w.view()});
}

Result<void> verify_deep_quote(const DeepQuote& deep, const DeepQuoteCheck& check) {
    auto digest = deep_quote_digest(deep.hardware, deep.claims);
    auto pcrs = pcrs_digest(deep.pcrs);
    auto endorsement = endorsement_digest(check.endorsement_key);
    if (!digest || !pcrs || !endorsement) {
        return !digest ? digest.error() : !pcrs ? pcrs.error() : endorsement.error();
    }
    HardwareQuoteCheck hardware{
        .version = deep.hardware, .key = check.key, .nonce = std::move(*digest), .pcrs = check.host_pcrs};
    auto verified = verify_hardware_quote(deep.quote, hardware);
    if (!verified) {
        // Its nonce is our digest.
        return verified.error().code == Errc::mismatch ? not_what_was_signed() : verified.error();
    }
    const DeepQuoteClaims& claims = deep.claims;
    if (*pcrs != claims.pcrs) {
        return not_what_was_signed();
    }
    if (claims.vtpm != check.vtpm) {
        return make_error(Errc::mismatch, "the quote is of vTPM {}, not of {}", claims.vtpm, check.vtpm);
    }
    if (check.group && claims.group != *check.group) {
        return make_error(Errc::mismatch, "the quote is of group {}, not of {}", claims.group, *check.group);
    }
    if (claims.endorsement != *endorsement) {
        return make_error(Errc::mismatch, "the quote is of a vTPM with another endorsement key (SHA-256 {}, not {})",
                          to_hex(claims.endorsement), to_hex(*endorsement));
    }
    if (claims.nonce != check.nonce) {
        return make_error(Errc::mismatch, "the quote is for the nonce {}, not for {}: an old one, or another's",
                          to_hex(claims.nonce), to_hex(check.nonce));
    }
    auto same = compare_pcrs(deep.pcrs, check.pcrs);
    return same ? same : in_context(same.error(), "the vTPM");
}

} // namespace vtpmd::quote
