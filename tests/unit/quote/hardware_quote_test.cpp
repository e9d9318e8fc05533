// Quotes as a TPM writes them, signed by OpenSSL. Those of real TPMs are in tests/integration/hwtpm.
#include "quote/hardware_quote.hpp"

#include "check.hpp"
#include "openssl_key.hpp"
#include "util/wire.hpp"

#include <openssl/evp.h>

namespace hardware_quote_test {

using namespace vtpmd;
using hwtpm::HashAlg;
using quote::HardwareQuoteCheck;
using quote::verify_hardware_quote;

namespace {

const Bytes nonce20(20, std::byte{0x4e});

Bytes hash(const EVP_MD* algorithm, ByteView data) {
    Bytes out(static_cast<std::size_t>(EVP_MD_get_size(algorithm)));
    REQUIRE(EVP_Digest(data.data(), data.size(), uchar_ptr(MutByteView(out)), nullptr, algorithm, nullptr) == 1);
    return out;
}

std::vector<hwtpm::PcrValue> values_of(HashAlg bank) {
    const std::size_t size = bank == HashAlg::sha1 ? 20 : 32;
    return {{bank, 0, Bytes(size, std::byte{0xa0})}, {bank, 17, Bytes(size, std::byte{0xa1})}};
}

Bytes concatenated(const std::vector<hwtpm::PcrValue>& values) {
    WireWriter w;
    for (const auto& v : values) {
        w.bytes(v.digest);
    }
    return w.take();
}

Bytes attest(std::uint16_t type = 0x8018) {
    WireWriter w;
    w.be32(0xff544347).be16(type).be16(34).zeros(34); // magic, type, qualifiedSigner
    w.be16(20).bytes(nonce20).zeros(17 + 8);
    w.be32(1).be16(0x000b).u8(3).u8(0x01).u8(0x00).u8(0x02); // PCRs 0 and 17
    w.be16(32).bytes(hash(EVP_sha256(), concatenated(values_of(HashAlg::sha256))));
    return w.take();
}

hwtpm::Quote quote20(const test::OpensslKey& key, bool rsa, Bytes attested) {
    hwtpm::Quote q{.attested = std::move(attested), .signature = {}, .values = values_of(HashAlg::sha256)};
    const Bytes plain = key.sign_sha256(q.attested);
    WireWriter w;
    w.be16(rsa ? 0x0014 : 0x0018).be16(0x000b);
    if (rsa) {
        w.be16(256).bytes(plain);
    } else {
        const auto pair = hwtpm::parse_ecdsa_signature(plain).value();
        w.be16(32).bytes(pair.r).be16(32).bytes(pair.s);
    }
    q.signature = w.take();
    return q;
}

hwtpm::Quote quote12(const test::OpensslKey& key) {
    hwtpm::Quote q{.attested = {}, .signature = {}, .values = values_of(HashAlg::sha1)};
    WireWriter composite;
    composite.be16(3).u8(0x01).u8(0x00).u8(0x02).be32(40).bytes(concatenated(q.values));
    WireWriter info;
    info.be32(0x01010000).bytes(as_bytes("QUOT")).bytes(hash(EVP_sha1(), composite.view())).bytes(nonce20);
    q.attested = info.take();
    q.signature = key.sign_sha1(q.attested);
    return q;
}

/// What every form has to refuse, each for its own reason.
void refuses_what_differs(const hwtpm::Quote& good, const HardwareQuoteCheck& check, const Bytes& stranger) {
    REQUIRE(verify_hardware_quote(good, check));
    const auto refusal = [](const hwtpm::Quote& q, const HardwareQuoteCheck& c) {
        auto r = verify_hardware_quote(q, c);
        REQUIRE(r.has_error());
        return r.error();
    };
    HardwareQuoteCheck other = check;
    other.nonce.back() ^= std::byte{1};
    CHECK(refusal(good, other).code == Errc::mismatch);
    CHECK(refusal(good, other).message.find("nonce") != std::string::npos);
    other = check;
    other.key = stranger;
    CHECK(refusal(good, other).code == Errc::permission);
    other = check;
    other.pcrs.back().digest.front() ^= std::byte{1};
    CHECK(refusal(good, other).message.find(":17 is") != std::string::npos);
    other = check;
    other.pcrs.back().index = 5;
    CHECK(refusal(good, other).message.find(":5 was not quoted") != std::string::npos);

    hwtpm::Quote altered = good;
    altered.signature.back() ^= std::byte{1};
    CHECK(refusal(altered, check).code == Errc::permission);
    altered = good;
    altered.values.front().digest.front() ^= std::byte{1};
    CHECK(refusal(altered, check).code == Errc::pcr_mismatch);
    altered = good;
    altered.values.pop_back();
    CHECK(refusal(altered, check).code == Errc::pcr_mismatch);
    for (std::size_t i = 0; i < good.attested.size(); ++i) {
        altered = good;
        altered.attested[i] ^= std::byte{1};
        CHECK(refusal(altered, check).code == Errc::permission);
    }
    for (std::size_t n = 0; n < good.signature.size(); ++n) {
        altered = good;
        altered.signature.resize(n);
        CHECK(verify_hardware_quote(altered, check).has_error());
    }
}

} // namespace

TEST_SUITE("quote") {
    TEST_CASE("hardware quote 2.0, RSA and ECDSA: taken; any change is refused by its own name") {
        const test::OpensslKey stranger("EC");
        for (bool rsa : {true, false}) {
            const test::OpensslKey key(rsa ? "RSA" : "EC");
            const HardwareQuoteCheck check{
                .version = TpmVersion::tpm20, .key = key.spki(), .nonce = nonce20, .pcrs = values_of(HashAlg::sha256)};
            refuses_what_differs(quote20(key, rsa, attest()), check, stranger.spki());
        }
    }
    TEST_CASE("hardware quote 2.0: what the key signed, but no TPM as a quote, is refused") {
        const test::OpensslKey key("EC");
        const HardwareQuoteCheck check{.version = TpmVersion::tpm20, .key = key.spki(), .nonce = nonce20, .pcrs = {}};
        CHECK(verify_hardware_quote(quote20(key, false, attest()), check));
        const Bytes good = attest();
        CHECK(verify_hardware_quote(quote20(key, false, attest(0x8017)), check).error().code == Errc::protocol);
        for (std::size_t n = 0; n < good.size(); ++n) {
            const auto cut = quote20(key, false, to_bytes(ByteView(good).first(n)));
            CHECK(verify_hardware_quote(cut, check).error().code == Errc::protocol);
        }
        Bytes longer = good;
        longer.push_back(std::byte{0});
        CHECK(verify_hardware_quote(quote20(key, false, longer), check).error().code == Errc::protocol);
    }
    TEST_CASE("hardware quote 1.2: taken; any change is refused by its own name") {
        const test::OpensslKey key("RSA");
        const test::OpensslKey stranger("RSA");
        const HardwareQuoteCheck check{
            .version = TpmVersion::tpm12, .key = key.spki(), .nonce = nonce20, .pcrs = values_of(HashAlg::sha1)};
        refuses_what_differs(quote12(key), check, stranger.spki());
    }
}

} // namespace hardware_quote_test
