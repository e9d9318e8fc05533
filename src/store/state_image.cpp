// Layout of an instance's image, format version 1. All numbers are big-endian.
//
//   0        superblock, two copies of 4096 bytes (superblock.hpp), magic "VTPMDSTA", payload:
//              u32 TPM version (1: 1.2, 2: 2.0), u32 1 once a save was accepted, u64 bytes of a slot's place (capacity);
//              and for each save that is withdrawn (up to 8): hash[32] of its slot, then under its key the hash key[64] that counts
//              instead, tag[16] (nonce 1, AAD "vtpmd withdrawn 1", uuid, u32 TPM version, hash[32])
//   8192     slot 0's place
//   8192 + capacity   slot 1's place
//
// A slot, a multiple of 4096 bytes:
//      0  "VTPS"
//      4  u32 slot number
//      8  u64 sequence number of the save
//     16  u32 length of the slot in bytes
//     20  zeros to 64
//     64  AES-256-GCM ciphertext of { u32 size of the state, the state, zeros }, then its tag[16]
//   -32   SHA-256 of all before it: what the manager keeps. Here it only tells damage from another save.
//
// Key: fresh for every save, kept by the manager; so the nonce is zero. AAD: "vtpmd state 1", uuid, u32 TPM version, the
// header's 64 bytes. A file is sparse: the places are 1 MiB apart, only what a save needs is allocated.
#include "store/state_image.hpp"

#include "store/aead.hpp"
#include "store/superblock.hpp"
#include "util/file_watch.hpp"
#include "util/uninterrupted.hpp"
#include "util/wire.hpp"

#include <algorithm>

namespace vtpmd::store {

namespace {

constexpr SuperblockFormat state_format{"VTPMDSTA", 1, 4096, "the image of a vTPM"};
constexpr std::uint64_t slots_at = 2 * state_format.region;
constexpr std::uint64_t file_capacity = 1'048'576;
/// A device must have room for any state libtpms can have (176 KiB of NV memory and what belongs to it).
constexpr std::uint64_t least_capacity = 262'144;
constexpr std::size_t unit = 4096;
constexpr std::size_t slot_header_size = 64;
constexpr std::size_t slot_overhead = slot_header_size + 4 + aead_tag_size + digest_size;
constexpr std::uint32_t slot_magic = 0x56545053;
static_assert(max_state_size + slot_overhead <= file_capacity);

/// A save that does not count although the manager may have its key.
struct Withdrawn {
    Bytes slot_hash;
    Bytes sealed; ///< the hash key that counts, under the save's key
};
constexpr std::size_t withdrawn_size = digest_size + hash_key_size + aead_tag_size;
/// More than two only if nothing is loaded in between: what is loaded says which one the manager has.
constexpr std::size_t most_withdrawn = 8;

struct Geometry {
    TpmVersion version;
    bool live;
    std::uint64_t capacity;
    std::vector<Withdrawn> withdrawn = {};
};

Bytes encode(const Geometry& g) {
    WireWriter w;
    w.be32(static_cast<std::uint32_t>(g.version)).be32(g.live ? 1 : 0).be64(g.capacity);
    for (const Withdrawn& save : g.withdrawn) {
        w.bytes(save.slot_hash).bytes(save.sealed);
    }
    return w.take();
}

Result<Geometry> decode(ByteView payload, const std::string& path) {
    WireReader r(payload);
    const std::uint32_t version = r.be32();
    const std::uint32_t live = r.be32();
    const std::uint64_t capacity = r.be64();
    std::vector<Withdrawn> withdrawn;
    while (r.ok() && r.remaining() >= withdrawn_size && withdrawn.size() < most_withdrawn) {
        Withdrawn save;
        save.slot_hash = to_bytes(r.bytes(digest_size));
        save.sealed = to_bytes(r.bytes(hash_key_size + aead_tag_size));
        withdrawn.push_back(std::move(save));
    }
    const bool sane = r.expect_end() && (version == 1 || version == 2) && live <= 1 && capacity >= least_capacity &&
                      capacity <= file_capacity && capacity % unit == 0;
    if (!sane) {
        return make_error(Errc::corrupt, "{}: the superblock's content makes no sense", path);
    }
    return Geometry{static_cast<TpmVersion>(version), live == 1, capacity, std::move(withdrawn)};
}

Bytes slot_header(std::uint32_t slot, std::uint64_t sequence, std::size_t length) {
    WireWriter w(slot_header_size);
    w.be32(slot_magic).be32(slot).be64(sequence).be32(static_cast<std::uint32_t>(length));
    w.zeros(slot_header_size - w.size());
    return w.take();
}

Bytes slot_aad(const ImageIdentity& identity, ByteView header) {
    WireWriter w;
    w.bytes(as_bytes("vtpmd state 1")).bytes(identity.uuid.bytes);
    w.be32(static_cast<std::uint32_t>(identity.version)).bytes(header);
    return w.take();
}

Bytes withdrawn_aad(const ImageIdentity& identity, ByteView slot_hash) {
    WireWriter w;
    w.bytes(as_bytes("vtpmd withdrawn 1")).bytes(identity.uuid.bytes);
    w.be32(static_cast<std::uint32_t>(identity.version)).bytes(slot_hash);
    return w.take();
}

/// The slot itself is under the same key with nonce 0.
Nonce withdrawn_nonce() {
    Nonce nonce{};
    nonce.back() = std::byte{1};
    return nonce;
}

/// What lies in a slot's place, as far as can be told without the key.
struct SlotContent {
    enum class Kind { empty, damaged, whole };
    Kind kind = Kind::empty;
    std::uint64_t sequence = 0;
    Bytes raw; ///< of a slot with a plausible header, even if damaged
    Digest digest{};

