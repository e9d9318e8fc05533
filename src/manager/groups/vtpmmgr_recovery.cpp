#include "manager/groups/vtpmmgr_recovery.hpp"

#include "store/aead.hpp"
#include "util/openssl_ptr.hpp"
#include "util/wire.hpp"

#include <array>
#include <openssl/core_names.h>
#include <openssl/dh.h>
#include <openssl/param_build.h>
#include <openssl/params.h>

namespace vtpmd::manager {

namespace {

using proto::management::Blob;
using proto::management::Number;
using proto::management::number_size;

constexpr std::size_t counter_size = 16;

Error no_dh() { return make_error(Errc::unavailable, "OpenSSL could not do Diffie-Hellman in modp_2048"); }
Error bad_half() {
    return make_error(Errc::usage, "a Diffie-Hellman half that is no element of prime order of the 2048-bit group of "
                                   "RFC 3526 (openssl genpkey -algorithm DH -pkeyopt group:modp_2048)");
}

/// Another's half, checked (NIST SP 800-56A section 5.6.2.3.1).
Result<hwtpm::Pkey> import_half(const Number& half) {
    const BigNumber n(BN_bin2bn(uchar_ptr(half), static_cast<int>(half.size()), nullptr));
    const ParamBuild build(OSSL_PARAM_BLD_new());
    if (!n || !build || OSSL_PARAM_BLD_push_utf8_string(build.get(), OSSL_PKEY_PARAM_GROUP_NAME, "modp_2048", 0) != 1 ||
        OSSL_PARAM_BLD_push_BN(build.get(), OSSL_PKEY_PARAM_PUB_KEY, n.get()) != 1) {
        return no_dh();
    }
    const Params params(OSSL_PARAM_BLD_to_param(build.get()));
    const KeyContext context(EVP_PKEY_CTX_new_from_name(nullptr, "DH", nullptr));
    if (!params || !context || EVP_PKEY_fromdata_init(context.get()) != 1) {
        return no_dh();
    }
    EVP_PKEY* raw = nullptr;
    if (EVP_PKEY_fromdata(context.get(), &raw, EVP_PKEY_PUBLIC_KEY, params.get()) != 1) {
        return bad_half();
    }
    hwtpm::Pkey key(raw);
    const KeyContext check(EVP_PKEY_CTX_new_from_pkey(nullptr, key.get(), nullptr));
    if (!check) {
        return no_dh();
    }
    if (EVP_PKEY_public_check(check.get()) != 1) {
        return bad_half();
    }
    return key;
}

SecretBytes blob_key(const DhExchange& e, const SecretBytes& shared) {
    store::Digest digest = store::sha256({as_bytes(e.name), e.group.bytes, e.first, e.second, shared.view()});
    SecretBytes out{ByteView(digest)};
    cleanse(digest);
    return out;
}

/// AES-256-CTR either way: `in` and `out` of one size.
Result<void> apply_blob_cipher(const SecretBytes& key, ByteView in, MutByteView out) {
    const std::array<unsigned char, counter_size> zero{};
    const CipherContext cipher(EVP_CIPHER_CTX_new());
    int size = 0;
    if (!cipher ||
        EVP_EncryptInit_ex(cipher.get(), EVP_aes_256_ctr(), nullptr, uchar_ptr(key.view()), zero.data()) != 1 ||
        EVP_EncryptUpdate(cipher.get(), uchar_ptr(out), &size, uchar_ptr(in), static_cast<int>(in.size())) != 1 ||
        static_cast<std::size_t>(size) != in.size()) {
        return make_error(Errc::unavailable, "OpenSSL could not do AES-256-CTR");
    }
    return {};
}

} // namespace

Result<DhHalf> DhHalf::make() {
    std::string group = "modp_2048";
    const std::array params{OSSL_PARAM_construct_utf8_string(OSSL_PKEY_PARAM_GROUP_NAME, group.data(), 0),
                            OSSL_PARAM_construct_end()};
    const KeyContext context(EVP_PKEY_CTX_new_from_name(nullptr, "DH", nullptr));
    EVP_PKEY* raw = nullptr;
    if (!context || EVP_PKEY_keygen_init(context.get()) != 1 ||
        EVP_PKEY_CTX_set_params(context.get(), params.data()) != 1 || EVP_PKEY_generate(context.get(), &raw) != 1) {
        return no_dh();
    }
    DhHalf out;
    out.key_.reset(raw);
    BIGNUM* value = nullptr;
    if (EVP_PKEY_get_bn_param(out.key_.get(), OSSL_PKEY_PARAM_PUB_KEY, &value) != 1) {
        return no_dh();
    }
    const BigNumber owned(value);
    if (BN_bn2binpad(value, uchar_ptr(MutByteView(out.value_)), static_cast<int>(number_size)) < 0) {
        return no_dh();
    }
    return out;
}

Result<SecretBytes> DhHalf::share(const Number& peer) const {
    auto other = import_half(peer);
    if (!other) {
        return other.error();
    }
    const KeyContext context(EVP_PKEY_CTX_new_from_pkey(nullptr, key_.get(), nullptr));
    SecretBytes shared(number_size);
    std::size_t size = shared.size();
    if (!context || EVP_PKEY_derive_init(context.get()) != 1 || EVP_PKEY_CTX_set_dh_pad(context.get(), 1) != 1 ||
        EVP_PKEY_derive_set_peer(context.get(), other->get()) != 1 ||
        EVP_PKEY_derive(context.get(), uchar_ptr(shared.mut()), &size) != 1 || size != shared.size()) {
        return no_dh();
    }
    return shared;
}

Bytes register_message(const Uuid& group, const Number& approver_half) {
    WireWriter w;
    return w.bytes(as_bytes(exchange_register)).bytes(group.bytes).bytes(approver_half).take();
}

Result<Blob> close_blob(const DhExchange& exchange, const SecretBytes& shared, const SecretBytes& key) {
    Blob blob{};
    if (key.size() != blob.size()) {
        return make_error(Errc::usage, "a group's key of {} bytes: expected {}", key.size(), blob.size());
    }
    if (auto done = apply_blob_cipher(blob_key(exchange, shared), key.view(), blob); !done) {
        return done.error();
    }
    return blob;
}

Result<SecretBytes> open_blob(const DhExchange& exchange, const SecretBytes& shared, const Blob& blob) {
    SecretBytes key(blob.size());
    if (auto done = apply_blob_cipher(blob_key(exchange, shared), blob, key.mut()); !done) {
        return done.error();
    }
    return key;
}

} // namespace vtpmd::manager
