// Quotes that OpenSSL signed. Those of real TPMs are in tests/integration/hwtpm.
#include "quote/hardware_quote.hpp"

#include "made_quote.hpp"

namespace hardware_quote_test {

using namespace vtpmd;
using namespace vtpmd::test::made_quote;
using hwtpm::HashAlg;
using quote::HardwareQuoteCheck;
using quote::verify_hardware_quote;

namespace {

const Bytes nonce20(20, std::byte{0x4e});

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
            refuses_what_differs(quote20(key, rsa, attest(nonce20)), check, stranger.spki());
        }
    }
    TEST_CASE("hardware quote 2.0: what the key signed, but no TPM as a quote, is refused") {
        const test::OpensslKey key("EC");
        const HardwareQuoteCheck check{.version = TpmVersion::tpm20, .key = key.spki(), .nonce = nonce20, .pcrs = {}};
        CHECK(verify_hardware_quote(quote20(key, false, attest(nonce20)), check));
        const Bytes good = attest(nonce20);
        CHECK(verify_hardware_quote(quote20(key, false, attest(nonce20, 0x8017)), check).error().code ==
              Errc::protocol);
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
        refuses_what_differs(quote12(key, nonce20), check, stranger.spki());
    }
}

} // namespace hardware_quote_test
