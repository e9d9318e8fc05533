#include "manager/vault/crypto.hpp"

#include <algorithm>

namespace vtpmd::manager {

Bytes close_box(const SecretBytes& key, ByteView aad, ByteView plaintext) {
    const store::Nonce nonce = store::random_nonce();
    Bytes box(plaintext.size() + box_overhead);
    std::copy(nonce.begin(), nonce.end(), box.begin());
    store::aead_seal(key.view(), nonce, aad, plaintext, MutByteView(box).subspan(nonce.size()));
    return box;
}

Result<SecretBytes> open_box(const SecretBytes& key, ByteView aad, ByteView box) {
    if (box.size() < box_overhead) {
        return make_error(Errc::corrupt, "a box of {} bytes is too short", box.size());
    }
    store::Nonce nonce{};
    std::copy_n(box.begin(), nonce.size(), nonce.begin());
    return store::aead_open(key.view(), nonce, aad, box.subspan(nonce.size()));
}

SecretBytes derive_key(const SecretBytes& key, std::string_view label, ByteView context) {
    return store::hmac_sha256(key.view(), {as_bytes(label), context});
}

SecretBytes mix_key(ByteView from_tpm) { return derive_key(store::random_key(), "vtpmd new key", from_tpm); }

} // namespace vtpmd::manager
