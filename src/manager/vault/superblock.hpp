// The superblock of the manager's image: the store's own keys, sealed by the hardware TPM, with what a refusal needs to name
// its cause. Layout beside the codec in superblock.cpp.
#pragma once

#include "hwtpm/root_of_trust.hpp"
#include "manager/vault/crypto.hpp"
#include "manager/vault/recovery_keys.hpp"
#include "util/uuid.hpp"

#include <optional>
#include <vector>

namespace vtpmd::manager {

/// What only the TPM's seal (or the recovery key) gives out. Where the counter is belongs here: who could point the store at
/// another counter could put an old copy back.
struct Keyring {
    Uuid image;
    SecretBytes master;        ///< of the journal
    SecretBytes group0;        ///< of group 0's records
    hwtpm::CounterRef counter; ///< none: the store was made with freshness off
    /// The journal's value less the counter's: not 0 once a store has moved to another counter.
    std::uint64_t counter_base = 0;
    [[nodiscard]] Keyring clone() const;
};
/// At most 128 bytes, what every TPM seals.
inline constexpr std::size_t counter_auth_limit = 32;
[[nodiscard]] Result<SecretBytes> pack(const Keyring& keyring);
/// Errc::version, Errc::corrupt.
[[nodiscard]] Result<Keyring> unpack(ByteView packed);

struct Superblock {
    Uuid image;
    bool complete = false; ///< false while the store is being made: nothing was ever acknowledged
    hwtpm::SealedSecret sealed;
    std::uint32_t counter_handle = 0; ///< for people: the Keyring's is what counts
    Bytes tpm_identity;
    std::string tpm_description;
    std::vector<RecoveryKey> recovery; ///< at most recovery_key_limit
};
[[nodiscard]] Bytes encode(const Superblock& superblock);
/// Of this version, or of the one before, which has one recovery key at most. Errc::version, Errc::corrupt.
[[nodiscard]] Result<Superblock> decode_superblock(ByteView bytes);

} // namespace vtpmd::manager
