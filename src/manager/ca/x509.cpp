#include "manager/ca/x509.hpp"

#include "tpm/public_key.hpp"
#include "util/free_by.hpp"
#include "util/openssl_ptr.hpp"
#include "util/text.hpp"

#include <array>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/rand.h>
#include <openssl/x509.h>
#include <openssl/x509v3.h>

namespace vtpmd::manager {

namespace {

// TCG OIDs (EK Credential Profile for TPM Family 2.0, section 4; 2.23.133 is the TCG's arc).
constexpr const char* at_tpm_manufacturer = "2.23.133.2.1";
constexpr const char* at_tpm_model = "2.23.133.2.2";
constexpr const char* at_tpm_version = "2.23.133.2.3";
constexpr const char* at_tpm_specification = "2.23.133.2.16";
constexpr const char* kp_ek_certificate = "2.23.133.8.1";

constexpr std::string_view model = "vtpmd";
constexpr const char* no_end = "99991231235959Z"; // RFC 5280, section 4.1.2.5
constexpr int serial_bits = 127;                  // positive, and unlike any other
/// The subject of a CA stands in every certificate that it issues, and these have room for little (ek_certificate_limit).
constexpr int subject_limit = 512;

using Certificate = std::unique_ptr<X509, FreeBy<X509_free>>;
using CertificateRequest = std::unique_ptr<X509_REQ, FreeBy<X509_REQ_free>>;
using Extension = std::unique_ptr<X509_EXTENSION, FreeBy<X509_EXTENSION_free>>;
using Name = std::unique_ptr<X509_NAME, FreeBy<X509_NAME_free>>;
using Object = std::unique_ptr<ASN1_OBJECT, FreeBy<ASN1_OBJECT_free>>;
using Time = std::unique_ptr<ASN1_TIME, FreeBy<ASN1_TIME_free>>;
using Integer = std::unique_ptr<ASN1_INTEGER, FreeBy<ASN1_INTEGER_free>>;
using hwtpm::Pkey;

void free_extensions(STACK_OF(X509_EXTENSION) * all) { sk_X509_EXTENSION_pop_free(all, X509_EXTENSION_free); }
using Extensions = std::unique_ptr<STACK_OF(X509_EXTENSION), FreeBy<free_extensions>>;

Error x509_refused(std::string_view what) { return make_error(Errc::unsupported, "OpenSSL refuses {}", what); }

template <typename T, typename Encode>
Bytes der_of(T* object, Encode encode) {
    unsigned char* raw = nullptr;
    const int size = encode(object, &raw);
    if (size <= 0) {
        return {};
    }
    Bytes out = to_bytes(view_of(raw, static_cast<std::size_t>(size)));
    OPENSSL_free(raw);
    return out;
}

Certificate certificate_of(ByteView der) {
    const unsigned char* at = uchar_ptr(der);
    Certificate out(d2i_X509(nullptr, &at, static_cast<long>(der.size())));
    if (out && at != uchar_ptr(der) + der.size()) {
        out.reset();
    }
    return out;
}

/// By its number, or by OpenSSL's name.
Object object_of(const char* oid) { return Object(OBJ_txt2obj(oid, 0)); }

bool add_to_name(X509_NAME* name, const char* type, std::string_view value) {
    const Object object = object_of(type);
    return object && X509_NAME_add_entry_by_OBJ(name, object.get(), MBSTRING_UTF8,
                                                reinterpret_cast<const unsigned char*>(value.data()),
                                                static_cast<int>(value.size()), -1, 0) == 1;
}

Extension extension_by_text(int nid, const char* value, X509* issuer = nullptr, X509* subject = nullptr) {
    X509V3_CTX context;
    X509V3_set_ctx(&context, issuer, subject, nullptr, nullptr, 0);
    return Extension(X509V3_EXT_conf_nid(nullptr, &context, nid, value));
}

bool add_extension(X509* to, const Extension& extension) {
    return extension && X509_add_ext(to, extension.get(), -1) == 1;
}

/// X.690: a value of less than 128 bytes with its tag and length.
Bytes der_value(std::uint8_t tag, ByteView value) {
    Bytes out{std::byte{tag}, static_cast<std::byte>(value.size())};
    out.insert(out.end(), value.begin(), value.end());
    return out;
}

Bytes der_join(std::initializer_list<ByteView> parts) {
    Bytes out;
    for (ByteView part : parts) {
        out.insert(out.end(), part.begin(), part.end());
    }
    return out;
}

Bytes der_number(std::uint32_t n) {
    const Integer integer(ASN1_INTEGER_new());
    if (!integer || ASN1_INTEGER_set_uint64(integer.get(), n) != 1) {
        return {};
    }
    return der_of(integer.get(), i2d_ASN1_INTEGER);
}

/// SubjectDirectoryAttributes (RFC 5280, section 4.2.1.8) with a TPMSpecification { family UTF8String, level INTEGER, revision INTEGER }.
Extension specification_extension(TpmVersion family, const proto::TpmDescription& tpm) {
    constexpr std::uint8_t utf8_string = 0x0C;
    constexpr std::uint8_t sequence = 0x30;
    constexpr std::uint8_t set = 0x31;
    const Object type = object_of(at_tpm_specification);
    const Object extension = object_of("subjectDirectoryAttributes");
    if (!type || !extension) {
        return nullptr;
    }
    const Bytes oid = der_of(type.get(), i2d_ASN1_OBJECT);
    const Bytes name = der_value(utf8_string, as_bytes(to_string(family)));
    const Bytes specification = der_value(sequence, der_join({name, der_number(tpm.level), der_number(tpm.revision)}));
    const Bytes attribute = der_value(sequence, der_join({oid, der_value(set, specification)}));
    const Bytes all = der_value(sequence, attribute);
    const std::unique_ptr<ASN1_OCTET_STRING, FreeBy<ASN1_OCTET_STRING_free>> value(ASN1_OCTET_STRING_new());
    if (!value || ASN1_OCTET_STRING_set(value.get(), uchar_ptr(all), static_cast<int>(all.size())) != 1) {
        return nullptr;
    }
    return Extension(X509_EXTENSION_create_by_OBJ(nullptr, extension.get(), 0, value.get()));
}

/// id:XXXXXXXX, as the profiles write a manufacturer and a version.
std::string tcg_id(std::uint32_t value) { return fmt::format("id:{:08X}", value); }

bool add_tpm_name(X509* to, const proto::TpmDescription& tpm) {
    Name name(X509_NAME_new());
    if (!name || !add_to_name(name.get(), at_tpm_manufacturer, tcg_id(tpm.manufacturer)) ||
        !add_to_name(name.get(), at_tpm_model, model) ||
        !add_to_name(name.get(), at_tpm_version, tcg_id(tpm.firmware))) {
        return false;
    }
    const std::unique_ptr<GENERAL_NAMES, FreeBy<GENERAL_NAMES_free>> names(sk_GENERAL_NAME_new_null());
    std::unique_ptr<GENERAL_NAME, FreeBy<GENERAL_NAME_free>> one(GENERAL_NAME_new());
    if (!names || !one) {
        return false;
    }
    GENERAL_NAME_set0_value(one.get(), GEN_DIRNAME, name.release());
    if (sk_GENERAL_NAME_push(names.get(), one.get()) == 0) {
        return false;
    }
    (void)one.release();
    return X509_add1_ext_i2d(to, NID_subject_alt_name, names.get(), 1, X509V3_ADD_DEFAULT) == 1;
}

/// Version, serial number and validity: the same in every certificate.
Certificate begun_certificate(std::uint64_t unix_time) {
    Certificate out(X509_new());
    const BigNumber serial(BN_new());
    const Time from(ASN1_TIME_set(nullptr, static_cast<time_t>(unix_time)));
    const Time until(ASN1_TIME_new());
    if (!out || !serial || !from || !until || X509_set_version(out.get(), X509_VERSION_3) != 1 ||
        BN_rand(serial.get(), serial_bits, BN_RAND_TOP_ONE, BN_RAND_BOTTOM_ANY) != 1 ||
        BN_to_ASN1_INTEGER(serial.get(), X509_get_serialNumber(out.get())) == nullptr ||
        ASN1_TIME_set_string(until.get(), no_end) != 1 || X509_set1_notBefore(out.get(), from.get()) != 1 ||
        X509_set1_notAfter(out.get(), until.get()) != 1) {
        return nullptr;
    }
    return out;
}

SecretBytes private_der(EVP_PKEY* key) {
    const std::unique_ptr<PKCS8_PRIV_KEY_INFO, FreeBy<PKCS8_PRIV_KEY_INFO_free>> info(EVP_PKEY2PKCS8(key));
    unsigned char* raw = nullptr;
    const int size = info ? i2d_PKCS8_PRIV_KEY_INFO(info.get(), &raw) : 0;
    if (size <= 0) {
        return {};
    }
    SecretBytes out(view_of(raw, static_cast<std::size_t>(size)));
    OPENSSL_clear_free(raw, static_cast<std::size_t>(size));
    return out;
}

Pkey private_key_of(const SecretBytes& der) {
    const unsigned char* at = uchar_ptr(der.view());
    return Pkey(d2i_AutoPrivateKey(nullptr, &at, static_cast<long>(der.size())));
}

Result<Bytes> ca_certificate(EVP_PKEY* key, std::string_view common_name, std::uint64_t unix_time) {
    const Certificate out = begun_certificate(unix_time);
    if (!out || !add_to_name(X509_get_subject_name(out.get()), "CN", common_name) ||
        X509_set_issuer_name(out.get(), X509_get_subject_name(out.get())) != 1 ||
        X509_set_pubkey(out.get(), key) != 1 ||
        !add_extension(out.get(), extension_by_text(NID_basic_constraints, "critical,CA:TRUE,pathlen:0")) ||
        !add_extension(out.get(), extension_by_text(NID_key_usage, "critical,keyCertSign,cRLSign")) ||
        !add_extension(out.get(), extension_by_text(NID_subject_key_identifier, "hash", nullptr, out.get())) ||
        X509_sign(out.get(), key, EVP_sha256()) <= 0) {
        return x509_refused("a CA's certificate");
    }
    return der_of(out.get(), i2d_X509);
}

/// It asks for what a CA needs, so that whoever signs it need not say it again (openssl x509 -copy_extensions copyall).
Result<Bytes> ca_request(EVP_PKEY* key, std::string_view common_name) {
    const CertificateRequest out(X509_REQ_new());
    const Extensions wanted(sk_X509_EXTENSION_new_null());
    for (auto [nid, value] : {std::pair{NID_basic_constraints, "critical,CA:TRUE,pathlen:0"},
                              {NID_key_usage, "critical,keyCertSign,cRLSign"}}) {
        Extension extension = extension_by_text(nid, value);
        if (!wanted || !extension || sk_X509_EXTENSION_push(wanted.get(), extension.get()) == 0) {
            return x509_refused("a certificate request's extension");
        }
        (void)extension.release();
    }
    if (!out || X509_REQ_set_version(out.get(), X509_REQ_VERSION_1) != 1 ||
        !add_to_name(X509_REQ_get_subject_name(out.get()), "CN", common_name) ||
        X509_REQ_set_pubkey(out.get(), key) != 1 || X509_REQ_add_extensions(out.get(), wanted.get()) != 1 ||
        X509_REQ_sign(out.get(), key, EVP_sha256()) <= 0) {
        return x509_refused("a certificate request");
    }
    return der_of(out.get(), i2d_X509_REQ);
}

Result<Pkey> claimed_key(const proto::CertifyRequest& claim) {
    const ByteView key = claim.key;
    if (key.size() != proto::ek_size(claim.kind)) {
        return make_error(Errc::usage, "an endorsement key of {} bytes", key.size());
    }
    hwtpm::PublicKey out;
    if (claim.kind == proto::EkKind::rsa_2048) {
        out.modulus = claim.key;
    } else {
        out.type = hwtpm::KeyType::ecdsa_p256;
        out.x = to_bytes(key.first(key.size() / 2));
        out.y = to_bytes(key.last(key.size() / 2));
    }
    auto pkey = hwtpm::to_pkey(out);
    if (!pkey) {
        return make_error(Errc::usage, "an endorsement key that is none: {}", pkey.error().message);
    }
    return pkey;
}

// --- an operator's chain ---

int no_passphrase(char* /*buffer*/, int /*size*/, int /*writing*/, void* /*data*/) { return -1; }

Result<std::vector<Certificate>> certificates_of_pem(std::string_view pem) {
    const Bio in(BIO_new_mem_buf(pem.data(), static_cast<int>(pem.size())));
    std::vector<Certificate> out;
    while (in) {
        Certificate one(PEM_read_bio_X509(in.get(), nullptr, &no_passphrase, nullptr));
        if (!one) {
            break;
        }
        if (out.size() == chain_limit) {
            return make_error(Errc::usage, "more than {} certificates", chain_limit);
        }
        out.push_back(std::move(one));
    }
    const unsigned long why = ERR_peek_last_error();
    ERR_clear_error();
    if (!out.empty() && ERR_GET_REASON(why) != PEM_R_NO_START_LINE) {
        return make_error(Errc::usage, "what follows certificate {} is damaged", out.size());
    }
    if (out.empty()) {
        return make_error(Errc::usage, "there is no certificate in PEM (-----BEGIN CERTIFICATE-----) in it");
    }
    return out;
}

std::string subject_of(X509* certificate) {
    std::array<char, 256> text{};
    X509_NAME_oneline(X509_get_subject_name(certificate), text.data(), static_cast<int>(text.size()));
    return printable(text.data());
}

Result<void> check_ca(X509* certificate, std::uint64_t unix_time) {
    if (i2d_X509(certificate, nullptr) > static_cast<int>(chain_certificate_limit)) {
        return make_error(Errc::usage, "{}: a certificate of more than {} bytes", subject_of(certificate),
                          chain_certificate_limit);
    }
    // X509_check_ca() also takes what is only self-signed or of version 1.
    const std::uint32_t flags = X509_get_extension_flags(certificate);
    const bool may_sign = (X509_get_key_usage(certificate) & KU_KEY_CERT_SIGN) != 0; // all, if it does not say
    if ((flags & EXFLAG_INVALID) != 0 || (flags & EXFLAG_CA) == 0 || !may_sign) {
        return make_error(Errc::usage,
                          "{}: not the certificate of a CA (basicConstraints CA:TRUE, and keyUsage keyCertSign if it "
                          "has one)",
                          subject_of(certificate));
    }
    auto now = static_cast<time_t>(unix_time);
    if (X509_cmp_time(X509_get0_notBefore(certificate), &now) > 0 ||
        X509_cmp_time(X509_get0_notAfter(certificate), &now) < 0) {
        return make_error(Errc::usage, "{}: it is not valid now", subject_of(certificate));
    }
    return {};
}

Result<void> check_own(X509* certificate, X509* own) {
    if (X509_get0_pubkey(certificate) == nullptr ||
        EVP_PKEY_eq(X509_get0_pubkey(certificate), X509_get0_pubkey(own)) != 1) {
        return make_error(Errc::usage,
                          "{}: the first certificate has another key than this group's CA; it has to be the one that "
                          "was made from its request",
                          subject_of(certificate));
    }
    if (X509_get0_subject_key_id(certificate) == nullptr) {
        return make_error(Errc::usage, "{}: it has no subject key identifier, which the certificates under it refer to",
                          subject_of(certificate));
    }
    const int size = i2d_X509_NAME(X509_get_subject_name(certificate), nullptr);
    if (size <= 2 || size > subject_limit) {
        return make_error(Errc::usage, "{}: a subject of {} bytes (expected 3 to {})", subject_of(certificate), size,
                          subject_limit);
    }
    return {};
}

/// `number` CAs stand between the issuer and the endorsement keys.
Result<void> check_issued(X509* certificate, X509* issuer, std::size_t number) {
    if (X509_check_issued(issuer, certificate) != X509_V_OK ||
        X509_verify(certificate, X509_get0_pubkey(issuer)) != 1) {
        ERR_clear_error();
        return make_error(Errc::usage, "{} was not signed by {}, which comes after it", subject_of(certificate),
                          subject_of(issuer));
    }
    const long allowed = X509_get_pathlen(issuer); // -1: any
    if (allowed >= 0 && static_cast<std::size_t>(allowed) < number) {
        return make_error(Errc::usage, "{}: it allows {} CAs under it, and there are {}", subject_of(issuer), allowed,
                          number);
    }
    return {};
}

} // namespace

Result<NewCa> make_ca(std::string_view common_name, std::uint64_t unix_time) {
    const Pkey key(EVP_PKEY_Q_keygen(nullptr, nullptr, "EC", "P-256"));
    if (!key) {
        return x509_refused("a key on P-256");
    }
    NewCa out;
    out.key = private_der(key.get());
    auto certificate = ca_certificate(key.get(), common_name, unix_time);
    auto request = ca_request(key.get(), common_name);
    if (out.key.empty() || !certificate || !request) {
        return !certificate ? certificate.error() : !request ? request.error() : x509_refused("to write a key");
    }
    out.certificate = std::move(*certificate);
    out.request = std::move(*request);
    return out;
}

Result<Bytes> issue_ek_certificate(const SecretBytes& key, ByteView ca, const EkCertificate& what) {
    const Pkey signer = private_key_of(key);
    const Certificate issuer = certificate_of(ca);
    if (!signer || !issuer || EVP_PKEY_eq(signer.get(), X509_get0_pubkey(issuer.get())) != 1) {
        return make_error(Errc::corrupt, "the CA's key and its certificate do not belong together");
    }
    auto subject_key = claimed_key(what.claim);
    if (!subject_key) {
        return subject_key.error();
    }
    const char* usage =
        what.claim.kind == proto::EkKind::rsa_2048 ? "critical,keyEncipherment" : "critical,keyAgreement";
    const Certificate out = begun_certificate(what.unix_time);
    if (!out || !add_to_name(X509_get_subject_name(out.get()), "serialNumber", to_string(what.vtpm)) ||
        X509_set_issuer_name(out.get(), X509_get_subject_name(issuer.get())) != 1 ||
        X509_set_pubkey(out.get(), subject_key->get()) != 1 || !add_tpm_name(out.get(), what.claim.tpm) ||
        !add_extension(out.get(), extension_by_text(NID_basic_constraints, "critical,CA:FALSE")) ||
        !add_extension(out.get(), extension_by_text(NID_key_usage, usage)) ||
        !add_extension(out.get(), extension_by_text(NID_ext_key_usage, kp_ek_certificate)) ||
        !add_extension(out.get(), extension_by_text(NID_authority_key_identifier, "keyid:always", issuer.get())) ||
        !add_extension(out.get(), specification_extension(what.family, what.claim.tpm)) ||
        X509_sign(out.get(), signer.get(), EVP_sha256()) <= 0) {
        return x509_refused("an endorsement key's certificate");
    }
    return der_of(out.get(), i2d_X509);
}

Result<std::vector<Bytes>> read_chain(std::string_view pem, ByteView own, std::uint64_t unix_time) {
    const Certificate own_certificate = certificate_of(own);
    if (!own_certificate) {
        return make_error(Errc::corrupt, "the CA's own certificate cannot be read");
    }
    auto chain = certificates_of_pem(pem);
    if (!chain) {
        return chain.error();
    }
    if (auto right = check_own(chain->front().get(), own_certificate.get()); !right) {
        return right.error();
    }
    std::vector<Bytes> out;
    for (std::size_t i = 0; i < chain->size(); ++i) {
        X509* one = (*chain)[i].get();
        auto right = check_ca(one, unix_time);
        if (right && i > 0) {
            right = check_issued((*chain)[i - 1].get(), one, i);
        }
        // Alone, a certificate that says it signed itself has to have done so.
        const bool self_issued = X509_NAME_cmp(X509_get_subject_name(one), X509_get_issuer_name(one)) == 0;
        if (right && self_issued && i + 1 == chain->size()) {
            right = check_issued(one, one, 0);
        }
        if (!right) {
            return right.error();
        }
        out.push_back(der_of(one, i2d_X509));
    }
    return out;
}

namespace {

std::string pem_text(const char* name, ByteView der) {
    const Bio out(BIO_new(BIO_s_mem()));
    if (!out || PEM_write_bio(out.get(), name, "", uchar_ptr(der), static_cast<long>(der.size())) <= 0) {
        return {};
    }
    char* text = nullptr;
    const long size = BIO_get_mem_data(out.get(), &text);
    return {text, static_cast<std::size_t>(size)};
}

} // namespace

std::string pem_of_certificates(const std::vector<Bytes>& chain) {
    std::string out;
    for (const Bytes& certificate : chain) {
        out += pem_text(PEM_STRING_X509, certificate);
    }
    return out;
}

std::string pem_of_request(ByteView request) { return pem_text(PEM_STRING_X509_REQ, request); }

} // namespace vtpmd::manager
