// Cursors over wire data. The byte order is in the method's name; the first failure sticks, so a codec reads all its
// fields and asks once. No struct is ever laid over received bytes.
#pragma once

#include "util/bytes.hpp"

#include <algorithm>
#include <array>
#include <concepts>

namespace vtpmd {

/// Reads from a view that must outlive the reader. After a failure every read gives zeros and ok() is false.
class WireReader {
  public:
    explicit WireReader(ByteView data) noexcept
        : data_(data) {}

    std::uint8_t u8() noexcept { return static_cast<std::uint8_t>(number<1, true>()); }
    std::uint16_t be16() noexcept { return static_cast<std::uint16_t>(number<2, true>()); }
    std::uint32_t be32() noexcept { return static_cast<std::uint32_t>(number<4, true>()); }
    std::uint64_t be64() noexcept { return number<8, true>(); }
    std::uint16_t le16() noexcept { return static_cast<std::uint16_t>(number<2, false>()); }
    std::uint32_t le32() noexcept { return static_cast<std::uint32_t>(number<4, false>()); }
    std::uint64_t le64() noexcept { return number<8, false>(); }

    /// The next n bytes as a view into the data; empty after a failure.
    ByteView bytes(std::size_t n) noexcept {
        if (!ok_ || n > data_.size() - at_) {
            ok_ = false;
            return {};
        }
        ByteView v = data_.subspan(at_, n);
        at_ += n;
        return v;
    }
    template <std::size_t N>
    std::array<std::byte, N> array() noexcept {
        std::array<std::byte, N> out{};
        ByteView v = bytes(N);
        std::copy(v.begin(), v.end(), out.begin());
        return out;
    }
    /// All that is left.
    ByteView rest() noexcept { return bytes(data_.size() - at_); }
    void skip(std::size_t n) noexcept { (void)bytes(n); }

    [[nodiscard]] std::size_t remaining() const noexcept { return data_.size() - at_; }
    [[nodiscard]] std::size_t position() const noexcept { return at_; }
    [[nodiscard]] bool ok() const noexcept { return ok_; }
    /// True if everything read was there and nothing is left over.
    [[nodiscard]] bool expect_end() const noexcept { return ok_ && at_ == data_.size(); }
    void fail() noexcept { ok_ = false; }

  private:
    template <std::size_t N, bool BigEndian>
    std::uint64_t number() noexcept {
        ByteView v = bytes(N);
        std::uint64_t out = 0;
        for (std::size_t i = 0; i < v.size(); ++i) {
            std::size_t shift = 8 * (BigEndian ? N - 1 - i : i);
            out |= std::to_integer<std::uint64_t>(v[i]) << shift;
        }
        return out;
    }

    ByteView data_;
    std::size_t at_ = 0;
    bool ok_ = true;
};

/// Appends to a byte vector (Bytes, or SecretBytes' builder: anything with insert-at-end through push()).
class WireWriter {
  public:
    WireWriter() = default;
    explicit WireWriter(std::size_t reserve) { out_.reserve(reserve); }

    WireWriter& u8(std::uint8_t v) { return number<1, true>(v); }
    WireWriter& be16(std::uint16_t v) { return number<2, true>(v); }
    WireWriter& be32(std::uint32_t v) { return number<4, true>(v); }
    WireWriter& be64(std::uint64_t v) { return number<8, true>(v); }
    WireWriter& le16(std::uint16_t v) { return number<2, false>(v); }
    WireWriter& le32(std::uint32_t v) { return number<4, false>(v); }
    WireWriter& le64(std::uint64_t v) { return number<8, false>(v); }
    WireWriter& bytes(ByteView v) {
        out_.insert(out_.end(), v.begin(), v.end());
        return *this;
    }
    WireWriter& zeros(std::size_t n) {
        out_.resize(out_.size() + n);
        return *this;
    }
    /// Overwrites a big-endian u32 written earlier, such as a size that was not known yet.
    void patch_be32(std::size_t at, std::uint32_t v) {
        for (std::size_t i = 0; i < 4; ++i) {
            out_.at(at + i) = static_cast<std::byte>(v >> (24 - 8 * i));
        }
    }
    [[nodiscard]] std::size_t size() const noexcept { return out_.size(); }
    [[nodiscard]] ByteView view() const noexcept { return out_; }
    [[nodiscard]] Bytes take() noexcept { return std::move(out_); }

  private:
    template <std::size_t N, bool BigEndian>
    WireWriter& number(std::uint64_t v) {
        for (std::size_t i = 0; i < N; ++i) {
            std::size_t shift = 8 * (BigEndian ? N - 1 - i : i);
            out_.push_back(static_cast<std::byte>(v >> shift));
        }
        return *this;
    }

    Bytes out_;
};

} // namespace vtpmd
