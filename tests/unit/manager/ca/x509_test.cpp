#include "check.hpp"
#include "manager/ca/certifier_detail.hpp"
#include "openssl_key.hpp"
#include "store/aead.hpp"
#include "test_data.hpp"
#include "tpm/public_key.hpp"
#include "util/free_by.hpp"
#include "util/text.hpp"

#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <openssl/x509.h>
#include <openssl/x509v3.h>

namespace manager_x509_test {

using namespace vtpmd;
using namespace vtpmd::manager;

namespace {

const std::string directory = VTPMD_TEST_DATA;
const Uuid uuid = parse_uuid("00112233-4455-6677-8899-aabbccddeeff").value();
constexpr std::uint64_t now = 1'790'000'000; // in 2026

using Parsed = std::unique_ptr<X509, FreeBy<X509_free>>;

Parsed parsed(const Bytes& der) {
    const unsigned char* at = uchar_ptr(der);
    Parsed out(d2i_X509(nullptr, &at, static_cast<long>(der.size())));
    REQUIRE(out);
    CHECK(at == uchar_ptr(der) + der.size());
    return out;
}

proto::CertifyRequest claim_of(const test::OpensslKey& key, proto::EkKind kind) {
    auto pub = hwtpm::parse_public_key(key.spki()).value();
    proto::CertifyRequest out;
    out.kind = kind;
    out.key = pub.modulus;
    out.key.insert(out.key.end(), pub.x.begin(), pub.x.end());
    out.key.insert(out.key.end(), pub.y.begin(), pub.y.end());
    out.tpm = {.manufacturer = 0x49424D00, .firmware = 0x20191023, .level = 0, .revision = 164};
    return out;
}

EkCertificate what_of(proto::CertifyRequest claim, TpmVersion family = TpmVersion::tpm20) {
    EkCertificate out;
    out.vtpm = uuid;
    out.family = family;
    out.claim = std::move(claim);
    out.unix_time = now;
    return out;
}

bool contains(const Bytes& all, std::string_view hex) {
    const Bytes part = from_hex(hex).value();
    return std::search(all.begin(), all.end(), part.begin(), part.end()) != all.end();
}

CertifierDetail some_detail() {
    CertifierDetail d;
    d.box = Bytes(60, std::byte{0xb0});
    d.request = Bytes(200, std::byte{0xc0});
    d.chain = {Bytes(300, std::byte{0xc1}), Bytes(310, std::byte{0xc2})};
    return d;
}

} // namespace

TEST_SUITE("manager") {
    TEST_CASE("x509: a CA signs for itself, and asks for what it is") {
        const NewCa ca = make_ca("vtpmd group x", now).value();
        const auto certificate = parsed(ca.certificate);
        CHECK(X509_verify(certificate.get(), X509_get0_pubkey(certificate.get())) == 1);
        CHECK(X509_check_ca(certificate.get()) == 1);
        CHECK(X509_get_pathlen(certificate.get()) == 0);
        CHECK(X509_get_key_usage(certificate.get()) == (KU_KEY_CERT_SIGN | KU_CRL_SIGN));
        CHECK(X509_get0_subject_key_id(certificate.get()) != nullptr);
        CHECK(make_ca("vtpmd group x", now).value().key.equals(ca.key.view()) == false);
        CHECK(pem_of_request(ca.request).starts_with("-----BEGIN CERTIFICATE REQUEST-----\n"));
    }

    TEST_CASE("x509: an endorsement key's certificate is as the TCG's profiles have it") {
        const NewCa ca = make_ca("vtpmd group x", now).value();
        const auto issuer = parsed(ca.certificate);
        const test::OpensslKey rsa("RSA");
        const test::OpensslKey ecc("EC");
        for (const bool is_rsa : {true, false}) {
            const auto& key = is_rsa ? rsa : ecc;
            const auto claim = claim_of(key, is_rsa ? proto::EkKind::rsa_2048 : proto::EkKind::ecc_p256);
            const Bytes der = issue_ek_certificate(ca.key, ca.certificate, what_of(claim)).value();
            CHECK(der.size() < proto::ek_certificate_limit);
            const auto certificate = parsed(der);
            CHECK(X509_verify(certificate.get(), X509_get0_pubkey(issuer.get())) == 1);
            CHECK(X509_check_issued(issuer.get(), certificate.get()) == X509_V_OK);
            CHECK(X509_check_ca(certificate.get()) == 0);
            CHECK(X509_get_key_usage(certificate.get()) == (is_rsa ? KU_KEY_ENCIPHERMENT : KU_KEY_AGREEMENT));
            unsigned char* spki = nullptr;
            const int size = i2d_X509_PUBKEY(X509_get_X509_PUBKEY(certificate.get()), &spki);
            CHECK(to_hex(view_of(spki, static_cast<std::size_t>(size))) == to_hex(key.spki()));
            OPENSSL_free(spki);
            // tcg-at-tpmManufacturer "id:49424D00", -tpmModel "vtpmd", -tpmVersion "id:20191023"; critical
            CHECK(contains(der, "060567810502010c0b69643a3439343234443030"));
            CHECK(contains(der, "060567810502020c0576"
                                "74706d64"));
            CHECK(contains(der, "060567810502030c0b69643a3230313931303233"));
            CHECK(contains(der, "0603551d110101ff"));
            // tcg-at-tpmSpecification: "2.0", 0, 164
            CHECK(contains(der, "0605678105021031"
                                "0e300c0c03322e30020100020200a4"));
            CHECK(contains(der, "06056781050801"));                     // tcg-kp-EKCertificate
            CHECK(contains(der, "180f39393939313233313233353935395a")); // no end
        }
        auto first = issue_ek_certificate(ca.key, ca.certificate, what_of(claim_of(ecc, proto::EkKind::ecc_p256)));
        auto second = issue_ek_certificate(ca.key, ca.certificate, what_of(claim_of(ecc, proto::EkKind::ecc_p256)));
        CHECK(ASN1_INTEGER_cmp(X509_get0_serialNumber(parsed(*first).get()),
                               X509_get0_serialNumber(parsed(*second).get())) != 0);
        auto old = claim_of(rsa, proto::EkKind::rsa_2048);
        old.tpm.level = 2;
        old.tpm.revision = 116;
        CHECK(contains(issue_ek_certificate(ca.key, ca.certificate, what_of(old, TpmVersion::tpm12)).value(),
                       "0c03312e32020102020174"));
        // The largest numbers fit, too.
        old.tpm = {.manufacturer = 0xFFFFFFFF, .firmware = 0xFFFFFFFF, .level = 0xFFFFFFFF, .revision = 0xFFFFFFFF};
        CHECK(issue_ek_certificate(ca.key, ca.certificate, what_of(old)));
    }

    TEST_CASE("x509: what is no key gets no certificate; nor does anything by a key that is not the CA's") {
        const NewCa ca = make_ca("one", now).value();
        const NewCa other = make_ca("two", now).value();
        auto claim = claim_of(test::OpensslKey("EC"), proto::EkKind::ecc_p256);
        CHECK(issue_ek_certificate(other.key, ca.certificate, what_of(claim)).error().code == Errc::corrupt);
        CHECK(issue_ek_certificate(SecretBytes(3), ca.certificate, what_of(claim)).error().code == Errc::corrupt);
        claim.key[5] ^= std::byte{1}; // not on the curve
        CHECK(issue_ek_certificate(ca.key, ca.certificate, what_of(claim)).error().code == Errc::usage);
        for (const std::size_t size : {0, 63, 65, 256, 4000}) {
            claim.key.resize(size);
            CHECK(issue_ek_certificate(ca.key, ca.certificate, what_of(claim)).error().code == Errc::usage);
        }
    }

    TEST_CASE("x509: a chain that is brought: its own certificate, any damage, too many") {
        const NewCa ca = make_ca("one", now).value();
        const NewCa other = make_ca("two", now).value();
        const std::string pem = pem_of_certificates({ca.certificate});
        CHECK(read_chain(pem, ca.certificate, now).value() == std::vector<Bytes>{ca.certificate});
        CHECK(read_chain("some words\n" + pem, ca.certificate, now));
        const auto refused = [&](const std::string& text, std::string_view why) {
            auto chain = read_chain(text, ca.certificate, now);
            REQUIRE(chain.has_error());
            CHECK(chain.error().code == Errc::usage);
            CHECK_MESSAGE(chain.error().message.find(why) != std::string::npos, chain.error().message);
        };
        refused("", "no certificate");
        refused(pem_of_request(ca.request), "no certificate");
        refused(pem_of_certificates({other.certificate}), "another key");
        refused(pem_of_certificates({ca.certificate, other.certificate}), "was not signed by");
        refused(pem_of_certificates({ca.certificate, ca.certificate}), "it allows 0 CAs under it");
        refused(pem_of_certificates(std::vector<Bytes>(chain_limit + 1, ca.certificate)), "more than 8");
        refused(pem + pem.substr(0, pem.size() / 2), "damaged");
        CHECK(read_chain(pem, ca.certificate, now - 1).error().message.find("not valid now") != std::string::npos);
        Bytes forged = ca.certificate;
        forged.back() ^= std::byte{1}; // of the signature
        refused(pem_of_certificates({forged}), "was not signed by");
        // A byte that changed is noticed, unless it makes it one that another signed, who is not there to ask.
        std::size_t other_issuers = 0;
        for (std::size_t at = 0; at < ca.certificate.size(); ++at) {
            Bytes changed = ca.certificate;
            changed[at] ^= std::byte{0x10};
            auto chain = read_chain(pem_of_certificates({changed}), ca.certificate, now);
            if (chain) {
                const auto one = parsed(changed);
                CHECK(X509_NAME_cmp(X509_get_subject_name(one.get()), X509_get_issuer_name(one.get())) != 0);
                ++other_issuers;
            }
        }
        CHECK(other_issuers < 40);
    }

    TEST_CASE("a group's CA in the journal: golden, cut at every length, a trailing byte, another version") {
        std::ifstream in(directory + "/certifier-v1.record", std::ios::binary);
        const std::string content{std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
        const Bytes stored = to_bytes(as_bytes(content));
        CHECK(decode_certifier_detail(stored).value() == some_detail());
        CHECK(to_hex(encode(some_detail())) == to_hex(stored));
        for (std::size_t n = 0; n < stored.size(); ++n) {
            CHECK(decode_certifier_detail(ByteView(stored).first(n)).error().code == Errc::corrupt);
        }
        Bytes longer = stored;
        longer.push_back(std::byte{0});
        CHECK(decode_certifier_detail(longer).error().code == Errc::corrupt);
        longer.front() = std::byte{2};
        CHECK(decode_certifier_detail(longer).error().code == Errc::version);
        CertifierDetail none = some_detail();
        none.chain.clear();
        CHECK(decode_certifier_detail(encode(none)).error().code == Errc::corrupt);
        none.chain.assign(chain_limit + 1, Bytes(1));
        CHECK(decode_certifier_detail(encode(none)).error().code == Errc::corrupt);
    }

    TEST_CASE("a CA's key is put away for one group, by its key") {
        const SecretBytes group_key = store::random_key();
        const SecretBytes key(as_bytes("a private key"));
        const Bytes box = box_ca_key(group_key, uuid, key);
        CHECK(unbox_ca_key(group_key, uuid, box).value().equals(key.view()));
        Uuid other = uuid;
        other.bytes[0] ^= std::byte{1};
        CHECK(unbox_ca_key(group_key, other, box).error().code == Errc::corrupt);
        CHECK(unbox_ca_key(store::random_key(), uuid, box).error().code == Errc::corrupt);
        CHECK(unbox_ca_key(group_key, uuid, {}).error().code == Errc::corrupt);
    }

    TEST_CASE("golden: make a certifier's record" *
              doctest::skip()) { // VTPMD_MAKE_GOLDEN=DIR vtpmd-unit --no-skip -tc=...
        const char* to = std::getenv("VTPMD_MAKE_GOLDEN");
        REQUIRE(to != nullptr);
        const Bytes bytes = encode(some_detail());
        std::ofstream out(std::string(to) + "/certifier-v1.record", std::ios::binary);
        out.write(reinterpret_cast<const char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
        REQUIRE(out.good());
    }
}

} // namespace manager_x509_test