    [[nodiscard]] ByteView header() const { return ByteView(raw).first(slot_header_size); }
    [[nodiscard]] ByteView sealed() const {
        return ByteView(raw).subspan(slot_header_size, raw.size() - slot_header_size - digest_size);
    }
    [[nodiscard]] std::string describe() const {
        return kind == Kind::empty ? "empty" : kind == Kind::damaged ? "damaged" : fmt::format("save {}", sequence);
    }
};

class SlotImage final : public StateImage {
  public:
    SlotImage(std::unique_ptr<BlockFile> file, ImageIdentity identity, Superblock superblock, Geometry geometry)
        : file_(std::move(file))
        , identity_(identity)
        , superblock_(std::move(superblock))
        , geometry_(std::move(geometry)) {}

    Task<Result<SecretBytes>> load(ByteView hash_key) override { return uninterrupted(do_load(hash_key)); }
    Task<Result<SecretBytes>> prepare(ByteView state) override { return uninterrupted(do_prepare(state)); }
    Task<Result<void>> accept() override { return uninterrupted(do_accept()); }
    void reject() override {
        pending_.reset();
        pending_key_.clear();
    }
    Task<Result<void>> withdraw() override { return uninterrupted(do_withdraw()); }
    Task<Result<bool>> holds(ByteView slot_hash) override { return uninterrupted(do_holds(slot_hash)); }
    Task<Result<bool>> give_up(ByteView slot_hash) override { return uninterrupted(do_give_up(slot_hash)); }

    [[nodiscard]] bool had_state() const override { return geometry_.live; }
    [[nodiscard]] const ImageIdentity& identity() const override { return identity_; }
    [[nodiscard]] const std::string& path() const override { return file_->path(); }

  private:
    [[nodiscard]] std::uint64_t slot_offset(std::uint32_t slot) const { return slots_at + slot * geometry_.capacity; }

    Task<Result<SlotContent>> read_slot(std::uint32_t slot) {
        SlotContent content;
        const std::uint64_t at = slot_offset(slot);
        const std::uint64_t there = file_->size() > at ? std::min(file_->size() - at, geometry_.capacity) : 0;
        if (there < unit) {
            co_return content;
        }
        content.raw.resize(unit);
        auto read = co_await file_->read(at, content.raw);
        if (!read) {
            co_return read.error();
        }
        if (all_zero(content.raw)) {
            co_return content;
        }
        content.kind = SlotContent::Kind::damaged;
        WireReader r(content.raw);
        const std::uint32_t magic = r.be32();
        const std::uint32_t number = r.be32();
        content.sequence = r.be64();
        const std::uint32_t length = r.be32();
        if (magic != slot_magic || number != slot || length < unit || length > there || length % unit != 0) {
            content.raw.clear();
            co_return content;
        }
        content.raw.resize(length);
        read = co_await file_->read(at + unit, MutByteView(content.raw).subspan(unit));
        if (!read) {
            co_return read.error();
        }
        const ByteView raw(content.raw);
        content.digest = sha256({raw.first(length - digest_size)});
        if (std::ranges::equal(content.digest, raw.last(digest_size))) {
            content.kind = SlotContent::Kind::whole;
        }
        co_return content;
    }

