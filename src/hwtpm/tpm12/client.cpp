#include "hwtpm/tpm12/client.hpp"

#include "hwtpm/tcti.hpp"
#include "tpm/codes.hpp"
#include "tpm/header.hpp"
#include "tpm/public_key.hpp"
#include "util/openssl_ptr.hpp"
#include "util/wire.hpp"

#include <memory>
#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/rand.h>
#include <openssl/rsa.h>

namespace vtpmd::hwtpm {

namespace {

constexpr std::size_t session_trailer = 20 + 1 + 20;
constexpr std::byte use_once{0};

Error no_crypto(std::string_view what) { return make_error(Errc::unsupported, "OpenSSL refuses {}", what); }

Bytes be32(std::uint32_t v) {
    WireWriter w;
    return w.be32(v).take();
}

} // namespace

Result<Digest12> random_nonce() {
    Digest12 out{};
    if (RAND_bytes(uchar_ptr(MutByteView(out)), static_cast<int>(out.size())) != 1) {
        return make_error(Errc::unavailable, "no random numbers from OpenSSL");
    }
    return out;
}

Result<Bytes> encrypt_for_endorsement_key(ByteView modulus, ByteView secret) {
    auto key = to_pkey({.type = KeyType::rsa_2048, .modulus = to_bytes(modulus), .x = {}, .y = {}});
    if (!key) {
        return key.error();
    }
    const KeyContext encrypt(EVP_PKEY_CTX_new(key->get(), nullptr));
    constexpr std::string_view label = "TCPA";
    void* owned_label = OPENSSL_memdup(label.data(), label.size());
    bool ok = encrypt && owned_label != nullptr && EVP_PKEY_encrypt_init(encrypt.get()) == 1 &&
              EVP_PKEY_CTX_set_rsa_padding(encrypt.get(), RSA_PKCS1_OAEP_PADDING) == 1 &&
              EVP_PKEY_CTX_set_rsa_oaep_md(encrypt.get(), EVP_sha1()) == 1 &&
              EVP_PKEY_CTX_set_rsa_mgf1_md(encrypt.get(), EVP_sha1()) == 1;
    if (ok && EVP_PKEY_CTX_set0_rsa_oaep_label(encrypt.get(), owned_label, static_cast<int>(label.size())) == 1) {
        owned_label = nullptr; // the context's now
    } else {
        ok = false;
    }
    OPENSSL_free(owned_label);
    Bytes out(modulus.size());
    size_t size = out.size();
    ok = ok &&
         EVP_PKEY_encrypt(encrypt.get(), uchar_ptr(MutByteView(out)), &size, uchar_ptr(secret), secret.size()) == 1;
    if (!ok || size != out.size()) {
        return no_crypto("to encrypt for the endorsement key");
    }
    return out;
}

Result<Bytes> Tpm12Client::exchange(const Command& command, ByteView packet, std::uint16_t response_tag) {
    auto answer = device_.transmit(packet, time_limit(packet));
    if (!answer) {
        return in_context(answer.error(), command.name);
    }
    auto header = tpm::parse_header(*answer);
    if (!header) {
        return in_context(header.error(), command.name);
    }
    if (header->code != 0) {
        constexpr std::uint32_t authfail = 0x01;  // TPM_AUTHFAIL, TPM Main part 2 section 16
        constexpr std::uint32_t auth2fail = 0x1D; // TPM_AUTH2FAIL
        const bool refused = header->code == authfail || header->code == auth2fail;
        Error e = make_error(refused ? Errc::permission : Errc::tpm, "{}: the TPM answered {:#x}", command.name,
                             header->code);
        e.detail = header->code;
        return e;
    }
    if (header->tag != response_tag) {
        return make_error(Errc::protocol, "{}: an answer with tag {:#06x}, expected {:#06x}", command.name, header->tag,
                          response_tag);
    }
    answer->erase(answer->begin(), answer->begin() + tpm::header_size);
    return answer;
}

Result<Bytes> Tpm12Client::run(const Command& command) {
    WireWriter w;
    w.be16(tpm::tag_rqu_command).be32(0).be32(command.ordinal).bytes(command.handles).bytes(command.parameters);
    w.patch_be32(2, static_cast<std::uint32_t>(w.size()));
    return exchange(command, w.view(), tpm::tag_rsp_command);
}

Result<Bytes> Tpm12Client::run(const Command& command, std::span<Session12> sessions) {
    const auto count = static_cast<std::uint16_t>(sessions.size());
    const Bytes ordinal = be32(command.ordinal);
    auto in_digest = sha1({ordinal, command.parameters});
    auto nonce = random_nonce(); // one nonceOdd serves the sessions of one command: each has its own nonceEven and key
    if (!in_digest || !nonce) {
        return in_digest ? nonce.error() : in_digest.error();
    }
    WireWriter w;
    w.be16(static_cast<std::uint16_t>(tpm::tag_rqu_command + count)).be32(0).be32(command.ordinal);
    w.bytes(command.handles).bytes(command.parameters);
    for (const Session12& s : sessions) {
        auto mac = hmac_sha1(s.key, {*in_digest, s.nonce_even, *nonce, ByteView(&use_once, 1)});
        if (!mac) {
            return mac.error();
        }
        w.be32(s.handle).bytes(*nonce).bytes(ByteView(&use_once, 1)).bytes(*mac);
    }
    w.patch_be32(2, static_cast<std::uint32_t>(w.size()));
    auto out = exchange(command, w.view(), static_cast<std::uint16_t>(tpm::tag_rsp_command + count));
    if (!out) {
        return out;
    }
    const std::size_t trailer = session_trailer * count;
    if (out->size() < trailer + command.response_handles) {
        return make_error(Errc::protocol, "{}: an answer without its authorisation", command.name);
    }
    const Bytes success = be32(0);
    auto out_digest =
        sha1({success, ordinal, ByteView(*out).first(out->size() - trailer).subspan(command.response_handles)});
    if (!out_digest) {
        return out_digest.error();
    }
    WireReader r(ByteView(*out).last(trailer));
    for (const Session12& s : sessions) {
        const auto nonce_even = r.array<20>();
        const ByteView goes_on = r.bytes(1);
        const ByteView mac = r.bytes(20);
        auto expected = hmac_sha1(s.key, {*out_digest, nonce_even, *nonce, goes_on});
        if (!expected) {
            return expected.error();
        }
        if (CRYPTO_memcmp(expected->data(), mac.data(), mac.size()) != 0) {
            return make_error(Errc::protocol,
                              "{}: the answer's authorisation is wrong: it is not from the TPM that holds "
                              "the secret, or was changed on its way",
                              command.name);
        }
    }
    cleanse(MutByteView(*out).last(trailer));
    out->resize(out->size() - trailer);
    return out;
}

Result<Session12> Tpm12Client::oiap(const SecretBytes& auth) {
    auto out = run({.ordinal = tpm::ord::oiap, .name = "TPM_OIAP"});
    if (!out) {
        return out.error();
    }
    WireReader r(*out);
    Session12 s;
    s.handle = r.be32();
    s.nonce_even = r.array<20>();
    s.key = auth.clone();
    if (!r.expect_end()) {
        return make_error(Errc::protocol, "TPM_OIAP: an answer of {} bytes", out->size());
    }
    return s;
}

Result<Session12> Tpm12Client::osap(std::uint16_t entity_type, std::uint32_t entity, const SecretBytes& auth) {
    auto nonce = random_nonce();
    if (!nonce) {
        return nonce.error();
    }
    WireWriter w;
    w.be16(entity_type).be32(entity).bytes(*nonce);
    auto out = run({.ordinal = tpm::ord::osap, .parameters = w.view(), .name = "TPM_OSAP"});
    if (!out) {
        return out.error();
    }
    WireReader r(*out);
    Session12 s;
    s.handle = r.be32();
    s.nonce_even = r.array<20>();
    const auto nonce_even_osap = r.array<20>();
    if (!r.expect_end()) {
        return make_error(Errc::protocol, "TPM_OSAP: an answer of {} bytes", out->size());
    }
    auto shared = hmac_sha1(auth, {nonce_even_osap, *nonce});
    if (!shared) {
        return shared.error();
    }
    s.key = SecretBytes(ByteView(*shared));
    cleanse(*shared);
    return s;
}

Result<Digest12> Tpm12Client::encrypt_auth(const Session12& osap, ByteView new_auth) {
    auto pad = sha1({osap.key.view(), osap.nonce_even});
    if (pad) {
        for (std::size_t i = 0; i < pad->size(); ++i) {
            (*pad)[i] ^= i < new_auth.size() ? new_auth[i] : std::byte{0};
        }
    }
    return pad;
}

} // namespace vtpmd::hwtpm
