// The records of the manager's journal: what a registry is made of. Each is typed and versioned by itself; the journal
// encrypts, authenticates and orders them. All numbers are big-endian; layout beside the codec in records.cpp.
#pragma once

#include "proto/link/messages.hpp"
#include "store/state_image.hpp"
#include "tpm/version.hpp"
#include "util/bytes.hpp"
#include "util/result.hpp"
#include "util/uuid.hpp"

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <variant>

namespace vtpmd::manager {

/// A vTPM's hash key is 64 bytes (AES-256 key and SHA-256), or 52 (SHA-1 instead) from vTPMs of Xen's.
using proto::hash_key_long;
using proto::hash_key_short;
static_assert(hash_key_long == store::hash_key_size);
[[nodiscard]] constexpr bool is_hash_key_size(std::size_t n) { return n == hash_key_short || n == hash_key_long; }

/// A hash key encrypted under its group's key: nonce[12] || ciphertext[52 or 64] || tag[16] (key_wrap.hpp). In place,
/// since every registered vTPM has one in memory.
class WrappedKey {
  public:
    static constexpr std::size_t overhead = 12 + 16;
    static constexpr std::size_t capacity = hash_key_long + overhead;

    WrappedKey() = default;
    /// Errc::corrupt if the size fits neither kind of hash key.
    static Result<WrappedKey> from(ByteView bytes);
    [[nodiscard]] ByteView view() const noexcept { return {bytes_.data(), size_}; }
    [[nodiscard]] std::uint8_t size() const noexcept { return size_; }
    [[nodiscard]] bool empty() const noexcept { return size_ == 0; }
    friend bool operator==(const WrappedKey&, const WrappedKey&) = default;

  private:
    std::array<std::byte, capacity> bytes_{};
    std::uint8_t size_ = 0;
};

using GroupId = std::uint32_t;

/// A group exists. Group 0 is made with the store; its key is in the superblock.
struct GroupRecord {
    GroupId id = 0;
    Uuid uuid;
    std::uint64_t created = 0; ///< seconds since 1970, for people
    friend bool operator==(const GroupRecord&, const GroupRecord&) = default;
};

/// What is kept of a group that has an approver (group_detail.hpp); replaces what was there. Made after its GroupRecord.
struct GroupDetailRecord {
    GroupId id = 0;
    Bytes detail;
    friend bool operator==(const GroupDetailRecord&, const GroupDetailRecord&) = default;
};

/// A group without vTPMs is deleted.
struct GroupGoneRecord {
    GroupId id = 0;
    friend bool operator==(const GroupGoneRecord&, const GroupGoneRecord&) = default;
};

/// A vTPM is registered.
struct VtpmRecord {
    Uuid uuid;
    GroupId group = 0;
    TpmVersion version = TpmVersion::tpm20;
    std::uint64_t created = 0; ///< seconds since 1970, for people
    /// It was migrated away and comes back: takes its tombstone away. Until its first key only an instance that waits for its
    /// state from another host (--incoming) gets it.
    bool returned = false;
    friend bool operator==(const VtpmRecord&, const VtpmRecord&) = default;
};

/// A vTPM that has saved nothing yet is in another group from now on.
struct MovedRecord {
    Uuid uuid;
    GroupId group = 0;
    friend bool operator==(const MovedRecord&, const MovedRecord&) = default;
};

/// A toolstack of 2006 knows this vTPM by a number (compat/vtpm_managerd/service.hpp). Its tombstone takes the number away.
struct NumberRecord {
    Uuid uuid;
    std::uint32_t number = 0; ///< not 0
    friend bool operator==(const NumberRecord&, const NumberRecord&) = default;
};

/// The user of this host, besides root and the manager's own, who may open the vTPM (key_service.hpp) from now on. 0: nobody.
struct OwnerRecord {
    Uuid uuid;
    std::uint32_t user = 0;
    friend bool operator==(const OwnerRecord&, const OwnerRecord&) = default;
};

/// The hash key of a vTPM, which replaces the one before.
struct KeyRecord {
    Uuid uuid;
    std::uint64_t sequence = 0; ///< 1 for the first, then one more each time
    WrappedKey key;
    friend bool operator==(const KeyRecord&, const KeyRecord&) = default;
};

/// What an operator calls a vTPM. Not unique; no UUID, so that where either is taken it is clear which is meant.
inline constexpr std::size_t vtpm_name_limit = 64; ///< bytes
/// Errc::usage: empty, too long, not printable UTF-8, a blank at either end, or a UUID.
[[nodiscard]] Result<void> check_vtpm_name(std::string_view name);

/// The vTPM's name from now on; empty: it has none. Of one that is gone it says nothing: it may have been renamed while it was
/// deleted.
struct NameRecord {
    Uuid uuid;
    std::string name;
    friend bool operator==(const NameRecord&, const NameRecord&) = default;
};

/// The vTPM was reset to factory: its hash key is destroyed. Its next instance makes a fresh TPM over the state which that key
/// was of, and over no other.
struct ResetRecord {
    Uuid uuid;
    std::uint64_t sequence = 0; ///< of its keys, which go on behind it
    std::uint64_t when = 0;     ///< seconds since 1970, for people
    Bytes given_up;             ///< the hash of that state's slot: the destroyed key's last 32 or 20 bytes
    friend bool operator==(const ResetRecord&, const ResetRecord&) = default;
};

/// The vTPM is gone for good: an old image of it must not come back.
struct TombstoneRecord {
    enum class Reason : std::uint8_t { deleted = 1, migrated = 2 };
    Uuid uuid;
    Reason reason = Reason::deleted;
    std::uint64_t when = 0; ///< seconds since 1970, for people
    /// Of one that was migrated away from a group with an approver: it comes back into that, or not at all. Nil: the store's own
    /// group, or an older program did not note it.
    Uuid group{};
    friend bool operator==(const TombstoneRecord&, const TombstoneRecord&) = default;
};

/// The journal is as new as this value of the hardware counter (freshness.hpp).
struct FreshnessRecord {
    std::uint64_t counter = 0;
    friend bool operator==(const FreshnessRecord&, const FreshnessRecord&) = default;
};

/// What is kept of a group's CA for endorsement keys (certifier.hpp); replaces what was there. Made after its GroupRecord.
struct CertifierRecord {
    GroupId id = 0;
    Bytes detail;
    friend bool operator==(const CertifierRecord&, const CertifierRecord&) = default;
};

using Record =
    std::variant<GroupRecord, VtpmRecord, KeyRecord, TombstoneRecord, FreshnessRecord, GroupDetailRecord,
                 GroupGoneRecord, MovedRecord, NameRecord, ResetRecord, CertifierRecord, NumberRecord, OwnerRecord>;

[[nodiscard]] Bytes encode(const Record& record);
/// Errc::version for a type or version that this program does not know, Errc::corrupt for a wrong size or value.
[[nodiscard]] Result<Record> decode(ByteView bytes);

} // namespace vtpmd::manager
