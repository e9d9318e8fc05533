#include "openssl_key.hpp"

#include "util/openssl_ptr.hpp"

#include <openssl/pem.h>
#include <openssl/x509.h>
#include <stdexcept>

namespace vtpmd::test {

namespace {

EVP_PKEY* generate(const std::string& type, unsigned bits) {
    return type == "RSA" ? EVP_PKEY_Q_keygen(nullptr, nullptr, "RSA", static_cast<std::size_t>(bits))
                         : EVP_PKEY_Q_keygen(nullptr, nullptr, "EC", "P-256");
}

Bytes sign(EVP_PKEY* key, const EVP_MD* digest, ByteView message) {
    const DigestContext context(EVP_MD_CTX_new());
    std::size_t size = 0;
    if (EVP_DigestSignInit(context.get(), nullptr, digest, nullptr, key) != 1 ||
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
} // namespace

OpensslKey::OpensslKey(const std::string& type, unsigned bits)
    : key_(generate(type, bits)) {
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

Bytes OpensslKey::sign_sha256(ByteView message) const { return sign(key_.get(), EVP_sha256(), message); }
Bytes OpensslKey::sign_sha1(ByteView message) const { return sign(key_.get(), EVP_sha1(), message); }

Bytes OpensslKey::derive(ByteView peer_spki) const {
    const unsigned char* at = uchar_ptr(peer_spki);
    const hwtpm::Pkey peer(d2i_PUBKEY(nullptr, &at, static_cast<long>(peer_spki.size())));
    const KeyContext context(EVP_PKEY_CTX_new(key_.get(), nullptr));
    Bytes out(32);
    std::size_t size = out.size();
    if (EVP_PKEY_derive_init(context.get()) != 1 || EVP_PKEY_derive_set_peer(context.get(), peer.get()) != 1 ||
        EVP_PKEY_derive(context.get(), uchar_ptr(MutByteView(out)), &size) != 1 || size != out.size()) {
        throw std::runtime_error("OpenSSL does not derive");
    }
    return out;
}

void OpensslKey::write_private(const std::string& path) const {
    const Bio out(BIO_new_file(path.c_str(), "w"));
    if (!out || PEM_write_bio_PrivateKey(out.get(), key_.get(), nullptr, nullptr, 0, nullptr, nullptr) != 1) {
        throw std::runtime_error("OpenSSL writes no key");
    }
}

bool verify_sha1(ByteView spki, ByteView message, ByteView signature) {
    const unsigned char* at = uchar_ptr(spki);
    const hwtpm::Pkey key(d2i_PUBKEY(nullptr, &at, static_cast<long>(spki.size())));
    const DigestContext context(EVP_MD_CTX_new());
    return key && EVP_DigestVerifyInit(context.get(), nullptr, EVP_sha1(), nullptr, key.get()) == 1 &&
           EVP_DigestVerify(context.get(), uchar_ptr(signature), signature.size(), uchar_ptr(message),
                            message.size()) == 1;
}

} // namespace vtpmd::test
