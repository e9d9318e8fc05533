#include "manager/crypto.hpp"

#include <cstdlib>
#include <memory>
#include <openssl/evp.h>
#include <openssl/hmac.h>
#include <sys/random.h>

namespace vtpmd::manager {

namespace {

constexpr std::size_t nonce_size = 12;
constexpr std::size_t tag_size = 16;
static_assert(nonce_size + tag_size == box_overhead);

struct FreeCipher {
    void operator()(EVP_CIPHER_CTX* c) const noexcept { EVP_CIPHER_CTX_free(c); }
};
using Cipher = std::unique_ptr<EVP_CIPHER_CTX, FreeCipher>;

int int_size(ByteView v) { return static_cast<int>(v.size()); }

/// OpenSSL failing at what cannot fail but for want of memory.
Error openssl_error(std::string_view what) { return make_error(Errc::unavailable, "OpenSSL: {} failed", what); }

/// 32 bytes never come short (getrandom(2): up to 256 are not interrupted once the pool is ready).
void kernel_random(MutByteView into) {
    if (::getrandom(into.data(), into.size(), 0) != static_cast<ssize_t>(into.size())) {
        std::abort(); // a key must never be anything but random
    }
}

} // namespace

Result<Bytes> close_box(const SecretBytes& key, ByteView aad, ByteView plaintext) {
    Bytes box(nonce_size + plaintext.size() + tag_size);
    MutByteView all(box);
    kernel_random(all.first(nonce_size));
    Cipher c(EVP_CIPHER_CTX_new());
    int n = 0;
    bool ok = c && key.size() == key_size &&
              EVP_EncryptInit_ex2(c.get(), EVP_aes_256_gcm(), uchar_ptr(key.view()), uchar_ptr(all), nullptr) == 1 &&
              EVP_EncryptUpdate(c.get(), nullptr, &n, uchar_ptr(aad), int_size(aad)) == 1 &&
              EVP_EncryptUpdate(c.get(), uchar_ptr(all.subspan(nonce_size)), &n, uchar_ptr(plaintext),
                                int_size(plaintext)) == 1 &&
              EVP_EncryptFinal_ex(c.get(), uchar_ptr(all.last(tag_size)), &n) == 1 &&
              EVP_CIPHER_CTX_ctrl(c.get(), EVP_CTRL_AEAD_GET_TAG, tag_size, all.last(tag_size).data()) == 1;
    if (!ok) {
        return openssl_error("encryption");
    }
    return box;
}

Result<SecretBytes> open_box(const SecretBytes& key, ByteView aad, ByteView box) {
    if (box.size() < box_overhead) {
        return make_error(Errc::corrupt, "a box of {} bytes is too short", box.size());
    }
    ByteView body = box.subspan(nonce_size, box.size() - box_overhead);
    Bytes tag = to_bytes(box.last(tag_size)); // OpenSSL wants it writable
    SecretBytes out(body.size());
    Cipher c(EVP_CIPHER_CTX_new());
    int n = 0;
    bool ready = c && key.size() == key_size &&
                 EVP_DecryptInit_ex2(c.get(), EVP_aes_256_gcm(), uchar_ptr(key.view()), uchar_ptr(box), nullptr) == 1 &&
                 EVP_CIPHER_CTX_ctrl(c.get(), EVP_CTRL_AEAD_SET_TAG, tag_size, tag.data()) == 1;
    if (!ready) {
        return openssl_error("decryption");
    }
    std::array<std::byte, tag_size> end{};
    bool ok = EVP_DecryptUpdate(c.get(), nullptr, &n, uchar_ptr(aad), int_size(aad)) == 1 &&
              EVP_DecryptUpdate(c.get(), uchar_ptr(out.mut()), &n, uchar_ptr(body), int_size(body)) == 1 &&
              EVP_DecryptFinal_ex(c.get(), uchar_ptr(MutByteView(end)), &n) == 1;
    if (!ok) {
        return make_error(Errc::corrupt, "does not authenticate");
    }
    return out;
}

SecretBytes derive_key(const SecretBytes& key, std::string_view label, ByteView context) {
    Bytes input = to_bytes(as_bytes(label));
    input.insert(input.end(), context.begin(), context.end());
    SecretBytes out(key_size);
    unsigned n = 0;
    if (HMAC(EVP_sha256(), key.data(), static_cast<int>(key.size()), uchar_ptr(ByteView(input)), input.size(),
             uchar_ptr(out.mut()), &n) == nullptr ||
        n != key_size) {
        std::abort(); // no memory: there is no going on without keys
    }
    return out;
}

SecretBytes mix_key(ByteView from_tpm) { return derive_key(random_key(), "vtpmd new key", from_tpm); }

SecretBytes random_key() {
    SecretBytes out(key_size);
    kernel_random(out.mut());
    return out;
}

} // namespace vtpmd::manager
