#include "tpm/public_key.hpp"

#include "util/openssl_ptr.hpp"
#include "util/wire.hpp"

#include <array>
#include <openssl/core_names.h>
#include <openssl/ecdsa.h>
#include <openssl/param_build.h>
#include <openssl/pem.h>
#include <openssl/rsa.h>
#include <openssl/x509.h>

namespace vtpmd::hwtpm {

namespace {

constexpr unsigned long exponent = 65537;
constexpr std::size_t modulus_size = 256;
constexpr std::size_t coordinate_size = 32;
constexpr std::byte uncompressed{0x04}; // SEC 1, section 2.3.3

Error no_key() { return make_error(Errc::protocol, "not a public key that OpenSSL takes"); }

Error wrong_kind() {
    return make_error(Errc::usage,
                      "not a public key of the kinds known here: RSA-2048 with exponent 65537, or ECDSA on "
                      "P-256, as DER SubjectPublicKeyInfo");
}

/// OpenSSL's own would ask at the terminal, though it is a public key that claims to be encrypted.
int no_password(char* /*buffer*/, int /*size*/, int /*writing*/, void* /*data*/) { return -1; }

Result<Pkey> import(const char* type, OSSL_PARAM_BLD* build) {
    const Params params(OSSL_PARAM_BLD_to_param(build));
    const KeyContext context(EVP_PKEY_CTX_new_from_name(nullptr, type, nullptr));
    EVP_PKEY* raw = nullptr;
    if (!params || !context || EVP_PKEY_fromdata_init(context.get()) != 1 ||
        EVP_PKEY_fromdata(context.get(), &raw, EVP_PKEY_PUBLIC_KEY, params.get()) != 1) {
        return no_key();
    }
    return Pkey(raw);
}

Result<Pkey> read_spki(ByteView spki) {
    const unsigned char* at = uchar_ptr(spki);
    Pkey key(d2i_PUBKEY(nullptr, &at, static_cast<long>(spki.size())));
    if (!key || at != uchar_ptr(spki) + spki.size()) {
        return wrong_kind();
    }
    return key;
}

Result<Bytes> padded(const BIGNUM* n, std::size_t size) {
    Bytes out(size);
    if (n == nullptr || BN_bn2binpad(n, uchar_ptr(MutByteView(out)), static_cast<int>(size)) < 0) {
        return make_error(Errc::protocol, "a number of more than {} bytes", size);
    }
    return out;
}

} // namespace

Result<Pkey> to_pkey(const PublicKey& key) {
    const ParamBuild build(OSSL_PARAM_BLD_new());
    if (!build) {
        return no_key();
    }
    if (key.type == KeyType::rsa_2048) {
        const BigNumber n(BN_bin2bn(uchar_ptr(key.modulus), static_cast<int>(key.modulus.size()), nullptr));
        if (!n || OSSL_PARAM_BLD_push_BN(build.get(), OSSL_PKEY_PARAM_RSA_N, n.get()) != 1 ||
            OSSL_PARAM_BLD_push_ulong(build.get(), OSSL_PKEY_PARAM_RSA_E, exponent) != 1) {
            return no_key();
        }
        return import("RSA", build.get());
    }
    Bytes point{uncompressed};
    point.insert(point.end(), key.x.begin(), key.x.end());
    point.insert(point.end(), key.y.begin(), key.y.end());
    if (OSSL_PARAM_BLD_push_utf8_string(build.get(), OSSL_PKEY_PARAM_GROUP_NAME, SN_X9_62_prime256v1, 0) != 1 ||
        OSSL_PARAM_BLD_push_octet_string(build.get(), OSSL_PKEY_PARAM_PUB_KEY, point.data(), point.size()) != 1) {
        return no_key();
    }
    return import("EC", build.get());
}

Result<Bytes> to_spki(const PublicKey& key) {
    auto pkey = to_pkey(key);
    if (!pkey) {
        return pkey.error();
    }
    unsigned char* raw = nullptr;
    const int size = i2d_PUBKEY(pkey->get(), &raw);
    if (size <= 0) {
        return no_key();
    }
    Bytes out = to_bytes(view_of(raw, static_cast<std::size_t>(size)));
    OPENSSL_free(raw);
    return out;
}

Result<Bytes> spki_of_pem(std::string_view pem) {
    const Bio in(BIO_new_mem_buf(pem.data(), static_cast<int>(pem.size())));
    unsigned char* data = nullptr;
    long size = 0;
    if (!in || PEM_bytes_read_bio(&data, &size, nullptr, PEM_STRING_PUBLIC, in.get(), &no_password, nullptr) != 1) {
        return make_error(Errc::usage, "it has no public key in PEM (-----BEGIN PUBLIC KEY-----); openssl pkey -pubout "
                                       "writes one");
    }
    Bytes out = to_bytes(view_of(data, static_cast<std::size_t>(size)));
    OPENSSL_free(data);
    return out;
}

std::string pem_of_spki(ByteView spki) {
    const Bio out(BIO_new(BIO_s_mem()));
    if (spki.empty() || !out ||
        PEM_write_bio(out.get(), PEM_STRING_PUBLIC, "", uchar_ptr(spki), static_cast<long>(spki.size())) <= 0) {
        return {};
    }
    char* text = nullptr;
    const long size = BIO_get_mem_data(out.get(), &text);
    return {text, static_cast<std::size_t>(size)};
}

Result<PublicKey> parse_public_key(ByteView spki) {
    auto key = read_spki(spki);
    if (!key) {
        return key.error();
    }
    PublicKey out;
    if (EVP_PKEY_is_a(key->get(), "RSA") == 1) {
        BIGNUM* n = nullptr;
        BIGNUM* e = nullptr;
        const bool read = EVP_PKEY_get_bn_param(key->get(), OSSL_PKEY_PARAM_RSA_N, &n) == 1 &&
                          EVP_PKEY_get_bn_param(key->get(), OSSL_PKEY_PARAM_RSA_E, &e) == 1;
        const BigNumber modulus(n);
        const BigNumber owned_exponent(e);
        if (!read || BN_is_word(e, exponent) != 1 || BN_num_bits(n) != modulus_size * 8) {
            return wrong_kind();
        }
        auto bytes = padded(n, modulus_size);
        if (!bytes) {
            return bytes.error();
        }
        out.modulus = std::move(*bytes);
        return out;
    }
    std::array<char, 32> group{};
    if (EVP_PKEY_is_a(key->get(), "EC") != 1 ||
        EVP_PKEY_get_group_name(key->get(), group.data(), group.size(), nullptr) != 1 ||
        std::string_view(group.data()) != SN_X9_62_prime256v1) {
        return wrong_kind();
    }
    BIGNUM* x = nullptr;
    BIGNUM* y = nullptr;
    const bool read = EVP_PKEY_get_bn_param(key->get(), OSSL_PKEY_PARAM_EC_PUB_X, &x) == 1 &&
                      EVP_PKEY_get_bn_param(key->get(), OSSL_PKEY_PARAM_EC_PUB_Y, &y) == 1;
    const BigNumber owned_x(x);
    const BigNumber owned_y(y);
    auto x_bytes = padded(read ? x : nullptr, coordinate_size);
    auto y_bytes = padded(read ? y : nullptr, coordinate_size);
    if (!x_bytes || !y_bytes) {
        return wrong_kind();
    }
    return PublicKey{.type = KeyType::ecdsa_p256, .modulus = {}, .x = std::move(*x_bytes), .y = std::move(*y_bytes)};
}

namespace {

Result<void> verify_with(const EVP_MD* digest, ByteView spki, ByteView message, ByteView signature) {
    if (auto known = parse_public_key(spki); !known) { // no other keys than those
        return known.error();
    }
    auto key = read_spki(spki);
    const DigestContext context(EVP_MD_CTX_new());
    if (!key || !context || EVP_DigestVerifyInit(context.get(), nullptr, digest, nullptr, key->get()) != 1 ||
        EVP_DigestVerify(context.get(), uchar_ptr(signature), signature.size(), uchar_ptr(message), message.size()) !=
            1) {
        return make_error(Errc::permission, "the signature is not of this key over this");
    }
    return {};
}

} // namespace

Result<void> verify_sha256(ByteView spki, ByteView message, ByteView signature) {
    return verify_with(EVP_sha256(), spki, message, signature);
}

Result<void> verify_sha1(ByteView spki, ByteView message, ByteView signature) {
    return verify_with(EVP_sha1(), spki, message, signature);
}

Result<EcdsaSignature> parse_ecdsa_signature(ByteView der) {
    const unsigned char* at = uchar_ptr(der);
    const EcdsaSig signature(d2i_ECDSA_SIG(nullptr, &at, static_cast<long>(der.size())));
    if (!signature || at != uchar_ptr(der) + der.size()) {
        return make_error(Errc::protocol, "not an ECDSA signature (DER, two numbers)");
    }
    auto r = padded(ECDSA_SIG_get0_r(signature.get()), coordinate_size);
    auto s = padded(ECDSA_SIG_get0_s(signature.get()), coordinate_size);
    if (!r || !s) {
        return r ? s.error() : r.error();
    }
    return EcdsaSignature{.r = std::move(*r), .s = std::move(*s)};
}

Result<Bytes> sha256(std::initializer_list<ByteView> parts) {
    const DigestContext context(EVP_MD_CTX_new());
    Bytes out(32);
    bool ok = context && EVP_DigestInit_ex(context.get(), EVP_sha256(), nullptr) == 1;
    for (ByteView part : parts) {
        ok = ok && EVP_DigestUpdate(context.get(), part.data(), part.size()) == 1;
    }
    if (!ok || EVP_DigestFinal_ex(context.get(), uchar_ptr(MutByteView(out)), nullptr) != 1) {
        return make_error(Errc::unsupported, "OpenSSL refuses SHA-256");
    }
    return out;
}

Result<Bytes> spki_of_pubkey(ByteView pubkey) {
    WireReader r(pubkey);
    r.skip(4 + 2 + 2);
    r.skip(r.be32());
    const ByteView modulus = r.bytes(r.be32());
    if (!r.expect_end()) {
        return make_error(Errc::protocol, "a public key of the TPM: malformed");
    }
    return to_spki({.type = KeyType::rsa_2048, .modulus = to_bytes(modulus), .x = {}, .y = {}});
}

Result<Bytes> endorsement_pubkey(ByteView spki) {
    auto key = parse_public_key(spki);
    if (!key || key->type != KeyType::rsa_2048) {
        return make_error(Errc::usage, "a TPM 1.2's endorsement key is one of RSA-2048");
    }
    // TPM_KEY_PARMS (TPM_ALG_RSA, TPM_ES_RSAESOAEP_SHA1_MGF1, TPM_SS_NONE), TPM_STORE_PUBKEY; the exponent's length:
    // 0 is 2^16 + 1
    WireWriter w;
    w.be32(0x00000001).be16(0x0003).be16(0x0001).be32(12).be32(2048).be32(2).be32(0);
    return w.be32(static_cast<std::uint32_t>(key->modulus.size())).bytes(key->modulus).take();
}

} // namespace vtpmd::hwtpm
