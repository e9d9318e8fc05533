#include "manager/vault/recovery_keys.hpp"

#include "manager/vault/superblock.hpp"
#include "util/text.hpp"
#include "util/utf8.hpp"
#include "util/wire.hpp"

namespace vtpmd::manager {

namespace {

constexpr std::size_t id_bytes = 4;

Bytes box_aad(const Uuid& image) {
    WireWriter aad(32);
    aad.bytes(as_bytes("vtpmd recovery")).bytes(image.bytes);
    return aad.take();
}

Bytes kept_aad(const Uuid& image) {
    WireWriter aad(32);
    aad.bytes(as_bytes("vtpmd kept recovery")).bytes(image.bytes);
    return aad.take();
}

SecretBytes keeping_key(const Keyring& keyring) {
    return derive_key(keyring.master, "vtpmd kept recovery", keyring.image.bytes);
}

} // namespace

std::string recovery_key_id(const SecretBytes& key, const Uuid& image) {
    const SecretBytes name = derive_key(key, "vtpmd recovery key id", image.bytes);
    return to_hex(name.view().first(id_bytes));
}

Result<void> check_recovery_label(std::string_view label) {
    if (label.size() > recovery_label_limit) {
        return make_error(Errc::usage, "a recovery key's label of {} bytes (at most {})", label.size(),
                          recovery_label_limit);
    }
    if (!is_printable_utf8(label)) {
        return make_error(Errc::usage, "a recovery key's label: printable UTF-8 is needed, without line ends");
    }
    return {};
}

Result<RecoveryKey> make_recovery_key(const SecretBytes& key, const Keyring& keyring, RecoveryKeyName name) {
    auto packed = pack(keyring);
    if (!packed) {
        return packed.error();
    }
    return RecoveryKey{.id = recovery_key_id(key, keyring.image),
                       .created = name.created,
                       .label = std::move(name.label),
                       .kept = close_box(keeping_key(keyring), kept_aad(keyring.image), key.view()),
                       .box = close_box(key, box_aad(keyring.image), packed->view())};
}

Result<std::size_t> close_recovery_boxes(std::vector<RecoveryKey>& keys, const Keyring& keyring) {
    auto packed = pack(keyring);
    if (!packed) {
        return packed.error();
    }
    std::size_t left = 0;
    const SecretBytes keeping = keeping_key(keyring);
    for (RecoveryKey& k : keys) {
        if (k.kept.empty()) {
            ++left;
            continue;
        }
        auto key = open_box(keeping, kept_aad(keyring.image), k.kept);
        if (!key) {
            return in_context(key.error(), fmt::format("the recovery key {} that the store keeps", k.id));
        }
        k.box = close_box(*key, box_aad(keyring.image), packed->view());
    }
    return left;
}

Result<Keyring> open_recovery_box(std::vector<RecoveryKey>& keys, const SecretBytes& key, const Uuid& image) {
    for (RecoveryKey& k : keys) {
        auto packed = open_box(key, box_aad(image), k.box);
        if (!packed) {
            continue;
        }
        auto keyring = unpack(packed->view());
        if (keyring && k.kept.empty()) {
            k.id = recovery_key_id(key, image);
            k.kept = close_box(keeping_key(*keyring), kept_aad(image), key.view());
        }
        return keyring;
    }
    return make_error(Errc::mismatch, "it is not a recovery key of this store ({})", image);
}

} // namespace vtpmd::manager
