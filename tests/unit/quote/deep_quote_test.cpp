// Deep quotes over hardware quotes that OpenSSL signed.
#include "quote/deep_quote.hpp"

#include "made_quote.hpp"
#include "util/text.hpp"

namespace deep_quote_test {

using namespace vtpmd;
using namespace vtpmd::quote;
using namespace vtpmd::test::made_quote;
using hwtpm::HashAlg;

namespace {

Uuid id(unsigned n) {
    Uuid u;
    u.bytes.fill(static_cast<std::byte>(n));
    return u;
}

/// What a vTPM of group 2 shows, and what is to be asked of it.
struct Shown {
    explicit Shown(TpmVersion hardware)
        : key(hardware == TpmVersion::tpm12 ? "RSA" : "EC") {
        good.hardware = hardware;
        good.pcrs = {{HashAlg::sha256, 0, Bytes(32, std::byte{0x10})},
                     {HashAlg::sha256, 7, Bytes(32, std::byte{0x17})}};
        good.claims = {.vtpm = id(1),
                       .group = id(2),
                       .endorsement = endorsement_digest(endorsement.spki()).value(),
                       .pcrs = pcrs_digest(good.pcrs).value(),
                       .nonce = Bytes(24, std::byte{0x4e})};
        sign(good);
        check = {.key = key.spki(),
                 .vtpm = id(1),
                 .group = id(2),
                 .endorsement_key = endorsement.spki(),
                 .nonce = good.claims.nonce,
                 .pcrs = good.pcrs,
                 .host_pcrs = values_of(hardware == TpmVersion::tpm12 ? HashAlg::sha1 : HashAlg::sha256)};
    }
    void sign(DeepQuote& deep) const {
        const Bytes digest = deep_quote_digest(deep.hardware, deep.claims).value();
        deep.quote = deep.hardware == TpmVersion::tpm12 ? quote12(key, digest) : quote20(key, false, attest(digest));
    }
    test::OpensslKey key;
    test::OpensslKey endorsement{"EC"};
    DeepQuote good;
    DeepQuoteCheck check;
};

std::string refusal(const DeepQuote& deep, const DeepQuoteCheck& check) {
    auto verified = verify_deep_quote(deep, check);
    REQUIRE(verified.has_error());
    return verified.error().message;
}
bool says(const std::string& message, std::string_view what) { return message.find(what) != std::string::npos; }

} // namespace

TEST_SUITE("quote") {
    TEST_CASE("deep quote: golden digests") {
        const DeepQuoteClaims claims{.vtpm = id(1),
                                     .group = id(2),
                                     .endorsement = Bytes(32, std::byte{3}),
                                     .pcrs = Bytes(32, std::byte{4}),
                                     .nonce = Bytes(5, std::byte{5})};
        CHECK(to_hex(deep_quote_digest(TpmVersion::tpm20, claims).value()) ==
              "b5e332f239cdb3b3845ea3ae5b2f96f6383dab0849e94a721dcd73d800bcb172");
        CHECK(to_hex(deep_quote_digest(TpmVersion::tpm12, claims).value()) ==
              "51b855e79ddb2afabc859e6a7d15d3ad299e1355");
        CHECK(to_hex(pcrs_digest({{HashAlg::sha1, 16, Bytes(20, std::byte{6})}}).value()) ==
              "36587b24b0ed08fd603f5515508b4d0344d819d7f147cb85c0ea2360e50d6c33");
    }

    TEST_CASE("deep quote as a file: round trip; cut at every length, a trailing byte, another magic, other hardware") {
        for (TpmVersion hardware : {TpmVersion::tpm12, TpmVersion::tpm20}) {
            const Shown shown(hardware);
            const Bytes whole = encode(shown.good).value();
            const DeepQuote back = decode_deep_quote(whole).value();
            CHECK(verify_deep_quote(back, shown.check));
            CHECK(encode(back).value() == whole);
            CHECK(back.claims.pcrs == shown.good.claims.pcrs);
            for (std::size_t n = 0; n < whole.size(); ++n) {
                CHECK(decode_deep_quote(ByteView(whole).first(n)).error().code ==
                      (n < 8 ? Errc::not_ours : Errc::protocol));
            }
            Bytes other = whole;
            other.push_back(std::byte{0});
            CHECK(decode_deep_quote(other).error().code == Errc::protocol);
            other = whole;
            other[7] = std::byte{'2'};
            CHECK(decode_deep_quote(other).error().code == Errc::not_ours);
            other = whole;
            other[8] = std::byte{3};
            CHECK(decode_deep_quote(other).error().code == Errc::protocol);
            DeepQuote large = shown.good;
            large.quote.signature.resize(65536);
            CHECK(encode(large).error().code == Errc::too_large);
            large = shown.good;
            large.pcrs.resize(256, large.pcrs.front());
            CHECK(encode(large).error().code == Errc::too_large);
        }
        // Whatever one byte of a good one is changed to, it is not taken.
        const Shown shown(TpmVersion::tpm20);
        const Bytes whole = encode(shown.good).value();
        for (std::size_t at = 0; at < whole.size(); ++at) {
            Bytes bad = whole;
            bad[at] ^= std::byte{0x10};
            auto deep = decode_deep_quote(bad);
            CAPTURE(at);
            CHECK((!deep || !verify_deep_quote(*deep, shown.check)));
        }
    }

    TEST_CASE("deep quote: no part can be taken for another's end") {
        const DeepQuoteClaims one{
            .vtpm = {}, .group = {}, .endorsement = Bytes(2), .pcrs = Bytes(1), .nonce = Bytes(1)};
        const DeepQuoteClaims two{
            .vtpm = {}, .group = {}, .endorsement = Bytes(1), .pcrs = Bytes(2), .nonce = Bytes(1)};
        for (TpmVersion hardware : {TpmVersion::tpm12, TpmVersion::tpm20}) {
            CHECK(deep_quote_digest(hardware, one).value() != deep_quote_digest(hardware, two).value());
        }
        const DeepQuoteClaims large{
            .vtpm = {}, .group = {}, .endorsement = {}, .pcrs = {}, .nonce = Bytes(std::size_t{65536})};
        CHECK(deep_quote_digest(TpmVersion::tpm20, large).error().code == Errc::too_large);
    }

    TEST_CASE("deep quote, on both families: taken; whatever is not what was asked for is refused by its own name") {
        for (TpmVersion hardware : {TpmVersion::tpm12, TpmVersion::tpm20}) {
            const Shown shown(hardware);
            REQUIRE(verify_deep_quote(shown.good, shown.check));
            DeepQuoteCheck other = shown.check;
            other.group.reset();
            other.pcrs.clear();
            other.host_pcrs.clear();
            CHECK(verify_deep_quote(shown.good, other));

            other = shown.check;
            other.vtpm = id(9);
            CHECK(says(refusal(shown.good, other), "of vTPM 01010101"));
            other = shown.check;
            other.group = id(9);
            CHECK(says(refusal(shown.good, other), "of group 02020202"));
            other = shown.check;
            other.endorsement_key = shown.key.spki();
            CHECK(says(refusal(shown.good, other), "another endorsement key"));
            other = shown.check;
            other.nonce.back() ^= std::byte{1};
            CHECK(says(refusal(shown.good, other), "for the nonce 4e4e"));
            other = shown.check;
            other.pcrs.back().digest.back() ^= std::byte{1};
            CHECK(says(refusal(shown.good, other), "the vTPM: PCR sha256:7 is 17"));
            other = shown.check;
            other.pcrs.back().index = 8;
            CHECK(says(refusal(shown.good, other), "the vTPM: PCR sha256:8 was not quoted"));
            other = shown.check;
            other.host_pcrs.back().digest.back() ^= std::byte{1};
            const std::string host = refusal(shown.good, other);
            CHECK(says(host, ":17 is a1"));
            CHECK_FALSE(says(host, "the vTPM"));
            other = shown.check;
            other.key = shown.endorsement.spki();
            CHECK(says(refusal(shown.good, other), "not that of the trusted key"));
        }
    }

    TEST_CASE("deep quote, on both families: claims that were changed after the hardware signed are refused") {
        for (TpmVersion hardware : {TpmVersion::tpm12, TpmVersion::tpm20}) {
            const Shown shown(hardware);
            // The check is what the forger would want: only the signature stands in the way.
            const auto forged = [&](auto&& change) {
                DeepQuote deep = shown.good;
                DeepQuoteCheck check = shown.check;
                change(deep, check);
                CHECK(says(refusal(deep, check), "not what the hardware TPM signed"));
            };
            forged([](DeepQuote& d, DeepQuoteCheck& c) { d.claims.vtpm = c.vtpm = id(9); });
            forged([](DeepQuote& d, DeepQuoteCheck& c) {
                d.claims.group = id(9);
                c.group = id(9);
            });
            forged([&](DeepQuote& d, DeepQuoteCheck& c) {
                c.endorsement_key = shown.key.spki();
                d.claims.endorsement = endorsement_digest(c.endorsement_key).value();
            });
            forged([](DeepQuote& d, DeepQuoteCheck& c) {
                d.pcrs.back().digest.back() ^= std::byte{1};
                d.claims.pcrs = pcrs_digest(d.pcrs).value();
                c.pcrs = d.pcrs;
            });
            forged([](DeepQuote& d, DeepQuoteCheck& c) {
                d.pcrs.back().digest.back() ^= std::byte{1}; // beside an honest digest
                c.pcrs = d.pcrs;
            });
            forged([](DeepQuote& d, DeepQuoteCheck& c) {
                d.claims.nonce.push_back(std::byte{1});
                c.nonce = d.claims.nonce;
            });
            DeepQuote deep = shown.good;
            deep.quote.signature.back() ^= std::byte{1};
            CHECK(says(refusal(deep, shown.check), "not that of the trusted key"));
            deep = shown.good;
            deep.quote.values.back().digest.back() ^= std::byte{1};
            CHECK(verify_deep_quote(deep, shown.check).error().code == Errc::pcr_mismatch);
        }
    }
}

} // namespace deep_quote_test
