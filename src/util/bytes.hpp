// Names for runs of bytes. Ownership is std::vector<std::byte>; views are spans; secrets are SecretBytes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace vtpmd {

using Bytes = std::vector<std::byte>;
using ByteView = std::span<const std::byte>;
using MutByteView = std::span<std::byte>;

/// The bytes of a string, for labels and text that goes over a wire.
inline ByteView as_bytes(std::string_view s) noexcept {
    return std::as_bytes(std::span<const char>(s.data(), s.size()));
}
inline Bytes to_bytes(ByteView v) { return Bytes(v.begin(), v.end()); }

/// For C interfaces that take unsigned char*.
inline const unsigned char* uchar_ptr(ByteView v) noexcept { return reinterpret_cast<const unsigned char*>(v.data()); }
inline unsigned char* uchar_ptr(MutByteView v) noexcept { return reinterpret_cast<unsigned char*>(v.data()); }
inline ByteView view_of(const void* p, std::size_t n) noexcept { return {static_cast<const std::byte*>(p), n}; }

} // namespace vtpmd