    Task<Result<SecretBytes>> do_load(ByteView hash_key) {
        if (hash_key.size() != hash_key_size) {
            co_return make_error(Errc::usage, "a hash key has {} bytes, not {}", hash_key_size, hash_key.size());
        }
        const auto named = std::ranges::find_if(geometry_.withdrawn, [&](const Withdrawn& save) {
            return std::ranges::equal(save.slot_hash, hash_key.subspan(aead_key_size));
        });
        if (named == geometry_.withdrawn.end()) {
            auto loaded = co_await load_slot(hash_key);
            if (loaded) {
                geometry_.withdrawn.clear(); // none of them is on record
            }
            co_return loaded;
        }
        Withdrawn save = *named;
        auto instead = aead_open(hash_key.first(aead_key_size), withdrawn_nonce(),
                                 withdrawn_aad(identity_, save.slot_hash), save.sealed);
        if (!instead) {
            co_return make_error(Errc::corrupt, "{}: what it says of a withdrawn save cannot be read: {}", path(),
                                 instead.error().message);
        }
        auto loaded = co_await load_slot(instead->view());
        if (loaded) {
            geometry_.withdrawn.clear();
            geometry_.withdrawn.push_back(std::move(save)); // on record until another save is
        }
        co_return loaded;
    }

    Task<Result<SecretBytes>> load_slot(ByteView hash_key) {
        const ByteView wanted = hash_key.subspan(aead_key_size);
        std::array<SlotContent, 2> slots;
        for (std::uint32_t i = 0; i < 2; ++i) {
            auto content = co_await read_slot(i);
            if (!content) {
                co_return content.error();
            }
            slots[i] = std::move(*content);
            if (slots[i].kind != SlotContent::Kind::empty && !slots[i].raw.empty() &&
                std::ranges::equal(slots[i].digest, wanted)) {
                co_return co_await take(i, slots[i], hash_key);
            }
        }
        co_return no_such_slot(slots);
    }

    /// The slot with this hash; nullopt: none has it.
    Task<Result<std::optional<std::uint32_t>>> find_slot(ByteView slot_hash, SlotContent& content) {
        for (std::uint32_t i = 0; i < 2; ++i) {
            auto read = co_await read_slot(i);
            if (!read) {
                co_return read.error();
            }
            if (!read->raw.empty() && std::ranges::equal(read->digest, slot_hash)) {
                content = std::move(*read);
                co_return std::optional(i);
            }
        }
        co_return std::optional<std::uint32_t>();
    }

    Task<Result<bool>> do_holds(ByteView slot_hash) {
        SlotContent content;
        auto slot = co_await find_slot(slot_hash, content);
        if (!slot) {
            co_return slot.error();
        }
        co_return slot->has_value();
    }

    Task<Result<bool>> do_give_up(ByteView slot_hash) {
        SlotContent content;
        auto slot = co_await find_slot(slot_hash, content);
        if (!slot) {
            co_return slot.error();
        }
        if (!*slot) {
            co_return false;
        }
        valid_ = **slot;
        given_up_ = **slot;
        pending_.reset();
        sequence_ = content.sequence;
        co_return true;
    }

    [[nodiscard]] Error no_such_slot(const std::array<SlotContent, 2>& slots) const {
        using Kind = SlotContent::Kind;
        const std::string found = fmt::format("slot 0: {}, slot 1: {}", slots[0].describe(), slots[1].describe());
        if (slots[0].kind == Kind::empty && slots[1].kind == Kind::empty) {
            return make_error(
                Errc::mismatch,
                "{}: the manager has a state for vTPM {}, but this image holds none; put the image in its "
                "place that belongs to it",
                path(), identity_.uuid);
        }
        if (slots[0].kind == Kind::damaged || slots[1].kind == Kind::damaged) {
            return make_error(Errc::corrupt,
                              "{}: no slot of vTPM {} has the hash that the manager keeps, and one is damaged ({}; "
                              "offsets {} and {}); restore the image from a backup taken after its last save",
                              path(), identity_.uuid, found, slot_offset(0), slot_offset(1));
        }
        return make_error(
            Errc::rollback,
            "{}: no slot of vTPM {} has the hash that the manager keeps ({}); the image, or the manager's, "
            "is an older copy: put the present one back; where that is lost, `vtpmctl reset UUID`, move this image "
            "away and start: its guest gets a fresh TPM",
            path(), identity_.uuid, found);
    }

