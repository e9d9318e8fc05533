// Key material and TPM state in memory. Move-only, cleansed over its whole capacity when it goes, compared in constant
// time, not printable (no operator<<, no fmt formatter). Small secrets live in OpenSSL's secure heap: locked against
// swap, left out of core dumps, between guard pages.
#pragma once

#include "util/bytes.hpp"

#include <cstddef>

namespace vtpmd {

class SecretBytes {
  public:
    SecretBytes() noexcept = default;
    /// n zero bytes.
    explicit SecretBytes(std::size_t n);
    explicit SecretBytes(ByteView copy_of);
    SecretBytes(SecretBytes&& other) noexcept;
    SecretBytes& operator=(SecretBytes&& other) noexcept;
    SecretBytes(const SecretBytes&) = delete;
    SecretBytes& operator=(const SecretBytes&) = delete;
    ~SecretBytes();

    [[nodiscard]] SecretBytes clone() const { return SecretBytes(view()); }
    [[nodiscard]] std::byte* data() noexcept { return data_; }
    [[nodiscard]] const std::byte* data() const noexcept { return data_; }
    [[nodiscard]] std::size_t size() const noexcept { return size_; }
    [[nodiscard]] bool empty() const noexcept { return size_ == 0; }
    [[nodiscard]] ByteView view() const noexcept { return {data_, size_}; }
    [[nodiscard]] MutByteView mut() noexcept { return {data_, size_}; }
    /// Constant time for equal sizes.
    [[nodiscard]] bool equals(ByteView other) const noexcept;
    /// Cleanses and empties.
    void clear() noexcept;

  private:
    std::byte* data_ = nullptr;
    std::size_t size_ = 0;
    bool secure_ = false;
};

/// Cleanses bytes that a C interface left behind.
void cleanse(MutByteView bytes) noexcept;

/// Once, early in main: sets up the secure heap (arena_size bytes, a power of two), forbids core dumps and ptrace.
/// Returns false if memory could not be locked (RLIMIT_MEMLOCK); secrets are then cleansed but may be swapped.
bool protect_process_secrets(std::size_t arena_size) noexcept;

} // namespace vtpmd
