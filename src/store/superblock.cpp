#include "store/superblock.hpp"

#include "store/aead.hpp"
#include "util/wire.hpp"

#include <algorithm>
#include <array>
#include <optional>

namespace vtpmd::store {

namespace {

constexpr std::size_t magic_size = 8;
constexpr std::size_t sector_size = 512;
constexpr std::string_view unfinished_magic = "vtpmdnew";
constexpr std::string_view backup_mark = "vtpmdcpy";
constexpr std::size_t header_size = 40;

Bytes encode(const SuperblockFormat& format, const Superblock& superblock) {
    WireWriter w(format.region);
    w.bytes(as_bytes(format.magic)).be32(format.version);
    w.be32(static_cast<std::uint32_t>(superblock.payload.size())).be64(superblock.generation);
    w.bytes(superblock.uuid.bytes).bytes(superblock.payload);
    w.zeros(format.region - digest_size - w.size());
    w.bytes(sha256({w.view()}));
    return w.take();
}

std::optional<Superblock> decode(const SuperblockFormat& format, ByteView copy) {
    const ByteView body = copy.first(copy.size() - digest_size);
    const Digest digest = sha256({body});
    if (!std::ranges::equal(digest, copy.last(digest_size))) {
        return std::nullopt;
    }
    WireReader r(body);
    const auto magic = r.array<magic_size>();
    const std::uint32_t version = r.be32();
    const std::uint32_t length = r.be32();
    Superblock out;
    out.generation = r.be64();
    out.uuid.bytes = r.array<16>();
    out.payload = to_bytes(r.bytes(length));
    out.backup = r.ok() && header_size + length + backup_mark.size() <= body.size() &&
                 std::ranges::equal(body.last(backup_mark.size()), as_bytes(backup_mark));
    if (!r.ok() || version != format.version || !std::ranges::equal(magic, as_bytes(format.magic))) {
        return std::nullopt;
    }
    return out;
}

bool has_magic(ByteView copy, std::string_view magic) {
    return std::ranges::equal(copy.first(magic_size), as_bytes(magic));
}

/// Why neither copy can be used.
Error explain(const SuperblockFormat& format, const std::string& path, ByteView both) {
    const ByteView first = both.first(format.region);
    const ByteView second = both.subspan(format.region);
    if (all_zero(first) && all_zero(second)) {
        return make_error(Errc::not_ours, "{}: holds nothing (all zeros where {} begins); --create makes one", path,
                          format.kind);
    }
    if (creatable(format, both)) {
        return make_error(
            Errc::not_ours,
            "{}: the creation of {} was cut short here and nothing was ever kept in it; --create makes it "
            "anew",
            path, format.kind);
    }
    const bool ours_first = has_magic(first, format.magic);
    if (!ours_first && !has_magic(second, format.magic)) {
        return make_error(Errc::not_ours, "{}: not {} (expected \"{}\" at offset 0)", path, format.kind, format.magic);
    }
    for (ByteView copy : {first, second}) {
        WireReader r(copy.subspan(magic_size));
        const std::uint32_t version = r.be32();
        if (has_magic(copy, format.magic) && version != format.version) {
            return make_error(Errc::version, "{}: {} in format version {}; this program knows version {}", path,
                              format.kind, version, format.version);
        }
    }
    return make_error(Errc::corrupt,
                      "{}: both copies of the superblock (offsets 0 and {}) are damaged; restore them from a backup of "
                      "this image: do not create a new one in its place",
                      path, format.region);
}

struct Copies {
    Bytes raw;
    std::array<std::optional<Superblock>, 2> decoded;
    [[nodiscard]] std::size_t newer() const {
        return decoded[1] && (!decoded[0] || decoded[1]->generation > decoded[0]->generation) ? 1 : 0;
    }
};

Result<Copies> decode_copies(SuperblockFormat format, Bytes raw, const std::string& path) {
    Copies copies;
    copies.raw = std::move(raw);
    const ByteView first = ByteView(copies.raw).first(format.region);
    const ByteView second = ByteView(copies.raw).subspan(format.region);
    copies.decoded = {decode(format, first), decode(format, second)};
    if (!copies.decoded[0] && !copies.decoded[1]) {
        return explain(format, path, copies.raw);
    }
    return copies;
}

Task<Result<Copies>> read_copies(BlockFile& file, SuperblockFormat format) {
    Bytes raw(2 * format.region);
    const std::size_t there = std::min<std::uint64_t>(file.size(), raw.size());
    auto read = co_await file.read(0, MutByteView(raw).first(there));
    if (!read) {
        co_return read.error();
    }
    co_return decode_copies(format, std::move(raw), file.path());
}

} // namespace

bool creatable(const SuperblockFormat& format, ByteView both) {
    const ByteView first = both.first(format.region);
    const ByteView second = both.subspan(format.region);
    const auto mark = std::ranges::mismatch(first.first(magic_size), as_bytes(unfinished_magic)).in1;
    const auto marked = static_cast<std::size_t>(mark - first.begin());
    // A mark may be torn to its first bytes; then nothing was written after it.
    const bool whole_mark = marked == magic_size;
    if (!all_zero(first.subspan(marked, sector_size - marked)) || !all_zero(first.subspan(sector_size))) {
        return false;
    }
    if (all_zero(second)) {
        return true;
    }
    return whole_mark && !decode(format, second);
}

void mark_backup(const SuperblockFormat& format, MutByteView copy) {
    const MutByteView body = copy.first(copy.size() - digest_size);
    if (auto decoded = decode(format, copy);
        !decoded || header_size + decoded->payload.size() + backup_mark.size() > body.size()) {
        return; // damaged, or full
    }
    std::ranges::copy(as_bytes(backup_mark), body.last(backup_mark.size()).begin());
    const Digest digest = sha256({body});
    std::ranges::copy(digest, copy.last(digest_size).begin());
}

Result<Superblock> read_superblock(const SuperblockFormat& format, ByteView both_copies, const std::string& path) {
    Bytes raw = to_bytes(both_copies.first(std::min(both_copies.size(), 2 * format.region)));
    raw.resize(2 * format.region);
    auto copies = decode_copies(format, std::move(raw), path);
    if (!copies) {
        return copies.error();
    }
    return std::move(*copies->decoded[copies->newer()]);
}

Task<Result<void>> create_superblock(BlockFile& file, SuperblockFormat format, Superblock superblock) {
    Bytes mark(sector_size);
    std::ranges::copy(as_bytes(unfinished_magic), mark.begin());
    auto written = co_await file.write_sync(0, mark);
    if (!written) {
        co_return written;
    }
    const Bytes copy = encode(format, superblock);
    written = co_await file.write_sync(format.region, copy);
    if (!written) {
        co_return written;
    }
    written = co_await file.write_sync(0, copy);
    co_return written;
}

Task<Result<Superblock>> peek_superblock(BlockFile& file, SuperblockFormat format) {
    auto copies = co_await read_copies(file, format);
    if (!copies) {
        co_return copies.error();
    }
    co_return std::move(*copies->decoded[copies->newer()]);
}

Task<Result<Superblock>> open_superblock(BlockFile& file, SuperblockFormat format, const Log& log) {
    auto copies = co_await read_copies(file, format);
    if (!copies) {
        co_return copies.error();
    }
    const std::size_t best = copies->newer();
    const std::size_t other = 1 - best;
    Superblock superblock = std::move(*copies->decoded[best]);
    if (!copies->decoded[other] || copies->decoded[other]->generation != superblock.generation) {
        log.warning("{}: copy {} of the superblock (offset {}) is {}; made good from the other", file.path(), other + 1,
                    other * format.region, copies->decoded[other] ? "older" : "damaged");
        const Bytes copy = encode(format, superblock);
        auto healed = co_await file.write_sync(other * format.region, copy);
        if (!healed) {
            co_return healed.error();
        }
    }
    co_return superblock;
}

Task<Result<void>> write_superblock(BlockFile& file, SuperblockFormat format, Superblock superblock,
                                    std::size_t& doubtful) {
    const Bytes copy = encode(format, superblock);
    for (unsigned written = 0; written < 2; ++written) {
        auto done = co_await file.write_sync(doubtful * format.region, copy);
        if (!done) {
            co_return done;
        }
        doubtful = 1 - doubtful;
    }
    co_return Result<void>{};
}

} // namespace vtpmd::store