    Task<Result<SecretBytes>> take(std::uint32_t slot, const SlotContent& content, ByteView hash_key) {
        auto plain =
            aead_open(hash_key.first(aead_key_size), Nonce{}, slot_aad(identity_, content.header()), content.sealed());
        if (!plain) {
            co_return make_error(Errc::corrupt, "{}: slot {} of vTPM {} (offset {}) has the right hash but {}", path(),
                                 slot, identity_.uuid, slot_offset(slot), plain.error().message);
        }
        WireReader r(plain->view());
        const std::uint32_t size = r.be32();
        const ByteView state = r.bytes(size);
        if (!r.ok()) {
            co_return make_error(Errc::corrupt, "{}: slot {} says {} bytes of state and has fewer", path(), slot, size);
        }
        valid_ = slot;
        valid_key_ = SecretBytes(hash_key);
        pending_.reset();
        sequence_ = content.sequence;
        // The manager took this save, but the mark may be missing if the program ended in between.
        auto marked = co_await mark_live();
        if (!marked) {
            co_return marked.error();
        }
        co_return SecretBytes(state);
    }

    Task<Result<SecretBytes>> do_prepare(ByteView state) {
        if (pending_) {
            co_return make_error(Errc::busy, "{}: a save is waiting for the manager's answer", path());
        }
        if (geometry_.live && !valid_) {
            co_return make_error(Errc::usage, "{}: has state that was not loaded; nothing is written over it", path());
        }
        const std::size_t length = (state.size() + slot_overhead + unit - 1) / unit * unit;
        if (state.size() > max_state_size || length > geometry_.capacity) {
            co_return make_error(Errc::too_large, "{}: {} bytes of state do not fit a slot of {} bytes", path(),
                                 state.size(), geometry_.capacity);
        }
        const std::uint32_t slot = valid_ ? 1 - *valid_ : 0;
        if (length > allocated_[slot]) {
            auto room = co_await file_->allocate(slot_offset(slot), length);
            if (!room) {
                co_return room.error();
            }
            allocated_[slot] = length;
        }
        if (superblock_lost_) {
            auto mended = co_await keep_superblock(geometry_);
            if (!mended) {
                co_return mended.error();
            }
            superblock_lost_ = false;
        }
        SecretBytes hash_key(hash_key_size);
        const std::uint64_t sequence = sequence_ + 1;
        const Bytes raw = seal(slot, sequence, length, state, hash_key);
        auto written = co_await file_->write_sync(slot_offset(slot), raw);
        if (!written) {
            if (pulled_away(written.error())) {
                superblock_lost_ = true;
                allocated_ = {};
            }
            co_return written.error();
        }
        sequence_ = sequence;
        pending_ = slot;
        pending_key_ = hash_key.clone();
        co_return hash_key;
    }

    Bytes seal(std::uint32_t slot, std::uint64_t sequence, std::size_t length, ByteView state,
               SecretBytes& hash_key) const {
        fill_random(hash_key.mut().first(aead_key_size));
        SecretBytes plain(length - slot_header_size - aead_tag_size - digest_size);
        for (unsigned i = 0; i < 4; ++i) {
            plain.mut()[i] = static_cast<std::byte>(state.size() >> (24 - 8 * i));
        }
        std::ranges::copy(state, plain.mut().begin() + 4);
        Bytes raw = slot_header(slot, sequence, length);
        raw.resize(length);
        const MutByteView body = MutByteView(raw).first(length - digest_size);
        aead_seal(hash_key.view().first(aead_key_size), Nonce{}, slot_aad(identity_, body.first(slot_header_size)),
                  plain.view(), body.subspan(slot_header_size));
        const Digest digest = sha256({body});
        std::ranges::copy(digest, raw.end() - digest_size);
        std::ranges::copy(digest, hash_key.mut().begin() + aead_key_size);
        return raw;
    }

