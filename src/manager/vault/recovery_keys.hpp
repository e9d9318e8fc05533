// The recovery keys of a store: each opens it without the TPM. For each the superblock has a box with the packed keyring; and, in a
// box under the store's own key, the recovery key itself, so that whoever has the store open can close every box anew. That is done
// whenever the keyring is sealed anew: a box that were left as it was would name a counter that is not the store's any more.
#pragma once

#include "manager/vault/crypto.hpp"
#include "util/uuid.hpp"

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace vtpmd::manager {

struct Keyring;

struct RecoveryKey {
    std::string
        id; ///< 8 hexadecimal digits, made from the key; empty: made by an older program, unknown until it is used
    std::uint64_t created = 0; ///< seconds since 1970; 0: unknown
    std::string label;         ///< what its operator calls it, or empty
    Bytes kept;                ///< the key, in a box under the store's; empty: as for `id`
    Bytes box;                 ///< the packed keyring, under the key
    friend bool operator==(const RecoveryKey&, const RecoveryKey&) = default;
};
inline constexpr std::size_t recovery_key_limit = 16;   ///< of a store
inline constexpr std::size_t recovery_label_limit = 64; ///< bytes

/// How a key of this store is named.
[[nodiscard]] std::string recovery_key_id(const SecretBytes& key, const Uuid& image);
/// What people call one: its id, or "unnamed" where that is not known.
[[nodiscard]] inline std::string shown_id(const RecoveryKey& k) { return k.id.empty() ? "unnamed" : k.id; }
/// Errc::usage: not printable UTF-8, or too long.
[[nodiscard]] Result<void> check_recovery_label(std::string_view label);

struct RecoveryKeyName {
    std::string label;
    std::uint64_t created = 0;
};
[[nodiscard]] Result<RecoveryKey> make_recovery_key(const SecretBytes& key, const Keyring& keyring,
                                                    RecoveryKeyName name);
/// Closes every box anew over `keyring`. How many could not be, since an older program made them: they stay as they are.
[[nodiscard]] Result<std::size_t> close_recovery_boxes(std::vector<RecoveryKey>& keys, const Keyring& keyring);
/// The keyring that a key of `keys` gives out; that one is known from then on. Errc::mismatch: it is none of them.
[[nodiscard]] Result<Keyring> open_recovery_box(std::vector<RecoveryKey>& keys, const SecretBytes& key,
                                                const Uuid& image);

} // namespace vtpmd::manager
