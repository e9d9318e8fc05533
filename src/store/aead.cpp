#include "store/aead.hpp"

#include "util/free_by.hpp"
#include "util/openssl_ptr.hpp"

#include <cstring>
#include <limits>
#include <openssl/core_names.h>
#include <openssl/evp.h>
#include <openssl/rand.h>
#include <stdexcept>

namespace vtpmd::store {

namespace {

void require(bool ok, const char* what) {
    if (!ok) {
        throw std::runtime_error(std::string("OpenSSL: ") + what + " failed");
    }
}

int as_int(std::size_t n) {
    require(n <= static_cast<std::size_t>(std::numeric_limits<int>::max()), "size check");
    return static_cast<int>(n);
}

} // namespace

void aead_seal(ByteView key, const Nonce& nonce, ByteView aad, ByteView plaintext, MutByteView out) {
    require(key.size() == aead_key_size && out.size() == plaintext.size() + aead_tag_size, "size check");
    const CipherContext c(EVP_CIPHER_CTX_new());
    require(c != nullptr, "EVP_CIPHER_CTX_new");
    int n = 0;
    require(EVP_EncryptInit_ex2(c.get(), EVP_aes_256_gcm(), uchar_ptr(key), uchar_ptr(ByteView(nonce)), nullptr) == 1,
            "AES-256-GCM");
    require(EVP_EncryptUpdate(c.get(), nullptr, &n, uchar_ptr(aad), as_int(aad.size())) == 1, "AES-256-GCM");
    require(EVP_EncryptUpdate(c.get(), uchar_ptr(out), &n, uchar_ptr(plaintext), as_int(plaintext.size())) == 1,
            "AES-256-GCM");
    require(EVP_EncryptFinal_ex(c.get(), uchar_ptr(out) + n, &n) == 1, "AES-256-GCM");
    require(
        EVP_CIPHER_CTX_ctrl(c.get(), EVP_CTRL_AEAD_GET_TAG, as_int(aead_tag_size), out.last(aead_tag_size).data()) == 1,
        "AES-256-GCM");
}

Bytes aead_seal(ByteView key, const Nonce& nonce, ByteView aad, ByteView plaintext) {
    Bytes out(plaintext.size() + aead_tag_size);
    aead_seal(key, nonce, aad, plaintext, out);
    return out;
}

Result<SecretBytes> aead_open(ByteView key, const Nonce& nonce, ByteView aad, ByteView sealed) {
    require(key.size() == aead_key_size, "size check");
    if (sealed.size() < aead_tag_size) {
        return make_error(Errc::corrupt, "too short to be authentic");
    }
    const ByteView ciphertext = sealed.first(sealed.size() - aead_tag_size);
    Bytes tag = to_bytes(sealed.last(aead_tag_size));
    SecretBytes plain(ciphertext.size());
    const CipherContext c(EVP_CIPHER_CTX_new());
    require(c != nullptr, "EVP_CIPHER_CTX_new");
    int n = 0;
    require(EVP_DecryptInit_ex2(c.get(), EVP_aes_256_gcm(), uchar_ptr(key), uchar_ptr(ByteView(nonce)), nullptr) == 1,
            "AES-256-GCM");
    require(EVP_DecryptUpdate(c.get(), nullptr, &n, uchar_ptr(aad), as_int(aad.size())) == 1, "AES-256-GCM");
    unsigned char nothing = 0;
    unsigned char* to = plain.empty() ? &nothing : uchar_ptr(plain.mut());
    require(EVP_DecryptUpdate(c.get(), to, &n, uchar_ptr(ciphertext), as_int(ciphertext.size())) == 1, "AES-256-GCM");
    require(EVP_CIPHER_CTX_ctrl(c.get(), EVP_CTRL_AEAD_SET_TAG, as_int(tag.size()), tag.data()) == 1, "AES-256-GCM");
    if (EVP_DecryptFinal_ex(c.get(), to + n, &n) != 1) {
        return make_error(Errc::corrupt, "does not authenticate");
    }
    return plain;
}

Sha256::Sha256()
    : context_(EVP_MD_CTX_new()) {
    require(context_ != nullptr && EVP_DigestInit_ex2(context_, EVP_sha256(), nullptr) == 1, "SHA-256");
}

Sha256::~Sha256() { EVP_MD_CTX_free(context_); }

Sha256& Sha256::update(ByteView piece) {
    require(EVP_DigestUpdate(context_, piece.data(), piece.size()) == 1, "SHA-256");
    return *this;
}

Digest Sha256::finish() {
    Digest out{};
    unsigned n = 0;
    require(EVP_DigestFinal_ex(context_, uchar_ptr(MutByteView(out)), &n) == 1 && n == out.size(), "SHA-256");
    return out;
}

Digest sha256(std::initializer_list<ByteView> pieces) {
    Sha256 hash;
    for (ByteView p : pieces) {
        hash.update(p);
    }
    return hash.finish();
}

SecretBytes hmac_sha256(ByteView key, std::initializer_list<ByteView> pieces) {
    const std::unique_ptr<EVP_MAC, FreeBy<EVP_MAC_free>> mac(EVP_MAC_fetch(nullptr, "HMAC", nullptr));
    require(mac != nullptr, "HMAC");
    const std::unique_ptr<EVP_MAC_CTX, FreeBy<EVP_MAC_CTX_free>> c(EVP_MAC_CTX_new(mac.get()));
    require(c != nullptr, "HMAC");
    char name[] = "SHA256";
    const OSSL_PARAM parameters[] = {OSSL_PARAM_construct_utf8_string(OSSL_MAC_PARAM_DIGEST, name, 0),
                                     OSSL_PARAM_construct_end()};
    require(EVP_MAC_init(c.get(), uchar_ptr(key), key.size(), parameters) == 1, "HMAC");
    for (ByteView p : pieces) {
        require(EVP_MAC_update(c.get(), uchar_ptr(p), p.size()) == 1, "HMAC");
    }
    SecretBytes out(digest_size);
    std::size_t n = 0;
    require(EVP_MAC_final(c.get(), uchar_ptr(out.mut()), &n, out.size()) == 1 && n == out.size(), "HMAC");
    return out;
}

void fill_random(MutByteView out) {
    require(RAND_priv_bytes(uchar_ptr(out), as_int(out.size())) == 1, "RAND_priv_bytes");
}

SecretBytes random_key() {
    SecretBytes key(aead_key_size);
    fill_random(key.mut());
    return key;
}

Nonce random_nonce() {
    Nonce nonce{};
    fill_random(nonce);
    return nonce;
}

bool all_zero(ByteView bytes) noexcept {
    // Each byte is the one before it, and the first is zero. A start reads megabytes of zeros.
    return bytes.empty() ||
           (bytes.front() == std::byte{0} && std::memcmp(bytes.data(), bytes.data() + 1, bytes.size() - 1) == 0);
}

} // namespace vtpmd::store