    Task<Result<void>> do_accept() {
        if (!pending_) {
            co_return make_error(Errc::usage, "{}: no save is waiting to be accepted", path());
        }
        valid_ = *pending_;
        valid_key_ = std::move(pending_key_);
        pending_.reset();
        if (auto old = std::exchange(given_up_, std::nullopt)) {
            // If this fails, the next save goes over it.
            auto zeroed = co_await wipe(*old);
            (void)zeroed;
        }
        if (!std::exchange(geometry_.withdrawn, {}).empty() && geometry_.live) {
            // If this fails they stay on the disk, and name saves that are not on record any more.
            auto written = co_await write_geometry(geometry_);
            (void)written;
        }
        auto marked = co_await mark_live();
        co_return marked;
    }

    Task<Result<void>> do_withdraw() {
        if (!pending_ || !valid_ || valid_key_.empty()) {
            co_return make_error(Errc::usage, "{}: no save is waiting that has another before it", path());
        }
        if (geometry_.withdrawn.size() >= most_withdrawn) {
            co_return make_error(Errc::busy, "{}: {} saves are withdrawn already", path(), most_withdrawn);
        }
        const ByteView key = pending_key_.view().first(aead_key_size);
        Withdrawn save{.slot_hash = to_bytes(pending_key_.view().subspan(aead_key_size)),
                       .sealed = Bytes(hash_key_size + aead_tag_size)};
        aead_seal(key, withdrawn_nonce(), withdrawn_aad(identity_, save.slot_hash), valid_key_.view(), save.sealed);
        // Beside those from before: the manager may have any of them still.
        Geometry changed = geometry_;
        changed.withdrawn.push_back(std::move(save));
        auto written = co_await write_geometry(std::move(changed));
        if (written) {
            reject();
        }
        co_return written;
    }

    Task<Result<void>> wipe(std::uint32_t slot) {
        const std::uint64_t at = slot_offset(slot);
        const std::uint64_t there = file_->size() > at ? std::min(file_->size() - at, geometry_.capacity) : 0;
        Bytes head(std::min<std::uint64_t>(unit, there));
        auto read = co_await file_->read(at, head);
        if (!read || head.size() < unit) {
            co_return read;
        }
        WireReader r(head);
        (void)r.bytes(16);
        const Bytes zeros(std::clamp<std::uint64_t>(r.be32(), unit, there));
        auto written = co_await file_->write_sync(at, zeros);
        co_return written;
    }

    Task<Result<void>> mark_live() {
        if (geometry_.live) {
            co_return Result<void>{};
        }
        Geometry marked = geometry_;
        marked.live = true;
        co_return co_await write_geometry(std::move(marked));
    }

    Task<Result<void>> write_geometry(Geometry changed) {
        auto written = co_await keep_superblock(changed);
        if (written) {
            geometry_ = std::move(changed);
        }
        co_return written;
    }

    Task<Result<void>> keep_superblock(Geometry geometry) {
        ++superblock_.generation;
        superblock_.payload = encode(geometry);
        Superblock copy = superblock_;
        auto written = co_await write_superblock(*file_, state_format, std::move(copy), doubtful_copy_);
        co_return written;
    }

    std::unique_ptr<BlockFile> file_;
    ImageIdentity identity_;

