// A vTPM's hash key, encrypted under its group's key: readable only while the group is open, whatever else of the journal is.
// Each vTPM has a key of its own, derived from the group's, and the box is bound to vTPM, group and sequence, so that it
// cannot be put in another's or an older record's place.
#pragma once

#include "manager/vault/records.hpp"
#include "util/secret_bytes.hpp"

namespace vtpmd::manager {

struct KeyPlace {
    Uuid uuid;
    GroupId group = 0;
    std::uint64_t sequence = 0;
};

/// hash_key: 52 or 64 bytes.
[[nodiscard]] Result<WrappedKey> wrap_hash_key(const SecretBytes& group_key, const KeyPlace& place, ByteView hash_key);
/// Errc::corrupt names the vTPM.
[[nodiscard]] Result<SecretBytes> unwrap_hash_key(const SecretBytes& group_key, const KeyPlace& place,
                                                  const WrappedKey& wrapped);

} // namespace vtpmd::manager
