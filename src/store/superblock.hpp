// The first thing in an image of either kind: what it is, of which format version, whose. Two copies, written one after the
// other, so that at every moment one of them is whole; a damaged one is found by its digest and made good from its twin.
//
// One copy, all numbers big-endian, `region` bytes:
//      0  magic[8]        the kind of image
//      8  u32             format version
//     12  u32             length of the payload
//     16  u64             generation: the higher one is the newer
//     24  uuid[16]
//     40  payload, then zeros
//   -40   "vtpmdcpy" in a copy that was given out as a backup (if the payload leaves room), else zeros; writing the superblock
//         takes it away
//   -32   SHA-256 of all before it
//
// Creation: a mark (magic "vtpmdnew") where the first copy goes, sync; second copy, sync; first copy over the mark, sync. A
// creation cut short is known by the mark and can be done again; an image that was ever complete has a copy.
#pragma once

#include "util/block_file.hpp"
#include "util/log.hpp"
#include "util/uuid.hpp"

#include <string>
#include <string_view>

namespace vtpmd::store {

struct SuperblockFormat {
    std::string_view magic; ///< 8 characters
    std::uint32_t version;
    std::size_t region;    ///< bytes of one copy, a multiple of 512; the copies lie at 0 and at `region`
    std::string_view kind; ///< for messages: "the image of a vTPM"
};

struct Superblock {
    Uuid uuid;
    std::uint64_t generation = 1;
    Bytes payload;
    bool backup = false; ///< read from a copy that was given out as a backup, and not written since
};

[[nodiscard]] constexpr std::size_t superblock_payload_limit(const SuperblockFormat& f) { return f.region - 72; }

/// Marks one copy, of `region` bytes, as that of a backup.
void mark_backup(const SuperblockFormat& format, MutByteView copy);
/// What the first 2 * region bytes hold: the newer whole copy. Errc::not_ours, version, corrupt. `path` is for the message.
[[nodiscard]] Result<Superblock> read_superblock(const SuperblockFormat& format, ByteView both_copies,
                                                 const std::string& path);

/// True if an image may be created here: the first 2 * region bytes hold nothing, or a creation cut short.
[[nodiscard]] bool creatable(const SuperblockFormat& format, ByteView both_copies);
/// Steps of creation; only where creatable() said so. Durable on return.
Task<Result<void>> create_superblock(BlockFile& file, SuperblockFormat format, Superblock superblock);

/// The newer whole copy; the other one, if it is damaged or older, is written again (with a warning). Errc::not_ours,
/// version or corrupt if there is none.
Task<Result<Superblock>> open_superblock(BlockFile& file, SuperblockFormat format, const Log& log);
/// The same without writing.
Task<Result<Superblock>> peek_superblock(BlockFile& file, SuperblockFormat format);

/// Replaces both copies, one after the other; `superblock.generation` must be higher than any tried before. After an error
/// the old or the new one is found at the next open, also if it comes after other errors: `doubtful` is the copy (0 or 1) that a
/// write has failed for, which is written first, since the other is the only one then. Kept by the caller, 0 at first.
Task<Result<void>> write_superblock(BlockFile& file, SuperblockFormat format, Superblock superblock,
                                    std::size_t& doubtful);

} // namespace vtpmd::store
