#include "manager/vault/key_wrap.hpp"

#include "manager/vault/crypto.hpp"
#include "util/wire.hpp"

namespace vtpmd::manager {

static_assert(box_overhead == WrappedKey::overhead);

namespace {
SecretBytes vtpm_key(const SecretBytes& group_key, const Uuid& uuid) {
    return derive_key(group_key, "vtpmd hash key", uuid.bytes);
}

Bytes aad_of(const KeyPlace& place) {
    WireWriter aad(28);
    aad.bytes(place.uuid.bytes).be32(place.group).be64(place.sequence);
    return aad.take();
}
} // namespace

Result<WrappedKey> wrap_hash_key(const SecretBytes& group_key, const KeyPlace& place, ByteView hash_key) {
    if (!is_hash_key_size(hash_key.size())) {
        return make_error(Errc::protocol, "hash key of {} bytes (expected {} or {})", hash_key.size(), hash_key_short,
                          hash_key_long);
    }
    return WrappedKey::from(close_box(vtpm_key(group_key, place.uuid), aad_of(place), hash_key));
}

Result<SecretBytes> unwrap_hash_key(const SecretBytes& group_key, const KeyPlace& place, const WrappedKey& wrapped) {
    auto key = open_box(vtpm_key(group_key, place.uuid), aad_of(place), wrapped.view());
    if (!key) {
        return in_context(key.error(), fmt::format("key {} of vTPM {}", place.sequence, place.uuid));
    }
    return key;
}

} // namespace vtpmd::manager
