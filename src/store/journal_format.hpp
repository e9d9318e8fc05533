// Layout of one half of the manager's journal, format version 1, and what a half that was read back holds. Pure.
//
// A half is all zeros before it is used. All numbers are big-endian.
//
//   sector 0, the half's header:
//      0  "VTPMHALF"
//      8  u64 generation: the half with the higher one is the newer
//     16  salt[32]: the half's key is HMAC-SHA-256(journal key, "vtpmd journal 1" || uuid || u64 generation || salt)
//     48  zeros
//    480  SHA-256 of the 480 bytes before it
//   from 512: frames, each a multiple of 512 bytes (its extent):
//      0  "VTPF"
//      4  u32 type: 1 part of the checkpoint, 2 end of the checkpoint, 3 batch
//      8  u64 generation
//     16  u64 sequence number of the frame in this half, from 0
//     24  u32 extent
//     28  nonce[12], random
//     40  zeros
//     48  check[16]: the first bytes of SHA-256 of the 48 before it
//     64  AES-256-GCM ciphertext of { u32 count, count times { u32 size, record }, zeros }, then its tag[16]
//   -16  "vtpmd frame end."
//
// A frame's AAD is uuid || its header[64] || chain[32]; the chain starts with SHA-256("vtpmd journal 1" || uuid || sector 0)
// and goes on with SHA-256(chain || the frame without its last 16 bytes). So no frame can be left out, moved or exchanged.
// A checkpoint is parts, then (after a sync) its end, whose one record is the u64 number of records in it. Batches follow;
// one is in flight at a time. What was acknowledged is whole; power that goes leaves of one write any of its sectors, the
// last of them perhaps cut at any byte. How a torn frame is told from a damaged one:
//   - no whole sector of a frame ends in 16 zero bytes: they are ciphertext, tag or the end mark. A frame that does not
//     authenticate and has a sector that does was never written to its end: it was not acknowledged, it is torn.
//     If it has none it was whole once: it is damaged, and the image is refused.
//   - the end mark is there so that a write cut within its last 16 bytes is a whole frame, and a damaged last byte is not
//     taken for a torn one.
//   - a frame's header is checked by itself, so that a torn or damaged extent is not believed.
//   - after the last frame there are zeros to the end of the half, but for what lies within reach of one torn frame.
#pragma once

#include "store/aead.hpp"
#include "util/uuid.hpp"
#include "util/wire.hpp"

#include <vector>

namespace vtpmd::store::journal {

inline constexpr std::size_t sector_size = 512;
inline constexpr std::size_t header_size = 64;
inline constexpr std::size_t end_mark_size = 16;
inline constexpr std::size_t frame_overhead = header_size + aead_tag_size + end_mark_size;
/// Bytes of a frame's plaintext at most.
inline constexpr std::size_t body_limit = 262'144;
inline constexpr std::size_t extent_limit = (body_limit + frame_overhead + sector_size - 1) / sector_size * sector_size;

enum class FrameType : std::uint32_t { part = 1, end = 2, batch = 3 };

/// Where the next frame goes, and what binds it to all before it.
struct Position {
    std::uint64_t generation = 0;
    std::uint64_t sequence = 0;
    std::size_t offset = sector_size; ///< from the half's start
    Digest chain{};
    SecretBytes key; ///< the half's
};

/// Records on their way into a frame.
class Body {
  public:
    Body() = default;
    Body(Body&&) = default;
    Body& operator=(Body&&) = default;
    Body(const Body&) = delete;
    Body& operator=(const Body&) = delete;
    ~Body() { cleanse(bytes_); }

    void add(ByteView record);
    /// True if a record of `size` bytes can be added.
    [[nodiscard]] bool fits(std::size_t size) const { return bytes_.size() + 4 + size <= body_limit; }
    [[nodiscard]] std::uint32_t count() const { return count_; }
    [[nodiscard]] std::size_t size() const { return bytes_.size(); }
    /// Bytes of the frame that carries it.
    [[nodiscard]] std::size_t extent() const;
    /// { u32 count, records }, as for_each_record() reads it.
    [[nodiscard]] const Bytes& bytes() const { return bytes_; }

  private:
    Bytes bytes_ = Bytes(4); ///< starts with the count
    std::uint32_t count_ = 0;
};

/// Sector 0 of a half, and the position of its first frame.
struct Beginning {
    Bytes sector;
    Position position;
};
[[nodiscard]] Beginning begin_half(ByteView key, const Uuid& uuid, std::uint64_t generation);
/// The frame that goes to `at`, which moves past it.
[[nodiscard]] Bytes encode_frame(const Uuid& uuid, Position& at, FrameType type, const Body& body);

/// What a half holds.
struct Half {
    enum class State {
        blank,      ///< its header is zeros: never used, or given up
        unreadable, ///< its header is neither that nor whole
        incomplete, ///< its checkpoint was cut short by a crash: it was never the valid half
        complete,   ///< its checkpoint is whole; the batches after it are in `frames`
        damaged,    ///< something in it was whole once and is not any more: see `damage`
    };
    State state = State::blank;
    std::uint64_t generation = 0;
    std::vector<SecretBytes> frames; ///< plaintexts, checkpoint and batches, in order (complete only)
    std::uint64_t checkpoint_bytes = 0;
    Position next;                         ///< after the last whole frame
    std::size_t last_offset = 0;           ///< of the last whole frame
    Bytes last_frame;                      ///< as read
    std::size_t torn_end = 0;              ///< [next.offset, torn_end) holds a torn frame that must be zeroed; 0: none
    std::vector<std::size_t> broken_marks; ///< offsets of end marks that must be written again
    std::size_t damage_offset = 0;
    std::string damage;
};
/// `bytes` is the whole half.
[[nodiscard]] Half read_half(ByteView bytes, ByteView key, const Uuid& uuid);
/// The end mark's bytes.
[[nodiscard]] ByteView end_mark();

/// Calls `take` (-> Result<void>) for each record of a frame's plaintext. Errc::corrupt if it is malformed.
template <typename Take>
Result<void> for_each_record(ByteView body, Take&& take) {
    WireReader r(body);
    const std::uint32_t count = r.be32();
    for (std::uint32_t i = 0; i < count && r.ok(); ++i) {
        const std::uint32_t size = r.be32();
        const ByteView record = r.bytes(size);
        if (r.ok()) {
            if (Result<void> taken = take(record); !taken) {
                return taken;
            }
        }
    }
    if (!r.ok()) {
        return make_error(Errc::corrupt, "a frame says {} records and has fewer", count);
    }
    return {};
}

} // namespace vtpmd::store::journal