    Superblock superblock_;
    std::size_t doubtful_copy_ = 0;
    Geometry geometry_;
    std::uint64_t sequence_ = 0;           ///< of the last save written or loaded
    std::optional<std::uint32_t> valid_;   ///< the slot the manager's record names
    std::optional<std::uint32_t> pending_; ///< the slot written and not yet decided on
    SecretBytes valid_key_;                ///< its hash key
    SecretBytes pending_key_;
    std::optional<std::uint32_t> given_up_;  ///< the slot of give_up(), until the first save
    bool superblock_lost_ = false;           ///< another program may have written over it: to be written again
    std::array<std::size_t, 2> allocated_{}; ///< bytes of each slot's place that have their room on the disk
};

/// True if a place where a slot would lie holds something.
Task<Result<bool>> holds_data(BlockFile& file, std::uint64_t from, std::uint64_t to) {
    Bytes chunk(std::size_t{64} * 1024);
    to = std::min(to, file.size());
    for (std::uint64_t at = from; at < to; at += chunk.size()) {
        chunk.resize(std::min<std::uint64_t>(chunk.size(), to - at));
        auto read = co_await file.read(at, chunk);
        if (!read) {
            co_return read.error();
        }
        if (!all_zero(chunk)) {
            co_return true;
        }
    }
    co_return false;
}

Task<Result<std::unique_ptr<StateImage>>> do_create(std::unique_ptr<BlockFile> file, ImageIdentity identity) {
    std::uint64_t capacity = file_capacity;
    if (file->fixed_size()) {
        capacity = file->size() > slots_at ? std::min(capacity, (file->size() - slots_at) / 2 / unit * unit) : 0;
        if (capacity < least_capacity) {
            co_return make_error(Errc::no_space, "{}: has {} bytes, the image of a vTPM needs at least {}",
                                 file->path(), file->size(), slots_at + 2 * least_capacity);
        }
    }
    Bytes head(slots_at);
    auto read = co_await file->read(0, MutByteView(head).first(std::min<std::uint64_t>(head.size(), file->size())));
    if (!read) {
        co_return read.error();
    }
    auto slots = co_await holds_data(*file, slots_at, slots_at + 2 * capacity);
    if (!slots) {
        co_return slots.error();
    }
    if (*slots || !creatable(state_format, head)) {
        co_return make_error(Errc::exists, "{}: holds something already; nothing was written", file->path());
    }
    auto room = co_await file->allocate(0, slots_at);
    if (!room) {
        co_return room.error();
    }
    const Geometry geometry{identity.version, false, capacity};
    Superblock superblock{identity.uuid, 1, encode(geometry)};
    Superblock copy = superblock;
    auto created = co_await create_superblock(*file, state_format, std::move(copy));
    if (!created) {
        co_return created.error();
    }
    co_return std::make_unique<SlotImage>(std::move(file), identity, std::move(superblock), geometry);
}

Task<Result<std::unique_ptr<StateImage>>> do_open(std::unique_ptr<BlockFile> file, ImageIdentity expected,
                                                  const Log& log) {
    auto superblock = co_await open_superblock(*file, state_format, log);
    if (!superblock) {
        co_return superblock.error();
    }
    auto geometry = decode(superblock->payload, file->path());
    if (!geometry) {
        co_return geometry.error();
    }
    if (superblock->uuid != expected.uuid) {
        co_return make_error(Errc::mismatch, "{}: belongs to vTPM {}, not {}", file->path(), superblock->uuid,
                             expected.uuid);
    }
    if (geometry->version != expected.version) {
        co_return make_error(Errc::mismatch, "{}: vTPM {} is a TPM {}, not {}", file->path(), expected.uuid,
                             to_string(geometry->version), to_string(expected.version));
    }
    if (file->fixed_size() && file->size() < slots_at + 2 * geometry->capacity) {
        co_return make_error(Errc::corrupt, "{}: the device has {} bytes, the image {}", file->path(), file->size(),
                             slots_at + 2 * geometry->capacity);
    }
    co_return std::make_unique<SlotImage>(std::move(file), expected, std::move(*superblock), std::move(*geometry));
}

} // namespace

Task<Result<std::unique_ptr<StateImage>>> StateImage::create(std::unique_ptr<BlockFile> file, ImageIdentity identity,
                                                             const Log& /*log*/) {
    return uninterrupted(do_create(std::move(file), identity));
}

Task<Result<std::unique_ptr<StateImage>>> StateImage::open(std::unique_ptr<BlockFile> file, ImageIdentity expected,
                                                           const Log& log) {
    return uninterrupted(do_open(std::move(file), expected, log));
}

Task<Result<ImageIdentity>> StateImage::identify(BlockFile& file) {
    auto superblock = co_await peek_superblock(file, state_format);
    if (!superblock) {
        co_return superblock.error();
    }
    auto geometry = decode(superblock->payload, file.path());
    if (!geometry) {
        co_return geometry.error();
    }
    co_return ImageIdentity{superblock->uuid, geometry->version};
}

} // namespace vtpmd::store
