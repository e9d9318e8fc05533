#include "store/journal_format.hpp"

#include <algorithm>

namespace vtpmd::store::journal {

namespace {

constexpr std::string_view half_magic = "VTPMHALF";
constexpr std::string_view label = "vtpmd journal 1";
constexpr std::string_view end_text = "vtpmd frame end.";
constexpr std::uint32_t frame_magic = 0x56545046;
constexpr std::size_t check_offset = 48;
constexpr std::size_t check_size = 16;
static_assert(end_text.size() == end_mark_size);

Position first_position(ByteView key, const Uuid& uuid, std::uint64_t generation, ByteView salt, ByteView sector) {
    WireWriter w;
    w.be64(generation);
    Position at;
    at.generation = generation;
    at.key = hmac_sha256(key, {as_bytes(label), uuid.bytes, w.view(), salt});
    at.chain = sha256({as_bytes(label), uuid.bytes, sector});
    return at;
}

struct Header {
    bool whole = false; ///< its check fits
    FrameType type{};
    std::uint64_t generation = 0;
    std::uint64_t sequence = 0;
    std::uint32_t extent = 0;
    Nonce nonce{};
};

Header parse_header(ByteView bytes) {
    Header h;
    WireReader r(bytes);
    const std::uint32_t magic = r.be32();
    h.type = static_cast<FrameType>(r.be32());
    h.generation = r.be64();
    h.sequence = r.be64();
    h.extent = r.be32();
    h.nonce = r.array<aead_nonce_size>();
    const Digest check = sha256({bytes.first(check_offset)});
    h.whole = magic == frame_magic &&
              std::ranges::equal(bytes.subspan(check_offset, check_size), ByteView(check).first(check_size));
    return h;
}

Digest next_chain(const Digest& chain, ByteView frame) {
    return sha256({chain, frame.first(frame.size() - end_mark_size)});
}

Bytes frame_aad(const Uuid& uuid, ByteView header, const Digest& chain) {
    WireWriter w(uuid.bytes.size() + header_size + digest_size);
    w.bytes(uuid.bytes).bytes(header).bytes(chain);
    return w.take();
}

bool sector_torn(ByteView sector) { return all_zero(sector.last(end_mark_size)); }

bool any_sector_torn(ByteView extent) {
    for (std::size_t at = 0; at < extent.size(); at += sector_size) {
        if (sector_torn(extent.subspan(at, sector_size))) {
            return true;
        }
    }
    return false;
}

/// Reads one half frame by frame.
class Reader {
  public:
    Reader(ByteView bytes, const Uuid& uuid)
        : bytes_(bytes)
        , uuid_(uuid) {}

    Half read(ByteView key) {
        const ByteView sector = bytes_.first(sector_size);
        if (all_zero(sector)) {
            return std::move(half_);
        }
        WireReader r(sector);
        const ByteView magic = r.bytes(half_magic.size());
        half_.generation = r.be64();
        const ByteView salt = r.bytes(32);
        const Digest digest = sha256({sector.first(sector_size - digest_size)});
        if (!std::ranges::equal(magic, as_bytes(half_magic)) || !std::ranges::equal(digest, sector.last(digest_size))) {
            half_.state = Half::State::unreadable;
            return std::move(half_);
        }
        half_.state = Half::State::incomplete;
        half_.next = first_position(key, uuid_, half_.generation, salt, sector);
        while (next_frame()) {
        }
        if (half_.state != Half::State::complete) {
            half_.frames.clear();
        }
        half_.last_frame = to_bytes(last_);
        return std::move(half_);
    }

  private:
    /// False at the end, whatever kind of end it is.
    bool next_frame() {
        const std::size_t at = half_.next.offset;
        if (at >= bytes_.size()) {
            return false;
        }
        const ByteView rest = bytes_.subspan(at);
        if (all_zero(rest.first(header_size))) {
            return end_at(extent_limit, "something is written after the last frame");
        }
        const Header h = parse_header(rest.first(header_size));
        if (!h.whole) {
            if (!sector_torn(rest.first(sector_size))) {
                return damaged(at, "a frame's header is damaged");
            }
            return end_at(extent_limit, "a torn frame is not the last one");
        }
        if (h.generation != half_.generation || h.sequence != half_.next.sequence || h.extent < sector_size ||
            h.extent % sector_size != 0 || h.extent > extent_limit || h.extent > rest.size()) {
            return damaged(at, "a frame's header is not the one that belongs here");
        }
        const ByteView frame = rest.first(h.extent);
        const ByteView sealed = frame.subspan(header_size, h.extent - header_size - end_mark_size);
        auto plain = aead_open(half_.next.key.view(), h.nonce,
                               frame_aad(uuid_, frame.first(header_size), half_.next.chain), sealed);
        if (!plain) {
            if (!any_sector_torn(frame)) {
                return damaged(at, "a frame does not authenticate (damaged, or the key is not this journal's)");
            }
            return end_at(h.extent, "a torn frame is not the last one");
        }
        return take(h, frame, std::move(*plain));
    }

