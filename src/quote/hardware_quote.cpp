#include "quote/hardware_quote.hpp"

#include "tpm/pcr.hpp"
#include "util/openssl_ptr.hpp"
#include "util/text.hpp"
#include "util/wire.hpp"

#include <algorithm>
#include <openssl/ec.h>
#include <openssl/evp.h>

namespace vtpmd::quote {

namespace {

// TPM 2.0 part 2: sections 6.2 (TPM_GENERATED), 6.3 (TPM_ALG_ID), 6.9 (TPM_ST).
constexpr std::uint32_t generated = 0xff544347;
constexpr std::uint16_t attest_quote = 0x8018;
constexpr std::uint16_t alg_rsassa = 0x0014;
constexpr std::uint16_t alg_ecdsa = 0x0018;
constexpr std::uint16_t alg_sha256 = 0x000b;
constexpr std::size_t clock_and_firmware = 17 + 8; ///< TPMS_CLOCK_INFO, firmwareVersion
constexpr std::uint32_t selection_limit = 16;
// TPM Main part 2, sections 4.1.1, 11.3.
constexpr std::uint32_t version_11 = 0x01010000;
constexpr std::size_t sha1_size = 20;

Error malformed(std::string_view what) { return make_error(Errc::protocol, "the quote is malformed: {}", what); }
Error not_signed() {
    return make_error(Errc::permission, "the quote's signature is not that of the trusted key over this quote");
}

Result<Bytes> digest_of(const EVP_MD* algorithm, ByteView data) {
    Bytes out(static_cast<std::size_t>(EVP_MD_get_size(algorithm)));
    unsigned size = 0;
    if (EVP_Digest(data.data(), data.size(), uchar_ptr(MutByteView(out)), &size, algorithm, nullptr) != 1) {
        return make_error(Errc::unavailable, "OpenSSL could not hash");
    }
    return out;
}

Result<Bytes> ecdsa_der(ByteView r, ByteView s) {
    const EcdsaSig sig(ECDSA_SIG_new());
    BIGNUM* rn = BN_bin2bn(uchar_ptr(r), static_cast<int>(r.size()), nullptr);
    BIGNUM* sn = BN_bin2bn(uchar_ptr(s), static_cast<int>(s.size()), nullptr);
    if (!sig || rn == nullptr || sn == nullptr || ECDSA_SIG_set0(sig.get(), rn, sn) != 1) {
        BN_free(rn);
        BN_free(sn);
        return make_error(Errc::unavailable, "OpenSSL could not hold a signature");
    }
    unsigned char* der = nullptr;
    const int size = i2d_ECDSA_SIG(sig.get(), &der);
    if (size <= 0) {
        return make_error(Errc::unavailable, "OpenSSL could not write a signature");
    }
    Bytes out = to_bytes(view_of(der, static_cast<std::size_t>(size)));
    OPENSSL_free(der);
    return out;
}

/// TPMT_SIGNATURE as verify_sha256() takes it.
Result<Bytes> plain_signature(ByteView tpmt) {
    WireReader r(tpmt);
    const unsigned algorithm = r.be16();
    const unsigned hash = r.be16();
    if (!r.ok() || hash != alg_sha256 || (algorithm != alg_rsassa && algorithm != alg_ecdsa)) {
        return malformed("a signature that is neither RSASSA nor ECDSA with SHA-256");
    }
    const ByteView first = r.bytes(r.be16());
    const ByteView second = algorithm == alg_ecdsa ? r.bytes(r.be16()) : ByteView{};
    if (!r.expect_end()) {
        return malformed("a signature that ends too early, or too late");
    }
    return algorithm == alg_ecdsa ? ecdsa_der(first, second) : Result<Bytes>(to_bytes(first));
}

struct Attested {
    Bytes nonce;
    std::vector<std::pair<hwtpm::HashAlg, unsigned>> selected; ///< 2.0
    Bytes digest;
};

Result<Attested> parse_attest(ByteView attest) {
    WireReader r(attest);
    const std::uint32_t magic = r.be32();
    const unsigned type = r.be16();
    if (!r.ok() || magic != generated || type != attest_quote) {
        return malformed("no TPM made it as a quote (TPM_GENERATED, TPM_ST_ATTEST_QUOTE)");
    }
    Attested out;
    r.skip(r.be16()); // qualifiedSigner
    out.nonce = to_bytes(r.bytes(r.be16()));
    r.skip(clock_and_firmware);
    const std::uint32_t count = r.be32();
    if (count > selection_limit) {
        return malformed("too many banks");
    }
    for (std::uint32_t i = 0; i < count && r.ok(); ++i) {
        const auto bank = static_cast<hwtpm::HashAlg>(r.be16());
        const ByteView bits = r.bytes(r.u8());
        for (unsigned p = 0; p < bits.size() * 8; ++p) {
            if ((std::to_integer<unsigned>(bits[p / 8]) >> (p % 8) & 1U) != 0) {
                out.selected.emplace_back(bank, p);
            }
        }
    }
    out.digest = to_bytes(r.bytes(r.be16()));
    if (!r.expect_end()) {
        return malformed("it ends too early, or too late");
    }
    return out;
}

Result<Attested> check_20(const hwtpm::Quote& quote, const Bytes& key) {
    auto signature = plain_signature(quote.signature);
    if (!signature) {
        return signature.error();
    }
    if (auto verified = hwtpm::verify_sha256(key, quote.attested, *signature); !verified) {
        return verified.error().code == Errc::permission ? not_signed() : verified.error();
    }
    auto attested = parse_attest(quote.attested);
    if (!attested) {
        return attested.error();
    }
    Bytes all;
    bool same = attested->selected.size() == quote.values.size();
    for (std::size_t i = 0; i < quote.values.size() && same; ++i) {
        const hwtpm::PcrValue& v = quote.values[i];
        same = attested->selected[i] == std::pair(v.bank, v.index) && v.digest.size() == hwtpm::digest_size(v.bank);
        all.insert(all.end(), v.digest.begin(), v.digest.end());
    }
    auto digest = digest_of(EVP_sha256(), all);
    if (!digest) {
        return digest.error();
    }
    if (!same || *digest != attested->digest) {
        return make_error(Errc::pcr_mismatch, "the PCR values beside the quote are not those that the TPM signed");
    }
    return attested;
}

Result<void> verify_sha1(const Bytes& key, ByteView message, ByteView signature) {
    auto known = hwtpm::parse_public_key(key);
    if (!known) {
        return known.error();
    }
    auto pkey = hwtpm::to_pkey(*known);
    const DigestContext context(EVP_MD_CTX_new());
    if (!pkey || known->type != hwtpm::KeyType::rsa_2048 || !context ||
        EVP_DigestVerifyInit(context.get(), nullptr, EVP_sha1(), nullptr, pkey->get()) != 1 ||
        EVP_DigestVerify(context.get(), uchar_ptr(signature), signature.size(), uchar_ptr(message), message.size()) !=
            1) {
        return not_signed();
    }
    return {};
}

/// SHA-1 of TPM_PCR_COMPOSITE (part 2 section 8.2) with a selection of `select` bytes. Parts have TPM_PCR_SELECTION of
/// 2 or 3.
Result<Bytes> composite_of(const std::vector<hwtpm::PcrValue>& values, std::uint16_t select) {
    Bytes bits(select);
    WireWriter all;
    for (const hwtpm::PcrValue& v : values) {
        if (v.index / 8 >= select) {
            return Bytes{};
        }
        bits[v.index / 8] |= static_cast<std::byte>(1U << (v.index % 8));
        all.bytes(v.digest);
    }
    WireWriter w;
    w.be16(select).bytes(bits).be32(static_cast<std::uint32_t>(all.size())).bytes(all.view());
    return digest_of(EVP_sha1(), w.view());
}

Result<Attested> check_12(const hwtpm::Quote& quote, const Bytes& key) {
    if (auto verified = verify_sha1(key, quote.attested, quote.signature); !verified) {
        return verified.error();
    }
    WireReader r(quote.attested);
    const std::uint32_t version = r.be32();
    const ByteView fixed = r.bytes(4);
    Attested out;
    out.digest = to_bytes(r.bytes(sha1_size));
    out.nonce = to_bytes(r.bytes(sha1_size));
    if (!r.expect_end() || version != version_11 || !std::ranges::equal(fixed, as_bytes("QUOT"))) {
        return malformed("it is no TPM_QUOTE_INFO");
    }
    bool ascending = true;
    for (std::size_t i = 0; i < quote.values.size() && ascending; ++i) {
        const hwtpm::PcrValue& v = quote.values[i];
        ascending = v.bank == hwtpm::HashAlg::sha1 && v.digest.size() == sha1_size &&
                    (i == 0 || v.index > quote.values[i - 1].index);
    }
    if (ascending) {
        for (std::uint16_t select : {std::uint16_t{3}, std::uint16_t{2}}) {
            auto composite = composite_of(quote.values, select);
            if (!composite) {
                return composite.error();
            }
            if (*composite == out.digest) {
                return out;
            }
        }
    }
    return make_error(Errc::pcr_mismatch, "the PCR values beside the quote are not those that the TPM signed");
}

} // namespace

Result<void> compare_pcrs(const std::vector<hwtpm::PcrValue>& quoted, const std::vector<hwtpm::PcrValue>& wanted) {
    for (const hwtpm::PcrValue& w : wanted) {
        const auto found = std::find_if(quoted.begin(), quoted.end(), [&](const hwtpm::PcrValue& v) {
            return v.bank == w.bank && v.index == w.index;
        });
        if (found == quoted.end()) {
            return make_error(Errc::pcr_mismatch, "PCR {}:{} was not quoted", hwtpm::bank_name(w.bank), w.index);
        }
        if (found->digest != w.digest) {
            return make_error(Errc::pcr_mismatch, "PCR {}:{} is {}, expected {}", hwtpm::bank_name(w.bank), w.index,
                              to_hex(found->digest), to_hex(w.digest));
        }
    }
    return {};
}

Result<void> verify_hardware_quote(const hwtpm::Quote& quote, const HardwareQuoteCheck& check) {
    auto attested = check.version == TpmVersion::tpm12 ? check_12(quote, check.key) : check_20(quote, check.key);
    if (!attested) {
        return attested.error();
    }
    if (attested->nonce != check.nonce) {
        return make_error(Errc::mismatch, "the quote is for the nonce {}, not for {}: an old one, or another's",
                          to_hex(attested->nonce), to_hex(check.nonce));
    }
    return compare_pcrs(quote.values, check.pcrs);
}

} // namespace vtpmd::quote
