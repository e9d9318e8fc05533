// Deep quotes in the form of Xen's vTPM, over hardware quotes that OpenSSL signed. Golden digests: computed by hand (Python's hashlib).
#include "quote/old_quote.hpp"

#include "hwtpm/tpm12/tpm12.hpp"
#include "made_quote.hpp"
#include "tpm/codes.hpp"
#include "util/text.hpp"

namespace old_quote_test {

using namespace vtpmd;
using namespace vtpmd::quote;
using namespace vtpmd::test::made_quote;
using hwtpm::HashAlg;

namespace {

Uuid vtpm() {
    Uuid u;
    u.bytes.fill(std::byte{0x76});
    return u;
}
const Bytes nonce(20, std::byte{0x4e});
const OldPcrs pcr_10{.selection = {std::byte{0}, std::byte{4}, std::byte{0}}, .values = Bytes(20, std::byte{0x0a})};
constexpr std::uint32_t uuid_and_approver = tpm::old_quote::vtpm_uuid | tpm::old_quote::group_key;

void append(Bytes& to, ByteView what) { to.insert(to.end(), what.begin(), what.end()); }

/// What a vTPM shows of hardware PCRs 0 and 17, and what is to be asked of it.
struct Shown {
    explicit Shown(OldCommand command = OldCommand::deep_quote) {
        const bool deep = command == OldCommand::deep_quote;
        check.command = command;
        check.key = key.spki();
        check.nonce = nonce;
        check.host_pcrs = values_of(HashAlg::sha1);
        WireWriter asked;
        asked.bytes(nonce);
        tpm::Sha1Digest data{};
        Bytes hashes;
        if (deep) {
            asked.be16(3).bytes(pcr_10.selection).be16(3).u8(1).u8(0).u8(2).be32(uuid_and_approver);
            check.vtpm = vtpm();
            check.approver = approver.spki();
            check.pcrs = {{HashAlg::sha1, 10, pcr_10.values}};
            data = old_vtpm_digest(nonce, pcr_10, 0).value();
            append(hashes, hash(EVP_sha1(), vtpm().bytes));
            append(hashes, hash(EVP_sha1(), hwtpm::parse_public_key(check.approver)->modulus));
        } else {
            asked.be16(3).u8(1).u8(0).u8(2);
            check.endorsement_key = endorsement.spki();
            data = old_endorsement_digest(hwtpm::endorsement_pubkey(check.endorsement_key).value(), nonce).value();
        }
        check.parameters = asked.take();
        const auto external = old_external_data(deep ? uuid_and_approver : 0, data, hashes).value();
        const hwtpm::Quote made = quote12(key, external);
        attested = made.attested;
        answer = made.signature;
        append(answer, hashes);
        append(answer, concatenated(made.values));
    }
    test::OpensslKey key{"RSA"}, approver{"RSA"}, endorsement{"RSA"};
    OldQuoteCheck check;
    Bytes answer, attested;
};

/// The message, which has to be of this code.
std::string refusal(ByteView answer, const OldQuoteCheck& check, Errc code) {
    auto verified = verify_old_quote(answer, check);
    REQUIRE(verified.has_error());
    CHECK(verified.error().code == code);
    return verified.error().message;
}
bool says(const std::string& message, std::string_view what) { return message.find(what) != std::string::npos; }
Bytes flipped(Bytes bytes, std::size_t at) {
    bytes.at(at) ^= std::byte{1};
    return bytes;
}

} // namespace

TEST_SUITE("quote") {
    TEST_CASE("old form: what is signed, by bytes") {
        const auto data = old_vtpm_digest(nonce, pcr_10, 0).value();
        CHECK(to_hex(data) == "2c645ba7117e1fced3f606af0621623170f74f65");
        const OldPcrs none{.selection = Bytes(3), .values = {}};
        CHECK(to_hex(old_vtpm_digest(nonce, none, 0).value()) == "09c7e87f71e5c5f9fae41fa2d97dbace0f2391bd");
        CHECK(to_hex(old_external_data(1, data, hash(EVP_sha1(), vtpm().bytes)).value()) ==
              "10ce6f0b2d5a67fed524a1fcd4def77887e4c544");
        CHECK(to_hex(old_external_data(0, data, {}).value()) == "ec41a4a1196815a001c4a37419882aa4e3a8bcaa");
        CHECK(to_hex(old_endorsement_digest(as_bytes("pubkey"), nonce).value()) ==
              "71f17aa732f435701d28d74e86a8cb070d0387e7");
        CHECK(selected(pcr_10.selection) == std::vector<unsigned>{10});
        CHECK(old_vtpm_digest(nonce, pcr_10, 2).value() != data);
        CHECK(old_vtpm_digest(nonce, {.selection = {std::byte{0}, std::byte{4}}, .values = pcr_10.values}, 0).value() !=
              data);
    }

    TEST_CASE("old form: a good deep quote; another nonce, vTPM, approver, PCR or key is refused, each by its name") {
        Shown s;
        const auto good = verify_old_quote(s.answer, s.check);
        REQUIRE(good);
        CHECK(good->values == values_of(HashAlg::sha1));
        CHECK(good->attested == s.attested);
        CHECK(test::verify_sha1(s.check.key, good->attested, good->signature));

        auto check = s.check;
        check.nonce[3] ^= std::byte{1};
        CHECK(says(refusal(s.answer, check, Errc::mismatch), "asked for with the nonce"));
        check = s.check;
        check.vtpm->bytes[0] ^= std::byte{1};
        CHECK(says(refusal(s.answer, check, Errc::mismatch), "another vTPM"));
        check = s.check;
        check.approver = s.endorsement.spki();
        CHECK(says(refusal(s.answer, check, Errc::mismatch), "another approver"));
        check = s.check;
        check.pcrs.front().digest[0] ^= std::byte{1};
        CHECK(says(refusal(s.answer, check, Errc::mismatch), "the vTPM's PCRs are not what they have to be"));
        check = s.check;
        check.locality = 1;
        CHECK(says(refusal(s.answer, check, Errc::mismatch), "the vTPM's PCRs"));
        check = s.check;
        check.host_pcrs.back().digest[0] ^= std::byte{1};
        CHECK(says(refusal(s.answer, check, Errc::pcr_mismatch), "the hardware: PCR sha1:17 is "));
        check.host_pcrs.back().index = 5;
        CHECK(says(refusal(s.answer, check, Errc::pcr_mismatch), "PCR sha1:5 was not quoted"));
        check = s.check;
        check.key = s.approver.spki();
        CHECK(says(refusal(s.answer, check, Errc::permission), "not one of the trusted key"));
        check.key = test::OpensslKey("EC").spki();
        CHECK(says(refusal(s.answer, check, Errc::permission), "not one of the trusted key"));
    }

    TEST_CASE("old form: an answer that was changed, at every byte, or cut, or longer") {
        Shown s;
        auto check = s.check;
        for (std::size_t i = 0; i < s.answer.size(); ++i) {
            CHECK(verify_old_quote(flipped(s.answer, i), check).has_error());
        }
        check.host_pcrs.clear(); // nothing is expected of them, and they are still what was signed
        const std::string changed = refusal(flipped(s.answer, s.answer.size() - 1), check, Errc::mismatch);
        CHECK(says(changed, "the answer was changed"));
        for (std::size_t n = 0; n < s.answer.size(); n += 13) {
            CHECK(says(refusal(ByteView(s.answer).first(n), check, Errc::protocol), "not the one to this request"));
        }
        Bytes longer = s.answer;
        longer.push_back({});
        CHECK(says(refusal(longer, check, Errc::protocol), "not the one to this request"));
    }

    TEST_CASE("old form: what the verifier has to say, and what a quote says nothing of") {
        Shown s;
        auto check = s.check;
        check.pcrs.clear();
        CHECK(says(refusal(s.answer, check, Errc::usage), "PCR sha1:10 was asked for"));
        check.pcrs = s.check.pcrs;
        check.pcrs.push_back({HashAlg::sha1, 11, Bytes(20)});
        CHECK(says(refusal(s.answer, check, Errc::usage), "sha1:11 was not asked for"));
        for (std::size_t n = 0; n < s.check.parameters.size(); ++n) {
            check = s.check;
            check.parameters.resize(n);
            CHECK(says(refusal(s.answer, check, Errc::usage), "none of TPM_ORD_DeepQuote"));
        }
        check = s.check;
        check.parameters.back() = std::byte{16}; // an unknown flag
        CHECK(says(refusal(s.answer, check, Errc::usage), "none of TPM_ORD_DeepQuote"));
        check = s.check;
        check.parameters.back() = std::byte{tpm::old_quote::vtpm_label | tpm::old_quote::group_list};
        CHECK(says(refusal(s.answer, check, Errc::usage), "says nothing of which vTPM"));
    }

    TEST_CASE("old form: a new endorsement key; another one, or another nonce, is refused by its name") {
        Shown s(OldCommand::parent_sign_ek);
        CHECK(verify_old_quote(s.answer, s.check));
        auto check = s.check;
        check.endorsement_key = s.approver.spki();
        CHECK(says(refusal(s.answer, check, Errc::mismatch), "the vTPM has another endorsement key"));
        check = s.check;
        check.nonce[0] ^= std::byte{1};
        CHECK(says(refusal(s.answer, check, Errc::mismatch), "asked for with the nonce"));
        check = s.check;
        check.endorsement_key = test::OpensslKey("EC").spki();
        CHECK(refusal(s.answer, check, Errc::usage).size() > 0);
        check = s.check;
        check.parameters.pop_back();
        CHECK(says(refusal(s.answer, check, Errc::usage), "none of TPM_ORD_ParentSignEK"));
    }
}

} // namespace old_quote_test
