#include "openssl_key.hpp"

#include <openssl/x509.h>
#include <stdexcept>

namespace vtpmd::test {

namespace {
using Context = std::unique_ptr<EVP_MD_CTX, decltype(&EVP_MD_CTX_free)>;

EVP_PKEY* generate(const std::string& type, unsigned bits) {
    return type == "RSA" ? EVP_PKEY_Q_keygen(nullptr, nullptr, "RSA", static_cast<std::size_t>(bits))
                         : EVP_PKEY_Q_keygen(nullptr, nullptr, "EC", "P-256");
}
} // namespace

OpensslKey::OpensslKey(const std::string& type, unsigned bits)
    : key_(generate(type, bits), &EVP_PKEY_free) {
    if (!key_) {
        throw std::runtime_error("OpenSSL makes no key");
    }
}

Bytes OpensslKey::spki() const {
    unsigned char* raw = nullptr;
    const int size = i2d_PUBKEY(key_.get(), &raw);
    if (size <= 0) {
        throw std::runtime_error("OpenSSL encodes no key");
    }
    Bytes out = to_bytes(view_of(raw, static_cast<std::size_t>(size)));
    OPENSSL_free(raw);
    return out;
}

Bytes OpensslKey::sign_sha256(ByteView message) const {
    const Context context(EVP_MD_CTX_new(), &EVP_MD_CTX_free);
    std::size_t size = 0;
    if (EVP_DigestSignInit(context.get(), nullptr, EVP_sha256(), nullptr, key_.get()) != 1 ||
        EVP_DigestSign(context.get(), nullptr, &size, uchar_ptr(message), message.size()) != 1) {
        throw std::runtime_error("OpenSSL does not sign");
    }
    Bytes out(size);
    if (EVP_DigestSign(context.get(), uchar_ptr(MutByteView(out)), &size, uchar_ptr(message), message.size()) != 1) {
        throw std::runtime_error("OpenSSL does not sign");
    }
    out.resize(size);
    return out;
}

bool verify_sha1(ByteView spki, ByteView message, ByteView signature) {
    const unsigned char* at = uchar_ptr(spki);
    const std::unique_ptr<EVP_PKEY, decltype(&EVP_PKEY_free)> key(
        d2i_PUBKEY(nullptr, &at, static_cast<long>(spki.size())), &EVP_PKEY_free);
    const Context context(EVP_MD_CTX_new(), &EVP_MD_CTX_free);
    return key && EVP_DigestVerifyInit(context.get(), nullptr, EVP_sha1(), nullptr, key.get()) == 1 &&
           EVP_DigestVerify(context.get(), uchar_ptr(signature), signature.size(), uchar_ptr(message),
                            message.size()) == 1;
}

} // namespace vtpmd::test
