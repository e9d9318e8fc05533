#include "util/secret_bytes.hpp"

#include <algorithm>
#include <cstring>
#include <new>
#include <openssl/crypto.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <utility>

namespace vtpmd {

namespace {
/// Larger secrets (TPM state) are cleansed but do not fill the small locked heap.
constexpr std::size_t secure_limit = 1024;
} // namespace

SecretBytes::SecretBytes(std::size_t n)
    : size_(n) {
    if (n == 0) {
        return;
    }
    if (n <= secure_limit && CRYPTO_secure_malloc_initialized() == 1) {
        data_ = static_cast<std::byte*>(OPENSSL_secure_zalloc(n));
        secure_ = data_ != nullptr;
    }
    if (data_ == nullptr) {
        data_ = static_cast<std::byte*>(OPENSSL_zalloc(n));
    }
    if (data_ == nullptr) {
        throw std::bad_alloc();
    }
}

SecretBytes::SecretBytes(ByteView copy_of)
    : SecretBytes(copy_of.size()) {
    std::copy(copy_of.begin(), copy_of.end(), data_);
}

SecretBytes::SecretBytes(SecretBytes&& other) noexcept
    : data_(std::exchange(other.data_, nullptr))
    , size_(std::exchange(other.size_, 0))
    , secure_(std::exchange(other.secure_, false)) {}

SecretBytes& SecretBytes::operator=(SecretBytes&& other) noexcept {
    if (this != &other) {
        clear();
        data_ = std::exchange(other.data_, nullptr);
        size_ = std::exchange(other.size_, 0);
        secure_ = std::exchange(other.secure_, false);
    }
    return *this;
}

SecretBytes::~SecretBytes() { clear(); }

bool SecretBytes::equals(ByteView other) const noexcept {
    return size_ == other.size() && (size_ == 0 || CRYPTO_memcmp(data_, other.data(), size_) == 0);
}

void SecretBytes::clear() noexcept {
    if (data_ != nullptr) {
        if (secure_) {
            OPENSSL_secure_clear_free(data_, size_);
        } else {
            OPENSSL_clear_free(data_, size_);
        }
    }
    data_ = nullptr;
    size_ = 0;
    secure_ = false;
}

void cleanse(MutByteView bytes) noexcept { OPENSSL_cleanse(bytes.data(), bytes.size()); }

bool protect_process_secrets(std::size_t arena_size) noexcept {
    const rlimit none{0, 0};
    (void)setrlimit(RLIMIT_CORE, &none);
    (void)prctl(PR_SET_DUMPABLE, 0, 0, 0, 0);
    return CRYPTO_secure_malloc_init(arena_size, 32) == 1;
}

} // namespace vtpmd