    bool take(const Header& h, ByteView frame, SecretBytes plain) {
        const std::size_t at = half_.next.offset;
        const bool in_checkpoint = half_.state == Half::State::incomplete;
        if (in_checkpoint == (h.type == FrameType::batch) || h.type > FrameType::batch) {
            return damaged(at, "a frame is of a type that cannot be here");
        }
        if (h.type == FrameType::end && !end_fits(plain)) {
            return damaged(at, "the checkpoint's end does not fit its records");
        }
        if (!std::ranges::equal(frame.last(end_mark_size), end_mark())) {
            half_.broken_marks.push_back(at + h.extent - end_mark_size);
        }
        last_ = frame;
        half_.last_offset = at;
        half_.next.chain = next_chain(half_.next.chain, frame);
        half_.next.offset += h.extent;
        ++half_.next.sequence;
        if (h.type == FrameType::end) {
            half_.state = Half::State::complete;
            half_.checkpoint_bytes = half_.next.offset;
            return true;
        }
        WireReader r(plain.view());
        checkpoint_records_ += in_checkpoint ? r.be32() : 0;
        half_.frames.push_back(std::move(plain));
        return true;
    }

    [[nodiscard]] bool end_fits(const SecretBytes& plain) const {
        WireReader r(plain.view());
        const std::uint32_t count = r.be32();
        const std::uint32_t size = r.be32();
        return count == 1 && size == 8 && r.be64() == checkpoint_records_ && r.ok();
    }

    /// No whole frame begins at `next`. In a checkpoint that means it was cut short. After it, what is not zero must lie
    /// within `reach` of one torn frame.
    bool end_at(std::size_t reach, const char* otherwise) {
        if (half_.state != Half::State::complete) {
            return false;
        }
        const ByteView rest = bytes_.subspan(half_.next.offset);
        reach = std::min(reach, rest.size());
        const ByteView beyond = rest.subspan(reach);
        if (!all_zero(beyond)) {
            const auto stray = std::ranges::find_if(beyond, [](std::byte b) { return b != std::byte{0}; });
            return damaged(half_.next.offset + reach + static_cast<std::size_t>(stray - beyond.begin()), otherwise);
        }
        if (!all_zero(rest.first(reach))) {
            half_.torn_end = half_.next.offset + reach;
        }
        return false;
    }

    bool damaged(std::size_t offset, const char* what) {
        half_.state = Half::State::damaged;
        half_.damage_offset = offset;
        half_.damage = what;
        return false;
    }

    ByteView bytes_;
    const Uuid& uuid_;

    Half half_;
    ByteView last_;
    std::uint64_t checkpoint_records_ = 0;
};

} // namespace

ByteView end_mark() { return as_bytes(end_text); }

void Body::add(ByteView record) {
    const auto size = static_cast<std::uint32_t>(record.size());
    if (bytes_.capacity() < bytes_.size() + 4 + record.size()) {
        // Grown by hand, so that the old memory can be cleansed.
        Bytes larger;
        larger.reserve(std::max(2 * bytes_.capacity(), bytes_.size() + 4 + record.size()));
        larger.assign(bytes_.begin(), bytes_.end());
        cleanse(bytes_);
        bytes_ = std::move(larger);
    }
    for (unsigned shift : {24U, 16U, 8U, 0U}) {
        bytes_.push_back(static_cast<std::byte>(size >> shift));
    }
    bytes_.insert(bytes_.end(), record.begin(), record.end());
    ++count_;
    for (unsigned i = 0; i < 4; ++i) {
        bytes_[i] = static_cast<std::byte>(count_ >> (24 - 8 * i));
    }
}

std::size_t Body::extent() const {
    return (bytes_.size() + frame_overhead + sector_size - 1) / sector_size * sector_size;
}

Beginning begin_half(ByteView key, const Uuid& uuid, std::uint64_t generation) {
    std::array<std::byte, 32> salt{};
    fill_random(salt);
    WireWriter w(sector_size);
    w.bytes(as_bytes(half_magic)).be64(generation).bytes(salt);
    w.zeros(sector_size - digest_size - w.size());
    w.bytes(sha256({w.view()}));
    Beginning out;
    out.sector = w.take();
    out.position = first_position(key, uuid, generation, salt, out.sector);
    return out;
}

Bytes encode_frame(const Uuid& uuid, Position& at, FrameType type, const Body& body) {
    const std::size_t extent = body.extent();
    const Nonce nonce = random_nonce();
    WireWriter w(extent);
    w.be32(frame_magic).be32(static_cast<std::uint32_t>(type)).be64(at.generation).be64(at.sequence);
    w.be32(static_cast<std::uint32_t>(extent)).bytes(nonce);
    w.zeros(check_offset - w.size());
    const Digest check = sha256({w.view()});
    w.bytes(ByteView(check).first(check_size));
    Bytes frame = w.take();
    frame.resize(extent);

    SecretBytes plain(extent - frame_overhead);
    std::ranges::copy(body.bytes(), plain.data());
    const MutByteView bytes(frame);
    aead_seal(at.key.view(), nonce, frame_aad(uuid, bytes.first(header_size), at.chain), plain.view(),
              bytes.subspan(header_size, extent - header_size - end_mark_size));
    std::ranges::copy(end_mark(), bytes.last(end_mark_size).begin());

    at.chain = next_chain(at.chain, frame);
    at.offset += extent;
    ++at.sequence;
    return frame;
}

Half read_half(ByteView bytes, ByteView key, const Uuid& uuid) { return Reader(bytes, uuid).read(key); }

} // namespace vtpmd::store::journal
