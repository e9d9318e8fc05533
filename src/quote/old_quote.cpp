#include "quote/old_quote.hpp"

#include "quote/hardware_quote.hpp"
#include "tpm/codes.hpp"
#include "tpm/pcr.hpp"
#include "tpm/public_key.hpp"
#include "util/openssl_ptr.hpp"
#include "util/text.hpp"
#include "util/wire.hpp"

#include <algorithm>
#include <openssl/evp.h>

namespace vtpmd::quote {

namespace {

using tpm::Sha1Digest;
namespace flag = tpm::old_quote;

// TPM Main part 2 sections 4.1.1 and 11.3.
constexpr std::uint32_t quote_info_version = 0x01010000;

/// The command's parameters and its answer, taken apart.
struct Parts {
    Bytes nonce;
    OldPcrs vtpm; ///< deep_quote; values of the check
    OldPcrs host;
    std::uint32_t flags = 0;
    Bytes signature;
    Bytes hashes; ///< 20 bytes a flag
};

Bytes get_selection(WireReader& in) {
    Bytes out = to_bytes(in.bytes(in.be16()));
    if (out.empty() || out.size() > flag::selection_limit) {
        in.fail();
    }
    return out;
}

Result<Parts> take_apart(ByteView answer, const OldQuoteCheck& check) {
    const bool deep = check.command == OldCommand::deep_quote;
    Parts out;
    WireReader in(check.parameters);
    out.nonce = to_bytes(in.bytes(tpm::sha1_size));
    out.vtpm.selection = deep ? get_selection(in) : Bytes{};
    out.host.selection = get_selection(in);
    out.flags = deep ? in.be32() : 0;
    if (!in.expect_end() || (out.flags & ~flag::all_flags) != 0) {
        return make_error(Errc::usage, "the request's parameters, {} bytes, are none of {} in the old form",
                          check.parameters.size(), deep ? "TPM_ORD_DeepQuote" : "TPM_ORD_ParentSignEK");
    }
    WireReader r(answer);
    out.signature = to_bytes(r.bytes(flag::signature_size));
    for (std::uint32_t one = 1; one <= flag::all_flags; one <<= 1U) {
        const ByteView hash = (out.flags & one) != 0 ? r.bytes(tpm::sha1_size) : ByteView{};
        out.hashes.insert(out.hashes.end(), hash.begin(), hash.end());
    }
    out.host.values = to_bytes(r.bytes(selected(out.host.selection).size() * tpm::sha1_size));
    if (!r.expect_end()) {
        return make_error(Errc::protocol,
                          "the answer, {} bytes, is not the one to this request: a signature of {}, {} of hashes, {} "
                          "PCRs",
                          answer.size(), flag::signature_size, out.hashes.size(), selected(out.host.selection).size());
    }
    return out;
}

/// The values that the verifier expects, for all that the guest was to quote.
Result<void> fill_in(OldPcrs& pcrs, const std::vector<hwtpm::PcrValue>& known) {
    for (unsigned index : selected(pcrs.selection)) {
        const auto found = std::ranges::find_if(known, [index](const hwtpm::PcrValue& v) {
            return v.bank == hwtpm::HashAlg::sha1 && v.index == index && v.digest.size() == tpm::sha1_size;
        });
        if (found == known.end()) {
            return make_error(Errc::usage,
                              "the vTPM's PCR sha1:{} was asked for, and its value is not in the answer: say what it "
                              "has to be",
                              index);
        }
        pcrs.values.insert(pcrs.values.end(), found->digest.begin(), found->digest.end());
    }
    for (const hwtpm::PcrValue& v : known) {
        const auto all = selected(pcrs.selection);
        if (v.bank != hwtpm::HashAlg::sha1 || std::ranges::find(all, v.index) == all.end()) {
            return make_error(Errc::usage, "the vTPM's PCR {}:{} was not asked for", hwtpm::bank_name(v.bank), v.index);
        }
    }
    return {};
}

Result<Sha1Digest> data_of(const Parts& parts, const OldQuoteCheck& check) {
    if (check.command == OldCommand::deep_quote) {
        return old_vtpm_digest(parts.nonce, parts.vtpm, check.locality);
    }
    auto pubkey = hwtpm::endorsement_pubkey(check.endorsement_key);
    return pubkey ? old_endorsement_digest(*pubkey, parts.nonce) : pubkey.error();
}

Result<Bytes> quote_info(const Parts& parts, ByteView data) {
    auto external = old_external_data(parts.flags, data, parts.hashes);
    auto composite = old_composite(parts.host);
    if (!external || !composite) {
        return !external ? external.error() : composite.error();
    }
    WireWriter w;
    return w.be32(quote_info_version).bytes(as_bytes("QUOT")).bytes(*composite).bytes(*external).take();
}

std::vector<hwtpm::PcrValue> values_of(const OldPcrs& pcrs) {
    std::vector<hwtpm::PcrValue> out;
    WireReader r(pcrs.values);
    for (unsigned index : selected(pcrs.selection)) {
        out.push_back({.bank = hwtpm::HashAlg::sha1, .index = index, .digest = to_bytes(r.bytes(tpm::sha1_size))});
    }
    return out;
}

/// The hash that a flag has in the answer. Errc::usage: it was not asked for.
Result<Bytes> hash_of(const Parts& parts, std::uint32_t wanted, std::string_view what) {
    if ((parts.flags & wanted) == 0) {
        return make_error(Errc::usage, "the request has no flag {}, so the quote says nothing of {}", wanted, what);
    }
    std::size_t at = 0;
    for (std::uint32_t one = 1; one < wanted; one <<= 1U) {
        at += (parts.flags & one) != 0 ? tpm::sha1_size : 0;
    }
    return to_bytes(ByteView(parts.hashes).subspan(at, tpm::sha1_size));
}

Result<void> check_uuid(const Parts& parts, const Uuid& vtpm) {
    auto hash = hash_of(parts, flag::vtpm_uuid, "which vTPM it is of");
    auto wanted = tpm::sha1({vtpm.bytes});
    if (!hash || !wanted) {
        return !hash ? hash.error() : wanted.error();
    }
    if (!std::ranges::equal(*hash, *wanted)) {
        return make_error(Errc::mismatch, "the quote is of another vTPM than {} (SHA-1 of its UUID {}, not {})", vtpm,
                          to_hex(*hash), to_hex(*wanted));
    }
    return {};
}

Result<void> check_approver(const Parts& parts, ByteView spki) {
    auto hash = hash_of(parts, flag::group_key, "its group's approver");
    auto key = hwtpm::parse_public_key(spki);
    if (!hash || !key) {
        return !hash ? hash.error() : key.error();
    }
    auto wanted = tpm::sha1({key->modulus});
    if (!wanted) {
        return wanted.error();
    }
    if (!std::ranges::equal(*hash, *wanted)) {
        return make_error(Errc::mismatch, "the quote is of a group with another approver (SHA-1 of the key {}, not {})",
                          to_hex(*hash), to_hex(*wanted));
    }
    return {};
}

/// The digest that this key signed, PKCS #1 v1.5 with SHA-1. Errc::permission: this key signed nothing here.
Result<Bytes> signed_digest(ByteView spki, ByteView signature) {
    auto known = hwtpm::parse_public_key(spki);
    if (!known) {
        return known.error();
    }
    auto pkey = hwtpm::to_pkey(*known);
    if (!pkey) {
        return pkey.error();
    }
    const KeyContext context(EVP_PKEY_CTX_new(pkey->get(), nullptr));
    Bytes out(signature.size());
    std::size_t size = out.size();
    if (known->type != hwtpm::KeyType::rsa_2048 || !context || EVP_PKEY_verify_recover_init(context.get()) != 1 ||
        EVP_PKEY_CTX_set_signature_md(context.get(), EVP_sha1()) != 1 ||
        EVP_PKEY_verify_recover(context.get(), uchar_ptr(MutByteView(out)), &size, uchar_ptr(signature),
                                signature.size()) != 1) {
        return make_error(Errc::permission, "the quote's signature is not one of the trusted key");
    }
    out.resize(size);
    return out;
}

} // namespace

std::vector<unsigned> selected(ByteView selection) {
    std::vector<unsigned> out;
    for (unsigned i = 0; i < selection.size() * 8; ++i) {
        if ((std::to_integer<unsigned>(selection[i / 8]) >> (i % 8) & 1U) != 0) {
            out.push_back(i);
        }
    }
    return out;
}

Result<Sha1Digest> old_composite(const OldPcrs& pcrs) {
    if (pcrs.values.empty()) {
        return Sha1Digest{};
    }
    WireWriter w;
    w.be16(static_cast<std::uint16_t>(pcrs.selection.size())).bytes(pcrs.selection);
    w.be32(static_cast<std::uint32_t>(pcrs.values.size())).bytes(pcrs.values);
    return tpm::sha1({w.view()});
}

Result<Sha1Digest> old_vtpm_digest(ByteView nonce, const OldPcrs& pcrs, unsigned locality) {
    auto composite = old_composite(pcrs);
    if (!composite) {
        return composite;
    }
    WireWriter w;
    w.be32(0).bytes(as_bytes("DQUT")).bytes(nonce);
    w.be16(static_cast<std::uint16_t>(pcrs.selection.size())).bytes(pcrs.selection);
    w.u8(static_cast<std::uint8_t>(1U << locality)).bytes(*composite);
    return tpm::sha1({w.view()});
}

Result<Sha1Digest> old_endorsement_digest(ByteView pubkey, ByteView nonce) { return tpm::sha1({pubkey, nonce}); }

Result<Sha1Digest> old_external_data(std::uint32_t flags, ByteView data, ByteView hashes) {
    const WireWriter w = WireWriter().le32(flags);
    return tpm::sha1({w.view(), data, hashes});
}

Result<hwtpm::Quote> old_hardware_quote(ByteView answer, const OldQuoteCheck& check) {
    auto parts = take_apart(answer, check);
    if (!parts) {
        return parts.error();
    }
    if (auto known = fill_in(parts->vtpm, check.pcrs); !known) {
        return known.error();
    }
    auto data = data_of(*parts, check);
    if (!data) {
        return data.error();
    }
    auto info = quote_info(*parts, *data);
    if (!info) {
        return info.error();
    }
    return hwtpm::Quote{
        .attested = std::move(*info), .signature = std::move(parts->signature), .values = values_of(parts->host)};
}

Result<hwtpm::Quote> verify_old_quote(ByteView answer, const OldQuoteCheck& check) {
    auto quote = old_hardware_quote(answer, check);
    auto parts = take_apart(answer, check);
    if (!quote || !parts) {
        return quote ? parts.error() : quote.error();
    }
    if (parts->nonce != check.nonce) {
        return make_error(Errc::mismatch, "the quote was asked for with the nonce {}, not with {}",
                          to_hex(parts->nonce), to_hex(check.nonce));
    }
    auto digest = signed_digest(check.key, quote->signature);
    auto wanted = tpm::sha1({quote->attested});
    if (!digest || !wanted) {
        return !digest ? digest.error() : wanted.error();
    }
    // What is named in the answer comes first: what differs there is known.
    if (auto same = check.vtpm ? check_uuid(*parts, *check.vtpm) : Result<void>{}; !same) {
        return same.error();
    }
    if (auto same = check.approver.empty() ? Result<void>{} : check_approver(*parts, check.approver); !same) {
        return same.error();
    }
    if (auto same = compare_pcrs(quote->values, check.host_pcrs); !same) {
        return in_context(same.error(), "the hardware");
    }
    if (!std::ranges::equal(*digest, *wanted)) {
        return check.command == OldCommand::deep_quote
                   ? make_error(Errc::mismatch, "the trusted key signed something else: the vTPM's PCRs are not what "
                                                "they have to be, or the answer was changed, or it is one to another "
                                                "request (an old one: another nonce)")
                   : make_error(Errc::mismatch, "the trusted key signed something else: the vTPM has another "
                                                "endorsement key, or the answer was changed, or it is one to another "
                                                "request (an old one: another nonce)");
    }
    return quote;
}

} // namespace vtpmd::quote
